"""Webdataset tars on a web server, and ImageNet on a hub of the test's own."""

import fcntl
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

from featurecache.errors import SourceError, UsageError
from featurecache.fingerprint import content_hash
from featurecache.inputs import ImageInput
from featurecache.loader import load
from featurecache.sources import RemoteTars, TarShards, hub_repository, location, open_data
from featurecache.sources import downloads as module
from featurecache.types import Reason
from tests.contracts.source_contract import SourceContract
from tests.sources.make_data import picture, write_tar
from tests.sources.web import serve

MEMBERS = {
    "x-000000.tar": {"a.cls": b"cat", "a.png": picture(0), "b.json": b"{}", "b.png": picture(1), "b.cls": b"dog"},
    "x-000001.tar": {"a.png": picture(2), "lost.cls": b"dog", "n/c.d.PNG": picture(3), "n/e.JPG": picture(4, "JPEG")},
}


def put(web, folder, members=MEMBERS, prefix="/data/"):
    """Tars on the server, and the same ones on disk."""
    for name, content in members.items():
        web.files[f"{prefix}{name}"] = write_tar(folder / name, content).read_bytes()
    return [folder / name for name in members]


def held(folder, suffix="*.tar"):
    return sorted(path.stat().st_size for path in folder.glob(suffix))


@pytest.fixture
def spec(web):
    return f"{web.address}/data/x-{{000000..000001}}.tar"


class TestRemoteTars(SourceContract):
    valid = 4

    @pytest.fixture(autouse=True)
    def _serve(self):
        with serve() as self.web:
            yield

    def make_source(self, tmp_path):
        put(self.web, tmp_path)
        folder = tmp_path / "cache"
        folder.mkdir()
        return RemoteTars([f"{self.web.address}/data/{name}" for name in reversed(MEMBERS)], folder=folder)


def test_the_same_as_local_ones(web, tmp_path, spec):
    local = TarShards(put(web, tmp_path))
    remote = open_data(spec)["train"]
    assert isinstance(remote, RemoteTars) and location(spec) == [spec]
    assert location(f"{spec}?signature=secret") == [spec]  # it would be kept in a cache that others get
    assert list(remote.iter(0, 6)) == list(local.iter(0, 6)) and remote.keys == list(local.keys)
    assert remote.fingerprint() == local.fingerprint() and remote.class_names == local.class_names
    assert remote.labels.tolist() == local.labels.tolist()
    assert [sample.problem for sample in remote.iter(2, 4)] == [Reason.VALID, Reason.UNREADABLE]


def test_each_tar_is_fetched_once(web, tmp_path, spec):
    put(web, tmp_path)
    for _ in range(2):
        source = open_data(spec)["train"]
        list(source.iter(0, 6))
    assert web.paths() == ["/data/x-000000.tar", "/data/x-000001.tar"]


def test_a_listing_outlives_its_tar(web, tmp_path, spec, downloads):
    put(web, tmp_path)
    open_data(spec)
    for tar in downloads.glob("*.tar"):
        tar.unlink()
    web.asked.clear()
    source = open_data(spec)["train"]
    assert len(source) == 6 and web.asked == []
    assert source[5].encoded == picture(4, "JPEG") and web.paths() == ["/data/x-000001.tar"]


@pytest.mark.parametrize("index", ["", "[]", '{"format": 2}', '{"format": 1, "samples": [["a", [0, -1], null, null]]}'])
def test_an_index_that_makes_no_sense_is_made_again(web, tmp_path, spec, downloads, index):
    put(web, tmp_path)
    fingerprint = open_data(spec)["train"].fingerprint()
    web.asked.clear()
    for path in downloads.glob("*.json"):
        path.write_text(index)
    assert open_data(spec)["train"].fingerprint() == fingerprint and web.asked == []


def test_an_interrupted_fetch_goes_on(web, tmp_path, spec):
    expected = TarShards(put(web, tmp_path)).fingerprint()
    web.drops["/data/x-000001.tar"] = [1000, 0, 0, 0, 0]
    with pytest.raises(SourceError, match="goes on where it stopped"):
        open_data(spec)
    web.asked.clear()
    web.drops.clear()
    assert open_data(spec)["train"].fingerprint() == expected
    assert [(path, headers["Range"]) for path, headers in web.asked] == [("/data/x-000001.tar", "bytes=1000-")]


