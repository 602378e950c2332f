"""Data sets of the `datasets` library, from local folders and without a connection."""

import sys
from types import SimpleNamespace

import pyarrow as pa
import pytest

from featurecache.errors import SourceError, UsageError
from featurecache.sources import Tabular, decode, hub_datasets, location, open_data
from featurecache.sources.hub_datasets import HubName, open_tables, parse_name
from featurecache.sources.text_records import Columns
from featurecache.types import NO_LABEL, Reason
from tests.contracts.source_contract import SourceContract
from tests.sources.make_data import paint_images, picture, write_jsonl, write_parquet

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    return cache


def only(path, **columns):
    (table,) = open_tables(parse_name(f"hf:{path}")).values()
    return Tabular(table, columns=Columns(**columns))


def save_images(folder, names=("cat", "dog")):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    rows = {"image": [{"bytes": picture(n), "path": f"{n}.png"} for n in range(4)], "label": [0, 1, 1, -1]}
    folder.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "train-00000-of-00001.parquet"))
    return folder


class TestHubImages(SourceContract):
    def make_source(self, tmp_path):
        return only(save_images(tmp_path / "set"))


class TestHubTexts(SourceContract):
    valid = 2

    def make_source(self, tmp_path):
        write_jsonl(
            tmp_path / "set/train.jsonl", [{"text": "a", "label": "x"}, {"text": None}, {"text": "b", "label": "y"}]
        )
        return only(tmp_path / "set")


class TestHubImageFolder(SourceContract):
    def make_source(self, tmp_path):
        return only(paint_images(tmp_path / "set", ["train/cat/1.png", "train/dog/1.png", "train/dog/2.png"]))


def test_images_and_class_names(tmp_path):
    save_images(tmp_path / "set")
    source = open_data(f"hf:{tmp_path / 'set'}")["train"]
    assert source.modality == "image" and source.class_names == ("cat", "dog")
    assert source.keys == ["0.png", "1.png", "2.png", "3.png"] and source.labels.tolist() == [0, 1, 1, NO_LABEL]
    assert [sample.encoded for sample in source.iter(0, 4)] == [picture(n) for n in range(4)]
    assert open_data(str(tmp_path / "set"))["train"].fingerprint() == source.fingerprint()


def test_an_image_folder_has_keys_that_do_not_depend_on_the_machine(tmp_path):
    names = ["train/cat/1.png", "train/dog/1.png", "test/dog/9.png"]
    paint_images(tmp_path / "set", names)
    data = open_data(f"hf:{tmp_path / 'set'}")
    assert {split: list(source.keys) for split, source in data.items()} == {"train": names[:2], "test": names[2:]}
    assert data["test"].class_names == ("cat", "dog") and data["test"].labels.tolist() == [1]
    assert data["train"][1].encoded == (tmp_path / "set" / names[1]).read_bytes()


def test_splits_and_text_columns(tmp_path):
    for split, count in {"train": 3, "validation": 2, "test": 1}.items():
        rows = [{"sentence": f"{split} {n}", "label": n % 2} for n in range(count)]
        write_jsonl(tmp_path / f"set/{split}.jsonl", rows)
    data = open_data(f"hf:{tmp_path / 'set'}")
    assert {split: len(source) for split, source in data.items()} == {"train": 3, "val": 2, "test": 1}
    assert decode(data["val"][1], "text") == "validation 1" and data["val"].labels.tolist() == [0, 1]
    assert list(open_data(f"hf:{tmp_path / 'set'}", splits=["validation"], limit=1)["val"].keys) == list(
        data["val"].keys[:1]
    )
    with pytest.raises(SourceError, match=r"split train: no text column 'body'; its columns are: 'sentence'"):
        open_data(f"hf:{tmp_path / 'set'}", text_column="body")
    named = open_data([f"train=hf:{tmp_path / 'set'}"])
    assert list(named) == ["train"] and len(named["train"]) == 3


