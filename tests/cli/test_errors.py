"""Wrong uses: each ends with its exit code, one message that says what is wrong, and never with a traceback."""

import errno
import os
import shutil

import pytest

from pipelines import cli

EXTRACT = "extract --teacher random --data synthetic-text:64 --workers 0 --out {new}"
EXTRACT_LOGITS = "extract --teacher random --model-kwargs classes=4"
TRAIN = "train-student --cache {cache} --student bert:1x16 --steps 1 --workers 0 --out {new}"

REFUSED = [
    # the command line itself
    ("extrat", 2, ["No such command 'extrat'", "Did you mean 'extract'"]),
    ("train-studnet", 2, ["Did you mean 'train-student'"]),
    ("extract", 2, ["Missing option '--teacher'"]),
    ("extract --teacher random", 2, ["Missing option '--data'"]),
    ("extract --teacher", 2, ["'--teacher' requires an argument"]),
    ("extract --techer random", 2, ["No such option: --techer", "--teacher"]),
    (f"{EXTRACT} --batch-size 0", 2, ["--batch-size", "greater than or equal to 1"]),
    (f"{EXTRACT} --workers many", 2, ["--workers", "valid integer"]),
    (f"{EXTRACT} --amp half", 2, ["--amp", "'float32', 'bfloat16', 'float16'"]),
    (f"{TRAIN} --missing maybe", 2, ["--missing", "'refuse', 'skip'"]),
    ("info", 2, ["Missing argument 'CACHE'"]),
    ("info {cache} more", 2, ["unexpected extra argument", "more"]),
    ("list techers", 2, ["'techers'", "did you mean 'teachers'?"]),
    # names
    ("extract --teacher vit_bse --data synthetic:8 --out {new}", 2, ["'vit_bse'", "did you mean 'vit_base'?"]),
    ("extract --teacher random --data synthetc --out {new}", 2, ["'synthetc'", "did you mean 'synthetic'?"]),
    (f"{EXTRACT} --split dev", 2, ["no split", "train, test"]),
    (f"{EXTRACT} --outputs logits", 2, ["'logits'", "embedding"]),
    (f"{EXTRACT} --encode embedding=float17", 2, ["'float17'", "float16"]),
    (f"{EXTRACT} --encode embedding", 2, ["has no '='", "NAME=VALUE"]),
    (f"{EXTRACT} --encode embedding=float16 --encode embedding=float32", 2, ["'embedding' twice"]),
    (f"{EXTRACT} --temperatures 1;2", 2, ["'1;2' is not a list of numbers"]),
    (f"{EXTRACT} --img-size 64", 2, ["--img-size cannot be used with random"]),
    (f"{EXTRACT} --device cudaa", 2, ["--device cudaa", "cpu always works"]),
    (f"{TRAIN} --student mobilenetv3_smal_100", 2, ["did you mean 'mobilenetv3_small_100'?"]),
    (f"{TRAIN} --student resnet18", 2, ["takes image inputs, but the data is text", "bert:"]),
    (f"{TRAIN} --student bert:wide", 2, ["'bert:wide'", "bert:LAYERSxWIDTH"]),
    (f"{TRAIN} --objective kll", 2, ["'kll'", "did you mean 'kl'?"]),
    (f"{TRAIN} --objective kl:much", 2, ["the weight of kl is 'much'"]),
    (f"{TRAIN} --split trian", 2, ["'trian'", "did you mean 'train'?"]),
    (f"{TRAIN} --max-invalid few", 2, ["--max-invalid 'few'", "1% or 0.01"]),
    (f"{TRAIN} --device cudaa", 2, ["--device cudaa"]),
    ("evaluate {trained} --split tst", 2, ["'tst'", "did you mean 'test'?"]),
    ("probe --cache {cache} --output logit", 2, ["'logit'", "did you mean 'logits'?"]),
    ("fit-teacher --model timm:resnet18 --data synthetic-text:8 --out {new}", 2, ["cannot fit", "on texts"]),
    # places
    ("info {new}", 2, ["there is no cache at", "featurecache extract"]),
    ("status {new}", 2, ["there is no cache at"]),
    ("train-student --cache {new}", 2, ["there is no cache at"]),
    ("evaluate {new}", 2, ["is not a run"]),
    ("evaluate {trained} --cache {new}", 2, ["there is no cache at"]),
    ("export {trained} --to tim", 2, ["no export is called 'tim'", "did you mean 'timm'?"]),
    ("export {trained} --to timm", 2, ["timm has image models only", "--to transformers"]),
    ("export {trained} --to", 2, ["'--to' requires an argument"]),
    ("export {trained} --out {full}", 2, ["is not empty", "--out"]),
    ("export {trained} --out {file}", 2, ["{file} is not empty"]),
    ("export {trained} --out {file}/x", 2, ["{file} is a file"]),
    ("export {new}", 2, ["is not a run", "featurecache train-student"]),
    ("export {full}", 2, ["is not a run"]),
    ("extract --teacher random --data {new} --out {new}", 2, ["no data set at"]),
    ("extract --teacher random --data synthetic-text:8 --workers 0 --out {file}", 2, ["is a file", "--out"]),
    ("extract --teacher random --data synthetic-text:8 --workers 0 --out {file}/x", 2, ["cannot use", "{file}"]),
    ("extract --teacher random --data synthetic-text:8 --workers 0 --out {full}", 2, ["not a cache and not empty"]),
    ("train-student --cache {cache} --student bert:1x16 --steps 1 --workers 0 --out {file}", 2, ["{file}"]),
    ("train-student --cache {cache} --student bert:1x16 --steps 1 --workers 0 --out {full}", 2, ["not a run"]),
    ("train-student --cache {cache} --student bert:1x16 --steps 1 --workers 0 --out {trained}", 2, ["--resume"]),
    (f"{TRAIN} --data {{new}}", 2, ["no data set at"]),
    (f"{TRAIN} --data synthetic-text:70", 2, ["6 of 70 samples are not in the cache", "--missing skip"]),
    # class maps
    (f"{TRAIN} --class-map {{new}}", 2, ["cannot read", "data class"]),
    (f"{TRAIN} --class-map {{file}}", 2, ["cannot read", "{file}"]),
    (f"{TRAIN} --class-map {{list}}", 2, ["is not a JSON object"]),
    (f"{TRAIN} --class-map {{map}}", 2, ["leaves out 'class-0'"]),
    # something else than what is there
    (
        f"{EXTRACT_LOGITS} --model-kwargs seed=1 --data synthetic-text:64 --out {{cache}}",
        4,
        ["already holds train/random-text", "teacher.weights_sha256", "--out"],
    ),
    (
        f"{EXTRACT_LOGITS} --data synthetic-text:32 --out {{cache}}",
        4,
        ["already holds train/rows", "rows: it has 64, this run has 32"],
    ),
    (
        "train-student --cache {cache} --student bert:1x16 --objective mse --steps 3 --resume --out {trained}",
        4,
        ["was begun with other settings", "steps: it has 2, this run has 3", "objective"],
    ),
]