def test_a_tar_that_changes_is_told(web, tmp_path, spec, downloads):
    put(web, tmp_path)
    source = open_data(spec)["train"]
    for tar in downloads.glob("*.tar"):
        tar.unlink()
    web.files["/data/x-000000.tar"] = write_tar(tmp_path / "y.tar", {"a.png": picture(9)}).read_bytes()
    with pytest.raises(SourceError, match=r"x-000000.tar has changed since its samples were listed"):
        pickle.loads(pickle.dumps(source))[0]  # another process, which has not opened it
    assert open_data(spec)["train"].keys[:2] == ["x-000000/a", "x-000001/a"]


def test_a_tar_that_another_process_fetched_again_is_told(web, tmp_path, spec, downloads):
    put(web, tmp_path)
    source = open_data(spec)["train"]
    copy = pickle.dumps(source)
    for tar in downloads.glob("*.tar"):
        tar.unlink()
    web.files["/data/x-000000.tar"] = write_tar(tmp_path / "y.tar", {"a.png": picture(9)}).read_bytes()
    with pytest.raises(SourceError, match="has changed"):
        pickle.loads(copy)[0]
    for path in downloads.glob("*.json"):
        path.unlink()
    for _ in range(2):  # the new tar is here now, with a listing of its own: nothing is fetched
        with pytest.raises(SourceError, match=r"x-000000.tar has changed since its samples were listed"):
            pickle.loads(copy)[0]
    assert open_data(spec)["train"][0].encoded == picture(9)


def test_a_copy_that_was_cut_off_is_told(web, tmp_path, spec, downloads):
    put(web, tmp_path)
    source = pickle.loads(pickle.dumps(open_data(spec)["train"]))
    for tar in downloads.glob("*.tar"):
        os.truncate(tar, 100)
    with pytest.raises(SourceError, match=r"x-000000.tar is shorter than when it was listed.*remove .*\.tar"):
        source[0]