def test_the_same_text_twice(tmp_path):
    write_jsonl(tmp_path / "set/train.jsonl", [{"text": text} for text in ("same", "other", "same", "same")])
    keys = only(tmp_path / "set").keys
    assert [keys[2], keys[3]] == [f"{keys[0]}-2", f"{keys[0]}-3"] and len(set(keys)) == 4


def test_images_elsewhere_on_this_machine_are_not_read(tmp_path, offline):
    (tmp_path / "secret.png").write_bytes(picture(1))
    (tmp_path / "set").mkdir()
    (tmp_path / "set/inside.png").write_bytes(picture(2))
    outside = [str(tmp_path / "secret.png"), str(tmp_path / "set/../secret.png"), "/no/such.png"]
    paths = [*outside, str(tmp_path / "set/inside.png")]
    rows = [{"bytes": None, "path": path} for path in paths]
    features = {"image": {"_type": "Image"}}
    images = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    write_parquet(tmp_path / "set/train.parquet", {"image": images, "id": list("abcd")}, features=features)
    (tmp_path / "set/link.png").symlink_to(tmp_path / "secret.png")
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "set/train.parquet"))["train"]
    source = Tabular(hub_datasets.HubTable("x", loaded, tmp_path / "set"), columns=Columns())
    assert [sample.problem for sample in source.iter(0, 4)] == [Reason.UNREADABLE] * 3 + [Reason.VALID]
    assert source[3].encoded == picture(2) and source._table.read_file(str(tmp_path / "set/link.png")) is None


@pytest.mark.parametrize("place", ["../secret.jsonl", "{root}/secret.jsonl", "data/link.jsonl", "data/*.jsonl"])
def test_configs_do_not_lead_to_other_files(tmp_path, place):
    folder = tmp_path / "set/data"
    write_jsonl(tmp_path / "secret.jsonl", [{"text": "secret"}])
    write_jsonl(folder / "train.jsonl", [{"text": "own"}])
    readme = "---\nconfigs:\n- config_name: default\n  data_files: {}\n---\n"
    (tmp_path / "set/README.md").write_text(readme.format("data/train.jsonl"))
    assert only(tmp_path / "set")[0].encoded == b"own"
    (folder / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (tmp_path / "set/README.md").write_text(readme.format(place.format(root=tmp_path)))
    with pytest.raises(SourceError, match=r"names a file that is not its own: .*\.jsonl"):
        open_data(f"hf:{tmp_path / 'set'}")


@pytest.mark.parametrize(
    "place", ["/etc/passwd", "https://host/x.jsonl", "hf://datasets/a/bc@1/x", "zip://x::hf://datasets/a/b@1/x"]
)
def test_files_of_a_data_set_on_the_hub(place):
    files = ["hf://datasets/a/b@0123/train.parquet"]
    builder = SimpleNamespace(repo_id="a/b", config=SimpleNamespace(data_files={"train": files}))
    hub_datasets._check_files(HubName("a/b", None, None), builder)
    files.append(place)
    with pytest.raises(SourceError, match="not its own"):
        hub_datasets._check_files(HubName("a/b", None, None), builder)


def test_the_token_of_the_library_is_out_of_reach(tmp_path, monkeypatch):
    for name in ("hub", "datasets"):
        (tmp_path / "hf" / name).mkdir(parents=True)
        (tmp_path / "hf" / name / "x.png").write_bytes(picture(1))
    (tmp_path / "hf/token").write_text("hf_secret")
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf/datasets"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    table = hub_datasets.HubTable("x", datasets.Dataset.from_dict({"a": [1]}), None)
    assert table.read_file(str(tmp_path / "hf/token")) is None
    assert table.read_file(str(tmp_path / "hf/hub/x.png")) == table.read_file(str(tmp_path / "hf/datasets/x.png"))
    assert table.read_file(str(tmp_path / "hf/hub/x.png")) == picture(1)


def test_splits_with_dots(monkeypatch):
    names = ("train.clean.100", "validation", "dev", "2020")
    tables = {name: hub_datasets.HubTable(name, datasets.Dataset.from_dict({"text": [name]}), None) for name in names}
    monkeypatch.setattr("featurecache.sources.openings.open_tables", lambda _: tables)
    data = open_data("hf:a/b", splits=["train-clean-100", "split-2020"])
    assert [source[0].encoded for source in data.values()] == [b"2020", b"train.clean.100"]
    assert [(split, source[0].encoded) for split, source in open_data("hf:a/b", splits=["val", "val-2"]).items()] == [
        ("val", b"validation"),
        ("val-2", b"dev"),
    ]


def test_folders_are_taken_before_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set@v1:x").mkdir()
    assert parse_name("hf:./set@v1:x") == HubName(f"{tmp_path}/set@v1:x", None, None)
    (tmp_path / "set").mkdir()
    assert parse_name("hf:./set:english") == HubName(f"{tmp_path}/set", None, "english")
    with pytest.raises(SourceError, match=r"'hf:./set@v2': a local folder has no revisions"):
        parse_name("hf:./set@v2")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:imdb", ("imdb", None, None)),
        ("hf:org/name@v1.2", ("org/name", "v1.2", None)),
        ("hf:nyu-mll/glue:sst2", ("nyu-mll/glue", None, "sst2")),
        ("hf:org/name@main:en", ("org/name", "main", "en")),
    ],
)
def test_names(text, expected):
    assert parse_name(text) == HubName(*expected) and str(parse_name(text)) == text and location(text) == [text]


