"""`featurecache verify`: exit codes, what is said, and the teacher run again."""

import json
import shutil
import sys

import pytest

from pipelines.events import finish
from pipelines.extract import extract_cache


@pytest.fixture
def copy(cache, tmp_path):
    """The small cache, to be damaged."""
    root = shutil.copytree(cache, tmp_path / "copy")
    for path in root.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
    return root


def damage(path, at=0):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_good_cache(run, cache):
    done = run("verify", cache)
    assert done.code == 0 and "problems  0" in done.out
    facts = json.loads(run("verify", cache, "--json").out)
    sealed = {entry["key"]: entry["bytes"] for entry in json.loads((cache / "seals/0.json").read_bytes())["objects"]}
    assert facts["ok"] is True and facts["findings"] == []
    assert facts["bytes"] == sum(sealed.values())
    assert facts["digest"] == json.loads(run("info", cache, "--json").out)["digest"]


def test_a_damaged_cache(run, copy):
    key = "train/random-text/embedding/c/0/0/0"
    damage(copy / key)
    done = run("verify", copy)
    assert done.code == 5 and "problems  1" in done.out
    assert f"  {key} is not what was committed: inner chunk 0 has another crc32c" in done.err
    facts = json.loads(run("verify", copy, "--json").out)
    assert facts["ok"] is False and facts["problems"] == 1 and facts["findings"][0].startswith(key)


def test_many_problems_are_counted_and_twenty_are_shown(run, copy):
    for number in range(30):
        (copy / f"stranger-{number:02d}.txt").write_text("")
    done = run("verify", copy)
    assert done.code == 5 and "problems  30" in done.out
    assert done.err.count("nothing lists it") == 20 and "  and 10 more" in done.err


def test_a_sample(run, copy):
    payloads = [path for path in copy.rglob("*") if path.is_file() and "c" in path.relative_to(copy).parts]
    for path in payloads:
        damage(path)
    done = run("verify", copy, "--sample", "0%", "--json")
    assert done.code == 0 and "reading 0 of the payloads" in done.err
    assert 0 < json.loads(run("verify", copy, "--sample", "40%", "--json").out)["problems"] < len(payloads)
    damage(copy / "train/random-text/part.json", at=30)
    assert run("verify", copy, "--sample", "0%").code == 5


@pytest.mark.parametrize("gone", ["cache.json", "seals/0.json", "train/random-text/part.json", "zarr.json"])
def test_what_is_gone(run, copy, gone):
    (copy / gone).unlink()
    done = run("verify", copy)
    assert done.code == 5 and "error" not in done.err


def test_wrong_requests(run, tmp_path, cache):
    assert run("verify", tmp_path / "nothing").code == 2
    assert run("verify", tmp_path).code == 2
    assert run("verify", cache, "--sample", "2").code == 2
    assert run("verify", cache, "--sample", "half").code == 2
    assert run("verify", cache, "--recompute", "-1").code == 2


def test_the_teacher_still_says_the_same(run, cache):
    done = run("verify", cache, "--recompute", "10", "--device", "cpu", "--json")
    assert done.code == 0
    found = json.loads(done.out)["recomputed"]
    assert set(found) == {"train", "test"} and set(found["train"]) == {"embedding", "logits"}
    assert found["train"]["embedding"]["rows"] == 10 and found["train"]["embedding"]["cosine"] > 0.999999
    assert found["train"]["logits"]["agreement"] == 1.0 and found["train"]["logits"]["kl"] < 1e-5


def test_another_teacher(run, cache):
    done = run("verify", cache, "--recompute", "4", "--model-kwargs", "classes=4", "--model-kwargs", "seed=1")
    assert done.code == 4 and "made by another teacher" in done.err and "weights_sha256" in done.err