def test_a_folder_that_cannot_be_locked(web, tmp_path, spec, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    put(web, tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(SourceError, match="cannot be used: .*No locks available.*FC_DATA_CACHE"):
        RemoteTars(f"{web.address}/data/x-000000.tar")


def test_parts_that_nobody_goes_on_with_make_room(web, tmp_path, monkeypatch, downloads):
    put(web, tmp_path, {f"x-{n}.tar": {"a.txt": b"%d" % n * 10_000} for n in range(2)})
    web.drops["/data/x-0.tar"] = [10_000, 0, 0, 0, 0]
    with pytest.raises(SourceError):
        RemoteTars(f"{web.address}/data/x-0.tar")
    assert held(downloads, "*.part") == [10_000]
    monkeypatch.setenv("FC_DATA_CACHE_GB", str(25_000 / 1e9))
    with module._fetching(next(downloads.glob("*.part")).with_suffix("")):
        module._make_room(downloads, 20_480)
        assert held(downloads, "*.part") == [10_000]  # somebody is at it
    assert len(RemoteTars(f"{web.address}/data/x-1.tar")) == 1 and not held(downloads, "*.part")
    web.drops.clear()
    assert RemoteTars(f"{web.address}/data/x-0.tar")[0].encoded == b"0" * 10_000


def test_a_damaged_tar_is_not_kept(web, tmp_path, spec, downloads):
    put(web, tmp_path)
    whole = web.files["/data/x-000001.tar"]
    web.files["/data/x-000001.tar"] = whole[:-9000]
    with pytest.raises(SourceError, match=r"127.*/data/x-000001.tar is no whole tar"):
        open_data(spec)
    assert len(held(downloads)) == 1 and not held(downloads, "*.part")
    web.files["/data/x-000001.tar"] = whole
    assert len(open_data(spec)["train"]) == 6


def test_room_is_made_by_removing_the_oldest(web, tmp_path, monkeypatch, downloads):
    members = {f"x-{n}.tar": {"a.txt": b"%d" % n * (10_000 * (n + 1))} for n in range(6)}
    put(web, tmp_path, members)
    monkeypatch.setenv("FC_DATA_CACHE_GB", str(150_000 / 1e9))
    monkeypatch.setattr("featurecache.sources.downloads._MAX_HELD", 1)
    source = open_data(f"{web.address}/data/x-{{0..5}}.tar")["train"]
    assert sum(held(downloads)) <= 150_000 and len(web.asked) == 6
    web.asked.clear()
    assert source[5].encoded == b"5" * 60_000 and web.asked == []  # the newest is still here
    assert source[0].encoded == b"0" * 10_000 and web.paths() == ["/data/x-0.tar"]
    assert sum(held(downloads)) <= 150_000


def test_a_tar_that_is_read_is_not_removed(web, tmp_path, monkeypatch, downloads):
    put(web, tmp_path, {f"x-{n}.tar": {"a.txt": b"%d" % n * 10_000} for n in range(2)})
    monkeypatch.setenv("FC_DATA_CACHE_GB", "0")
    first, second = (open_data(f"{web.address}/data/x-{n}.tar")["train"] for n in range(2))
    assert first[0].encoded == b"0" * 10_000 and len(held(downloads)) == 2  # both are open
    assert (second[0].encoded, len(web.asked)) == (b"1" * 10_000, 2)
    del first, second
    put(web, tmp_path, {"x-2.tar": {"a.txt": b"2" * 10_000}})
    assert len(open_data(f"{web.address}/data/x-2.tar")["train"]) == 1 and len(held(downloads)) == 1


def test_half_of_the_disk_is_left(monkeypatch, downloads):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 300, 700))
    assert module._limit(downloads, 100) == 400
    monkeypatch.setenv("FC_DATA_CACHE_GB", "2.5")
    assert module._limit(downloads, 100) == 2.5e9
    for given in ("much", "nan", "-1", "inf"):
        monkeypatch.setenv("FC_DATA_CACHE_GB", given)
        with pytest.raises(SourceError, match=f"'{given}', which is no number of gigabytes"):
            module._limit(downloads, 100)


def _read(url, answers):
    answers.put(RemoteTars(url)[0].encoded)


def test_processes_share_one_fetch(web, tmp_path):
    put(web, tmp_path, {"x.tar": {"a.txt": b"words"}})
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=_read, args=(f"{web.address}/data/x.tar", answers)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60) for _ in processes] == [b"words"] * 4
    for process in processes:
        process.join()
    assert web.paths() == ["/data/x.tar"]


def test_a_tar_is_locked_while_it_is_read(web, tmp_path, downloads):
    put(web, tmp_path, {"x.tar": {"a.txt": b"words"}})
    source = RemoteTars(f"{web.address}/data/x.tar")
    (tar,) = downloads.glob("*.tar")
    with tar.open("rb") as stream:
        with pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        del source
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_folder_that_is_emptied_by_hand(web, tmp_path, downloads):
    put(web, tmp_path, {"x.tar": {"a.txt": b"words"}})
    first = RemoteTars(f"{web.address}/data/x.tar")
    shutil.rmtree(downloads)
    downloads.mkdir()
    second = RemoteTars(f"{web.address}/data/x.tar")
    assert first[0].encoded == second[0].encoded == b"words" and len(web.asked) == 2