def test_location_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    assert location("hf:./set") == location("hf:set") == [f"hf:{tmp_path}/set"]
    assert location("train=hf:./set") == [f"train=hf:{tmp_path}/set"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:org/none", r"hf:org/none is not in the cache, and the hub cannot be reached.*hint: .*HF_HOME"),
        ("hf:/no/such/folder", "hf:/no/such/folder is not found"),
    ],
)
def test_what_is_not_there(name, message):
    with pytest.raises(SourceError, match=message) as error:
        open_data(name)
    assert "hf:./FOLDER" in error.value.hint


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError("Dataset 'a/b' doesn't exist on the Hub"), "hf:a/b is not found: .*hint: .*hf auth login"),
        (FileNotFoundError("Dataset 'a/b' is a gated dataset on the Hub."), "hf:a/b is gated .*accept the terms at"),
        (ValueError("Config name is missing.\nPlease pick one: ['x', 'y']"), r"one: \['x', 'y'\] .*hf:NAME:CONFIG"),
        (ValueError("no gated column"), "hf:a/b cannot be opened: no gated column"),
        (RuntimeError("Dataset scripts are no longer supported"), "scripts are no longer supported"),
        (ConnectionError("Couldn't reach the Hub"), "the hub cannot be reached"),
        (ZeroDivisionError(), "cannot be opened: ZeroDivisionError"),
    ],
)
def test_what_the_library_raises(monkeypatch, error, message):
    def refuse(*_args, **_options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(SourceError, match=message):
        open_data("hf:a/b")


def test_no_code_of_a_data_set_is_run(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *names, **options: given.update(options) or 1 / 0)
    with pytest.raises(SourceError):
        open_tables(parse_name("hf:a/b@main"))
    assert given == {"revision": "main"}  # and not trust_remote_code
    monkeypatch.undo()
    (tmp_path / "set").mkdir()
    (tmp_path / "set/set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(SourceError):
        open_data(f"hf:{tmp_path / 'set'}")
    assert not (tmp_path / "ran").exists()


def test_the_library_is_quiet(tmp_path, capfd):
    save_images(tmp_path / "set")
    capfd.readouterr()
    open_data(f"hf:{tmp_path / 'set'}")
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()


def test_a_folder_in_the_cache_is_found_offline(tmp_path, offline):
    save_images(tmp_path / "set")
    first = open_data(f"hf:{tmp_path / 'set'}")["train"]
    assert any(offline.rglob("*.arrow")) and first[0].encoded == picture(0)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UsageError, match=r"datasets, which is not installed  \(hint: pip install 'featurecache\[hub\]'"
    ):
        open_data("hf:imdb")