def test_a_teacher_of_another_kind(run, cache, tmp_path, monkeypatch):
    (tmp_path / "a_teacher_of_mine.py").write_text(
        "import torch\n"
        "from featurecache.inputs import TextInput\n"
        "from featurecache.teachers.random_projection import byte_tokenizer_json\n"
        "def make():\n"
        "    def network(ids, mask):\n"
        "        return torch.zeros(len(ids), 2)\n"
        "    network.input = TextInput(byte_tokenizer_json())\n"
        "    return network\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    done = run("verify", cache, "--recompute", "4", "--teacher", "torch:a_teacher_of_mine:make", "--device", "cpu")
    assert done.code == 4 and "made by another teacher" in done.err and "library" in done.err
    assert run("verify", cache, "--recompute", "4", "--teacher", "vit_smal").code == 2


def test_a_name_in_a_cache_runs_no_code(run, tmp_path, monkeypatch):
    """A module of one's own is imported where the user names it, and never because a cache does."""
    (tmp_path / "with_a_trace.py").write_text(
        "import pathlib, torch\n"
        "pathlib.Path('trace').touch()\n"
        "network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    options = {"img_size": 16, "workers": 0, "device": "cpu"}
    finish(extract_cache(teacher="torch:with_a_trace:network", data="synthetic:20", out="cache", **options))
    (tmp_path / "trace").unlink()
    monkeypatch.delitem(sys.modules, "with_a_trace")
    done = run("verify", "cache", "--recompute", "4", "--device", "cpu")
    assert done.code == 2 and "--teacher" in done.err and not (tmp_path / "trace").exists()
    assert "with_a_trace" not in sys.modules
    named = ["--teacher", "torch:with_a_trace:network"]
    assert run("verify", "cache", "--recompute", "4", "--device", "cpu", *named).code == 0


def test_other_data(run, cache):
    done = run("verify", cache, "--recompute", "4", "--data", "synthetic-text:65")
    assert done.code == 4 and "are not those the cache lists" in done.err


def test_stored_numbers_that_the_teacher_never_gave(run, tmp_path, monkeypatch):
    """Extracted with a teacher whose outputs are turned round: every hash is right, and the values are not."""
    from featurecache.teachers.random_projection import RandomProjection

    real = RandomProjection.__call__

    def turned(self, batch):
        return {name: -value for name, value in real(self, batch).items()}

    monkeypatch.setattr(RandomProjection, "__call__", turned)
    options = {"model_kwargs": {"classes": 4}, "workers": 0, "device": "cpu", "encode": {"logits": "topk:2"}}
    finish(extract_cache(teacher="random", data="synthetic-text:64", out=tmp_path / "cache", **options))
    monkeypatch.undo()
    done = run("verify", tmp_path / "cache", "--recompute", "20", "--device", "cpu", "--json")
    assert done.code == 5
    found = json.loads(done.out)["recomputed"]["train"]
    assert found["embedding"]["cosine"] < -0.999 and not found["embedding"]["ok"]
    assert found["logits"]["agreement"] < 0.5 and not found["logits"]["ok"]


def test_a_cache_that_is_not_finished(run, copy):
    shutil.rmtree(copy / "seals")
    shutil.rmtree(copy / "test" / "random-text")
    done = run("verify", copy)
    assert done.code == 0 and "complete  no" in done.out and "not finished: what is there is sound" in done.err
    assert json.loads(run("status", copy, "--json").out)["not_begun"] == ["test"]


def test_what_desktops_leave_about(run, copy):
    for name in (".DS_Store", "train/._x", "train/random-text/.nfs00ab", "Thumbs.db"):
        (copy / name).write_text("x")
    assert run("verify", copy).code == 0
    (copy / "train/notes.txt").write_text("x")
    done = run("verify", copy)
    assert done.code == 5 and "train/notes.txt is in the cache, but nothing lists it" in done.err


def test_what_cannot_be_recomputed_is_said_before_hours_of_reading(run, cache, monkeypatch):
    monkeypatch.setattr("featurecache.store.verify.verify", lambda *_, **__: pytest.fail("it was read"))
    assert run("verify", cache, "--recompute", "4", "--data", "synthetic-text:65").code == 4
    assert run("verify", cache, "--recompute", "4", "--teacher", "vit_smal").code == 2


def test_a_shard_repaired_as_the_guarantees_say(run, tmp_path):
    """docs/guarantees.md, After exit code 5."""
    cache = tmp_path / "cache"
    command = ["extract", "--teacher", "random", "--data", "synthetic-text:2000", "--split", "train", "--out", cache]
    assert run(*command, "--workers", "0", "--device", "cpu").code == 0
    digest = json.loads(run("info", cache, "--json").out)["digest"]
    payload = cache / "train/random-text/embedding/c/0/1/0"
    payload.chmod(0o644)
    damage(payload)
    done = run("verify", cache)
    assert done.code == 5 and "docs/guarantees.md" in done.err
    payload.unlink()
    (cache / "train/random-text/_commits/00000-0000001.json").unlink()
    assert run(*command, "--workers", "0", "--device", "cpu").code == 0
    assert run("verify", cache).code == 0 and json.loads(run("info", cache, "--json").out)["digest"] == digest


def test_sampled_logits_are_recomputed_by_what_is_not_random_in_them(run, tmp_path):
    """Draws differ from one set of weights to another, as they may; the entropy of the probabilities must not."""
    options = {"model_kwargs": {"classes": 4}, "workers": 0, "device": "cpu", "encode": {"logits": "sampled:5@1"}}
    finish(extract_cache(teacher="random", data="synthetic-text:64", out=tmp_path / "same", **options))
    assert run("verify", tmp_path / "same", "--recompute", "20", "--device", "cpu").code == 0
    from featurecache.teachers.random_projection import RandomProjection

    real = RandomProjection.__call__

    def doubled(self, batch):
        return {name: 2 * value for name, value in real(self, batch).items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RandomProjection, "__call__", doubled)
        finish(extract_cache(teacher="random", data="synthetic-text:64", out=tmp_path / "other", **options))
    done = run("verify", tmp_path / "other", "--recompute", "20", "--device", "cpu", "--json")
    assert done.code == 5
    found = json.loads(done.out)["recomputed"]["train"]["logits"]
    assert found["entropy_error"] > 0.01 and not found["ok"]