def test_loader_processes(web, tmp_path):
    put(web, tmp_path, {f"x-{n}.tar": {f"{k}.png": picture(10 * n + k) for k in range(4)} for n in range(4)})
    source = open_data(f"{web.address}/data/x-{{0..3}}.tar")["train"]
    network_input = ImageInput(size=8)
    batches = [np.arange(start, start + 4) for start in (12, 0, 8, 4)]
    loaded = list(load(source, network_input, batches, workers=2))
    expected = [[content_hash(picture(10 * (batch[0] // 4) + k)) for k in range(4)] for batch in batches]
    assert [batch.content_hashes.tolist() for batch in loaded] == expected


def test_splits_are_told_from_names(web, tmp_path):
    put(web, tmp_path, {"s-train-0.tar": {"a.png": picture(0), "a.cls": b"dog"}, "s-val-0.tar": {"b.png": picture(1)}})
    data = open_data(f"{web.address}/data/s-{{train,val}}-0.tar")
    assert {split: source.keys[0] for split, source in data.items()} == {"train": "s-train-0/a", "val": "s-val-0/b"}
    assert data["val"].class_names == ("dog",)
    named = open_data([f"test={web.address}/data/s-val-0.tar", f"train={tmp_path / 's-train-0.tar'}"])
    assert list(named) == ["train", "test"] and isinstance(named["train"], TarShards)
    assert list(open_data([f"{web.address}/data/s-{split}-0.tar" for split in ("train", "val")])) == ["train", "val"]


def test_a_split_that_is_not_wanted_is_not_fetched(web, tmp_path):
    put(web, tmp_path, {"s-train-0.tar": {"a.png": picture(0), "a.cls": b"dog"}, "s-val-0.tar": {"b.png": picture(1)}})
    spec = f"{web.address}/data/s-{{train,val}}-0.tar"
    assert list(open_data(spec, splits=["val"])) == ["val"] and web.paths() == ["/data/s-val-0.tar"]
    assert list(open_data(spec)) == ["train", "val"]
    assert open_data(spec, splits=["val"])["val"].class_names == ("dog",)  # train is listed by now


def test_named_labels_are_not_counted_without_the_first_split(web, tmp_path):
    train, val = {"a.png": picture(0), "a.cls": b"ant", "b.png": picture(2), "b.cls": b"dog"}, {"b.png": picture(1)}
    put(web, tmp_path, {"s-train-0.tar": train, "s-val-0.tar": {**val, "b.cls": b"dog"}})
    spec = f"{web.address}/data/s-{{train,val}}-0.tar"
    with pytest.raises(SourceError, match=r"labels of val are names, and train, .*never fetched.*val=ADDRESS") as error:
        open_data(spec, splits=["val"])
    assert web.paths() == ["/data/s-val-0.tar"] and "open train too" in error.value.hint
    assert open_data(f"val={web.address}/data/s-val-0.tar")["val"].class_names == ("dog",)
    open_data(spec)
    assert open_data(spec, splits=["val"])["val"].labels.tolist() == [1]


def test_a_missing_tar_is_named(web, tmp_path):
    put(web, tmp_path)
    with pytest.raises(SourceError, match=r"nothing at .*/data/x-000002.tar \(status 404\).*numbers of a pattern"):
        open_data(f"{web.address}/data/x-{{000000..000002}}.tar")


def test_a_folder_that_cannot_be_made(monkeypatch, tmp_path, web):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FC_DATA_CACHE", str(tmp_path / "file/data"))
    with pytest.raises(UsageError, match="cannot make the folder for downloads.*FC_DATA_CACHE"):
        open_data(f"{web.address}/x.tar")


def test_where_downloads_are(monkeypatch, tmp_path):
    monkeypatch.delenv("FC_DATA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert module.data_cache() == tmp_path / "featurecache/data"


SHA = "0123456789abcdef0123456789abcdef01234567"
RESOLVE = f"/datasets/{hub_repository.IMAGENET}/resolve/{SHA}/"
NAMES = ["imagenet1k-train-0000.tar", "imagenet1k-train-0001.tar", "imagenet1k-validation-00.tar"]


@pytest.fixture
def hub(web, tmp_path, monkeypatch):
    """A hub with three small tars for ImageNet, and a user who is logged in."""
    siblings = [{"rfilename": name} for name in ("README.md", *NAMES)]
    web.files[f"/api/datasets/{hub_repository.IMAGENET}"] = {
        "id": hub_repository.IMAGENET,
        "sha": SHA,
        "siblings": siblings,
    }
    content = {
        name: {f"n{n}.jpg": picture(n, "JPEG"), f"n{n}.cls": b"%d" % (n % 2), f"n{n}.json": b"{}"}
        for n, name in enumerate(NAMES)
    }
    put(web, tmp_path, content, RESOLVE)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", web.address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        web.address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("FC_DATA", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return web


def test_imagenet_of_the_hub(hub):
    data = open_data("imagenet")
    assert {split: list(source.keys) for split, source in data.items()} == {
        "train": ["imagenet1k-train-0000/n0", "imagenet1k-train-0001/n1"],
        "val": ["imagenet1k-validation-00/n2"],
    }
    assert data["val"].labels.tolist() == [0] and data["train"][1].encoded == picture(1, "JPEG")
    assert location("imagenet") == ["imagenet"]
    told = [headers.get("authorization", headers.get("Authorization")) for path, headers in hub.asked if "timm" in path]
    assert told == ["Bearer hf_secret"] * 4  # the listing, and three tars


def test_imagenet_from_another_endpoint(hub, downloads):
    """In a process of its own, where HF_ENDPOINT is read as a user sets it."""
    code = "from featurecache.sources import open_data; print(open_data('imagenet', splits=['val'])['val'].keys[0])"
    chosen = {
        "HF_ENDPOINT": hub.address,
        "FC_DATA_CACHE": str(downloads),
        "HF_TOKEN": "hf_other",
        "HF_HUB_OFFLINE": "0",
    }
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, env=os.environ | chosen, capture_output=True, text=True, check=True)
    assert answer.stdout == "imagenet1k-validation-00/n2\n"
    tars = [(path, headers["Authorization"]) for path, headers in hub.asked if path.endswith(".tar")]
    assert tars == [(RESOLVE + NAMES[2], "Bearer hf_other")]


def test_imagenet_on_disk_comes_first(hub, tmp_path):
    write_tar(tmp_path / "home/imagenet/train-0.tar", {"a.png": picture(0)})
    assert open_data("imagenet")["train"].keys == ["train-0/a"] and hub.asked == []
    assert location("imagenet") == [str(tmp_path / "home/imagenet")]


def test_imagenet_offline_once_it_was_fetched(hub, monkeypatch):
    keys = open_data("imagenet")["train"].keys
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.asked.clear()
    source = open_data("imagenet")["train"]
    assert source.keys == keys and source[0].encoded == picture(0, "JPEG") and hub.asked == []


@pytest.mark.parametrize("status", [401, 403])
def test_imagenet_without_the_right_to_it(hub, status):
    hub.status[RESOLVE + NAMES[0]] = status
    page = f"{hub.address}/datasets/{hub_repository.IMAGENET}"
    with pytest.raises(SourceError, match=rf"may not be read .*accept the terms at {page}, then log in with `hf auth"):
        open_data("imagenet")
    hub.status[f"/api/datasets/{hub_repository.IMAGENET}"] = status
    with pytest.raises(SourceError, match=rf"does not give .*accept the terms at {page}.*or put .* \$FC_DATA/imagenet"):
        open_data("imagenet")


def test_imagenet_without_a_hub(hub, monkeypatch):
    hub.status[f"/api/datasets/{hub_repository.IMAGENET}"] = 404
    with pytest.raises(SourceError, match=r"cannot give timm/imagenet-1k-wds now|does not give"):
        open_data("imagenet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match=r"cannot be reached: offline mode.*a local copy at \$FC_DATA/imagenet"):
        open_data("imagenet")
    monkeypatch.delenv("FC_DATA")
    with pytest.raises(SourceError, match="FC_DATA is not set now"):
        open_data("imagenet")


def test_a_page_in_place_of_the_hub(hub, monkeypatch):
    for page in (b"<html>log in first</html>", b"[]"):
        hub.files[f"/api/datasets/{hub_repository.IMAGENET}"] = page
        with pytest.raises(SourceError, match="timm/imagenet-1k-wds cannot be reached"):
            open_data("imagenet")


def test_a_note_that_makes_no_sense_is_no_listing(hub, monkeypatch, downloads):
    open_data("imagenet")
    (note,) = downloads.glob("*.repository.json")
    assert json.loads(note.read_text())["files"] == NAMES
    note.write_text('{"revision": "../../x", "files": ["a"]}')
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="offline mode"):
        open_data("imagenet")
