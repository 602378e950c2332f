"""What a user types for a data set, and what it opens."""

import gzip
import json
import os

import pytest

from featurecache.errors import SourceError
from featurecache.sources import Limited, TextFiles, is_remote, location, open_data, patterns
from featurecache.types import NO_LABEL
from tests.sources.make_data import DATA, paint_images, picture, write_jsonl, write_tar

IMAGES = ["cat/1.png", "cat/2.png", "dog/3.png"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty working directory, beside an empty $FC_DATA."""
    (tmp_path / "here").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("FC_DATA_CACHE", str(tmp_path / "downloads"))
    monkeypatch.setenv("FC_DATA", str(tmp_path / "home"))


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def sizes(spec, **options):
    return {split: len(source) for split, source in open_data(spec, **options).items()}


def texts(path, count=2, **fields):
    return write_jsonl(path, [{"text": f"{path.name} {row}", **fields} for row in range(count)])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("digits", {"train": 1437, "test": 360}),
        ("synthetic", {"train": 1000, "test": 250}),
        ("synthetic:200", {"train": 200, "test": 50}),
        ("synthetic-text:2", {"train": 2, "test": 1}),
        (str(DATA / "glyphs"), {"train": 800, "test": 300}),
        (str(DATA / "glyphs-{train,test}-000000.tar"), {"train": 800, "test": 300}),
        (str(DATA / "*.tar"), {"train": 800, "test": 300}),
        (str(DATA / "debtext"), {"train": 3000, "test": 1000}),
        (str(DATA / "debtext-test.jsonl.gz"), {"test": 1000}),
        ([f"train={DATA / 'debtext'}", f"extra={DATA / 'debtext-test.jsonl.gz'}"], {"train": 3000, "extra": 1000}),
        ([str(DATA / "glyphs-test-000000.tar"), str(DATA / "glyphs-train-000000.tar")], {"train": 800, "test": 300}),
        (["train=digits", "valid=digits"], None),
        (["test=synthetic:8", "train=synthetic:40"], {"train": 40, "test": 2}),
    ],
)
def test_specs(spec, expected):
    if expected is None:
        with pytest.raises(SourceError, match="digits holds several splits: train, test"):
            open_data(spec)
    else:
        assert list(sizes(spec).items()) == list(expected.items())


def test_class_names_of_the_sample_data():
    debtext, glyphs = open_data(str(DATA / "debtext")), open_data(str(DATA / "glyphs"))
    names = tuple(json.loads((DATA / "debtext-labels.json").read_text()))
    assert debtext["train"].class_names == debtext["test"].class_names == names
    assert glyphs["train"].class_names == glyphs["test"].class_names == tuple(map(str, range(10)))


def test_a_name_looks_in_the_data_home_first(home, tmp_path):
    paint_images(home / "pets", IMAGES)
    paint_images(tmp_path / "here/pets", ["cat/1.png"])
    assert sizes("pets") == {"train": 3} and sizes("./pets") == {"train": 1}
    assert location("pets") == [str(home / "pets")] and location("./pets") == [str(tmp_path / "here/pets")]
    texts(home / "digits.jsonl", 2)
    assert sizes("digits") == {"train": 2}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["set.tar"], {"train": 1}),
        (["set-000000.tar", "set-000001.tar"], {"train": 2}),
        (["set-train-000.tar", "set-train-001.tar", "set-val-000.tar"], {"train": 2, "val": 1}),
        (["set.jsonl"], {"train": 2}),
        (["set-train.jsonl", "set-validation.jsonl", "set-test.jsonl"], {"train": 2, "val": 2, "test": 2}),
        (["set_train-00000-of-00002.jsonl", "set_train-00001-of-00002.jsonl"], {"train": 4}),
        (["set.dev.jsonl"], {"val": 2}),
        (["set/train.jsonl", "set/test.jsonl"], {"train": 2, "test": 2}),
        (["set/train-0.tar", "set/0.md", "set/labels.json"], {"train": 1}),
        (["set/0000.tar", "set/0001.tar"], {"train": 2}),
        (["set/train/a.tar", "set/valid/b.tar"], {"train": 1, "val": 1}),
        (["set/train/one.jsonl", "set/README.txt"], {"train": 2}),
    ],
)
@pytest.mark.parametrize("as_name", [True, False], ids=["name", "path"])
def test_files_named_with_their_split(home, monkeypatch, files, expected, as_name):
    for number, name in enumerate(files):
        path = home / name
        if path.suffix == ".tar":
            write_tar(path, {f"{number}.png": picture(number)})
        else:
            texts(path) if path.suffix == ".jsonl" else path.write_text("about the data")
    texts(home / "other-train.jsonl")
    assert sizes("set" if as_name else str(home / "set")) == expected
    monkeypatch.delenv("FC_DATA")
    monkeypatch.chdir("/")
    assert sizes(location(str(home / "set"))) == expected


def test_names_that_end_in_a_number(home):
    texts(home / "cifar-10.jsonl")
    write_tar(home / "web-2-train-000.tar", {"a.txt": b"a"})
    assert sizes("cifar-10") == {"train": 2} and sizes("web-2") == {"train": 1}


def test_split_folders(home):
    for split, names in {"train": IMAGES, "validation": ["dog/9.png"], "test": ["a.png", "b.png"]}.items():
        paint_images(home / "set" / split, names)
    (home / "set/notes").mkdir()
    data = open_data("set")
    assert {split: len(source) for split, source in data.items()} == {"train": 3, "val": 1, "test": 2}
    assert data["val"].labels.tolist() == [1] and data["test"].labels.tolist() == [NO_LABEL] * 2
    assert {source.class_names for source in data.values()} == {("cat", "dog")}
    assert open_data("set", splits=["valid"])["val"].labels.tolist() == [1]


def test_imagenet_as_it_is_unpacked(home):
    nested = home / "imagenet/ILSVRC/Data/CLS-LOC"
    paint_images(nested / "train", ["n01440764/x.png", "n01443537/y.png"])
    paint_images(nested / "val", ["n01443537/z.png"])
    (home / "imagenet/LOC_synset_mapping.txt").write_text("n01440764 tench\n")
    data = open_data("imagenet")
    assert {split: source.labels.tolist() for split, source in data.items()} == {"train": [0, 1], "val": [1]}
    assert list(data["val"].keys) == ["n01443537/z.png"]
    assert sizes("./../home/imagenet/ILSVRC") == {"train": 2, "val": 1}


def test_a_class_called_train_is_a_class(home):
    paint_images(home / "vehicles", ["car/1.png", "plane/2.png", "train/3.png"])
    assert open_data("vehicles")["train"].class_names == ("car", "plane", "train")


def test_tables_beside_class_folders_describe_them(home):
    paint_images(home / "pets", IMAGES)
    (home / "pets/classes.txt").write_text("cat\ndog\n")
    assert open_data("pets")["train"].modality == "image"


def test_flat_images(home):
    paint_images(home / "flat", ["a.png", "b.png"])
    assert sizes("flat") == {"train": 2}


@pytest.mark.parametrize("files", [["a.tar", "b.jsonl"], ["one-train.jsonl", "two-train.jsonl"], ["a.txt", "a.tar"]])
def test_a_folder_of_two_data_sets_is_refused(home, files):
    for name in files:
        path = home / "mixed" / name
        write_tar(path, {"x.txt": b"words"}) if name.endswith(".tar") else texts(path)
    with pytest.raises(SourceError, match="more than one data set") as error:
        open_data("mixed")
    assert all(name in error.value.message for name in files)
    assert error.value.hint.startswith("name one: ") and str(home / "mixed") in error.value.hint


def test_the_sample_data_are_two_data_sets():
    with pytest.raises(SourceError) as error:
        open_data(str(DATA))
    choices = f"{DATA / 'debtext'}, {DATA / 'glyphs'}, or a pattern such as '{DATA}/*.jsonl.gz'"
    assert error.value.hint == f"name one: {choices}"


def test_classes_that_train_lacks_are_named(home):
    paint_images(home / "set/train", IMAGES)
    paint_images(home / "set/val", ["zebra/1.png"])
    with pytest.raises(SourceError, match="'zebra' is not among the 2 class names .*train split"):
        open_data("set")


def test_splits_must_agree(home):
    paint_images(home / "pets", IMAGES)
    texts(home / "x.jsonl")
    with pytest.raises(SourceError, match="modality: train has 'image'; test has 'text'"):
        open_data([f"train={home / 'pets'}", f"test={home / 'x.jsonl'}"])
    with pytest.raises(SourceError, match="differ in class_names"):
        open_data([f"train={home / 'pets'}", "test=digits"])


def test_columns_are_passed_on(home):
    write_jsonl(home / "x.jsonl", [{"body": "words", "kind": "a", "name": "n"}])
    source = open_data("x", text_column="body", label_column="kind", id_column="name")["train"]
    assert (list(source.keys), source.class_names) == (["n"], ("a",))
    with pytest.raises(SourceError, match="'body', 'kind', 'name'"):
        open_data("x")


def test_select_and_limit():
    assert list(open_data("digits", splits=["test"])) == ["test"]
    assert list(open_data("digits", splits=["test", "train"])) == ["train", "test"]
    with pytest.raises(SourceError, match=r"no split 'val'  \(hint: there are: train, test\)"):
        open_data("digits", splits=["dev"])
    limited = open_data("digits", limit=7)
    assert all(isinstance(source, Limited) and len(source) == 7 for source in limited.values())
    with pytest.raises(SourceError, match="leaves no sample"):
        open_data("digits", limit=0)


def test_patterns(home):
    for number in range(3):
        write_tar(home / f"x-{number:06}.tar", {f"{number}.txt": b"words"})
    assert sizes(f"{home}/x-{{000000..000002}}.tar") == {"train": 3}
    assert sizes(f"{home}/x-00000[12].tar") == {"train": 2}
    assert sizes([f"test={home}/x-*2.tar", f"train={home}/x-*{{0,1}}.tar"]) == {"train": 2, "test": 1}
    with pytest.raises(SourceError, match="no file at .*x-000003.tar"):
        open_data(f"{home}/x-{{000000..000003}}.tar")
    with pytest.raises(SourceError, match="no file matches"):
        open_data(f"{home}/y-*.tar")
    (home / "odd[1].jsonl").write_text('{"text": "a name that looks like a pattern"}\n')
    assert sizes(str(home / "odd[1].jsonl")) == {"train": 1}


@pytest.mark.parametrize("spec", ["{0..9999999999}.tar", "{0..999}{0..999}.tar"])
def test_a_pattern_cannot_exhaust_memory(spec, monkeypatch):
    monkeypatch.setattr(patterns, "_MAX_FILES", 2000)
    with pytest.raises(SourceError, match="stands for more than 2,000 files"):
        open_data(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("glyhps", "no data set at 'glyhps'.*did you mean 'glyphs'.*FC_DATA.*hf:NAME"),
        ("digit", "did you mean 'digits'"),
        ("imagenet", r"imagenet-1k-wds cannot be reached: offline mode.*a local copy at \$FC_DATA/imagenet"),
        ("/no/such/place", "no data set at '/no/such/place'.*check the path"),
        (".", "no images, tars or texts in ."),
        ("hf:", "'hf:' names no data set"),
        ("hf:org/name@1@2", "names no data set"),
        ("https://host/x.zip", "only those are read over http"),
        ("https://host/x-*.tar", "has a wildcard"),
        ("https://me:secret@host/x.tar", "user name or password is refused"),
        ("https://{host/x,me:secret@host/y}.tar", "user name or password is refused"),
        ("https://[::1/x.tar", "'https://.*' is no address"),
        ("https:///x.tar", "is no address"),
        ("https://host:port/x.tar", "is no address"),
        ("https://a..b/x.tar", "is no address"),
        ("s3://bucket/x-{000..100}.tar", "not read over s3:// yet.*download it first"),
        ("train=ftp://host/x.tar", "not read over ftp://"),
        ("pipe:curl host", "a command is never run"),
        (["https://host/x.tar", "y.tar"], "stands among other data"),
        ("x.parquet", "no data set at 'x.parquet'"),
        ("", "no data set is named"),
        ([], "no data set is named"),
        ("synthetic:0", "0 samples"),
        (["train=a", "b"], "some splits are named"),
        (["val=a", "dev=b"], "named twice"),
        ("Train=a", "'Train' cannot name a split"),
        ("x-{1,2.tar", "is no pattern"),
        ("nul\0byte", "no data set"),
        ("x" * 5000, "cannot be read"),
        (["a.tar", "b.tar"], "no file at a.tar"),
    ],
)
def test_refusals(home, spec, message):
    texts(home / "glyphs-train.jsonl")
    with pytest.raises(SourceError, match=message) as error:
        open_data(spec)
    assert error.value.hint


@pytest.mark.parametrize(
    "spec",
    [
        "https://me:secret@host/x.tar",
        "https://host/x.zip?sig=secret",
        "https://host/x-*.tar?sig=secret",
        "https://host/x-{1,2.tar?sig=secret",
        ["https://host/x.tar?sig=secret", "y.tar"],
        "https:///x.tar?sig=secret",
    ],
)
def test_passwords_and_signatures_are_not_repeated(spec):
    with pytest.raises(SourceError) as error:
        open_data(spec)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("digits", False),
        ("train=./x.tar", False),
        ("https://host/x.tar", True),
        ("val=http://host/x.tar", True),
        ("hf:a/b", True),
        ("train=hf:./folder", True),
        ("imagenet", True),
    ],
)
def test_what_may_go_over_the_network(spec, expected):
    assert is_remote(spec) == expected


def test_a_local_imagenet_is_not_remote(home):
    write_tar(home / "imagenet/train-0.tar", {"a.png": picture(0)})
    assert not is_remote("imagenet")


def test_splits_that_are_not_wanted_are_not_opened(home, monkeypatch):
    opened = []
    listed = TextFiles.__init__

    def listen(self, paths, **options):
        opened.append(paths[0].name)
        listed(self, paths, **options)

    for split in ("train", "val", "test"):
        texts(home / f"x-{split}.jsonl", label="a")
        texts(home / f"y-{split}.jsonl")
    monkeypatch.setattr(TextFiles, "__init__", listen)
    open_data("x", splits=["test"])
    assert opened == ["x-train.jsonl", "x-test.jsonl"]  # the first has the class names
    opened.clear()
    open_data("y", splits=["train"])
    assert opened == ["y-train.jsonl"]


@pytest.mark.parametrize("name", ["imagenet", "imagenette"])
def test_unset_data_home(monkeypatch, name):
    monkeypatch.delenv("FC_DATA")
    with pytest.raises(SourceError, match="FC_DATA is not set now"):
        open_data(name)


def test_files_of_no_known_kind(home):
    (home / "x.pkl").write_bytes(b"")
    with pytest.raises(SourceError, match="x.pkl is of no known kind"):
        open_data(str(home / "x.pkl"))


def test_location_finds_the_data_from_elsewhere(home, tmp_path, monkeypatch):
    texts(tmp_path / "here/x-train.jsonl")
    (tmp_path / "here/x-test.jsonl.gz").write_bytes(gzip.compress(b'{"text": "words"}\n'))
    specs = ["x", "x-{train,test}.jsonl*", ["train=x-train.jsonl", "test=x-test.jsonl.gz"], "../here", "synthetic:8"]
    before = [(sizes(spec), location(spec)) for spec in specs]
    monkeypatch.chdir("/")
    for expected, place in before:
        assert sizes(place) == expected
        assert location(place) == place
    assert before[-1][1] == ["synthetic:8"] and before[0][1] == [os.path.join(tmp_path, "here", "x")]