@pytest.fixture
def places(cache, trained, tmp_path):
    """What the table's words in braces stand for."""
    made = {"cache": cache, "trained": trained, "new": tmp_path / "new"}
    for name, text in {"file": "text", "list": "[1]", "map": '{"a": "b"}'}.items():
        made[name] = tmp_path / name
        made[name].write_text(text)
    made["full"] = tmp_path / "full"
    made["full"].mkdir()
    (made["full"] / "photo.jpg").write_text("mine")
    return made


@pytest.mark.parametrize(("command", "code", "says"), REFUSED, ids=[command for command, _, _ in REFUSED])
def test_refused(run, places, command, code, says):
    before = places["cache"] / "cache.json", (places["cache"] / "cache.json").read_bytes()
    result = run(*(word.format(**places) for word in command.split()))
    assert result.code == code, result.err
    assert result.out == ""
    for text in says:
        assert text.format(**places) in result.err
    assert result.err.lower().count("error: ") == 1 and "Traceback" not in result.err
    assert "`fc " not in result.err  # a shell may take it for its own
    assert before[0].read_bytes() == before[1]
    assert (places["full"] / "photo.jpg").read_text() == "mine"


@pytest.fixture
def copy(cache, tmp_path):
    """A cache to damage."""
    return shutil.copytree(cache, tmp_path / "copy")


def test_cache_that_is_not_sealed(run, copy, trained):
    shutil.rmtree(copy / "seals")
    for command in (
        ["train-student", "--cache", copy],
        ["probe", "--cache", copy],
        ["evaluate", trained, "--cache", copy],
    ):
        result = run(*command)
        assert result.code == 3 and "is not sealed" in result.err and "featurecache extract" in result.err
    status = run("status", copy)
    assert status.code == 3 and "sealed     no" in status.out and "featurecache extract" in status.err


def change(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.chmod(0o644)
    path.write_bytes(data)


def test_damaged_shard(run, copy, tmp_path):
    change(next(path for path in (copy / "train/random-text/embedding/c").rglob("*") if path.is_file()), 1000)
    command = f"train-student --cache {copy} --student bert:1x16 --objective align-uniform --steps 1 --workers 0 --out"
    result = run(*command.split(), tmp_path / "run")
    assert result.code == 5 and "train/random-text/embedding" in result.err


@pytest.mark.parametrize("name", ["cache.json", "seals/0.json", "train/random-text/part.json"])
@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"[]", b""], ids=["cut", "binary", "list", "empty"])
def test_damaged_records(run, copy, name, text):
    (copy / name).unlink()
    (copy / name).write_bytes(text)
    result = run("info", copy)
    assert result.code == 5 and name.rpartition("/")[2] in result.err


def test_temperature_that_sparse_logits_do_not_have(run, tmp_path):
    cache = tmp_path / "sparse"
    made = (
        "extract --teacher random --model-kwargs classes=4 --encode logits=topk:2 --data synthetic-text:64 --workers 0"
    )
    assert run(*made.split(), "--out", cache).code == 0
    train = f"train-student --cache {cache} --student bert:1x16 --objective kl(temperature=3) --steps 1 --workers 0"
    result = run(*train.split(), "--out", tmp_path / "run")
    assert result.code == 2
    assert "temperature 3" in result.err and "1, 2, 4" in result.err and "--temperatures" in result.err


def test_objective_without_its_outputs(run, tmp_path):
    cache = tmp_path / "embeddings"
    assert run(*EXTRACT.format(new=cache).split()).code == 0
    result = run(*TRAIN.format(cache=cache, new=tmp_path / "run").split(), "--objective", "kl")
    assert result.code == 2 and "needs logits" in result.err and "featurecache probe" in result.err


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_directory_that_may_not_be_written(run, places):
    places["full"].chmod(0o500)
    result = run(*EXTRACT.format(new=places["full"] / "cache").split())
    assert result.code == 2 and "Permission denied" in result.err and str(places["full"]) in result.err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), 2, "cannot use /data/x: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "/data/x"), 2, "cannot use /data/x: Read-only file system"),
        (OSError(errno.ENOSPC, "No space left on device"), 6, "cannot write: No space left on device"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/data/x"), 6, "cannot write: Disk quota exceeded"),
    ],
    ids=["permission", "read-only", "full", "quota"],
)
def test_what_the_system_refuses(run, monkeypatch, error, code, says):
    monkeypatch.setattr(cli, "app", lambda **_: raise_(error))
    result = run("info", "x")
    assert result.code == code and result.err.startswith(f"error: {says}\n  hint: ")


@pytest.mark.parametrize("error", [ValueError("a defect"), ConnectionResetError(errno.ECONNRESET, "reset")])
def test_what_nobody_expected_keeps_its_traceback(monkeypatch, error):
    monkeypatch.setattr(cli, "app", lambda **_: raise_(error))
    with pytest.raises(type(error)):
        cli.main()


def raise_(error):
    raise error
