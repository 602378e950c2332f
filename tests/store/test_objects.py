import errno
import os
import shutil
import time

import pytest

from featurecache.errors import CorruptCacheError, DiskFullError, FeatureCacheError, UsageError
from featurecache.store.objects import LocalObjects


@pytest.fixture
def objects(tmp_path):
    return LocalObjects(tmp_path / "cache")


def everything(objects):
    """Every file below the root, with its bytes."""
    return {str(p.relative_to(objects.root)): p.read_bytes() for p in objects.root.rglob("*") if p.is_file()}


def test_objects_are_create_only(objects):
    assert objects.put_new("a/b.json", b"first") is True
    assert objects.put_new("a/b.json", b"second") is False
    assert objects.get("a/b.json") == b"first" and objects.size("a/b.json") == 5
    assert everything(objects) == {"a/b.json": b"first"}
    assert (objects.root / "a/b.json").stat().st_mode & 0o777 == 0o444


def test_an_object_is_on_the_disk_before_it_has_a_name(objects, monkeypatch):
    steps = []
    names = {}

    def record(name):
        real = getattr(os, name)

        def call(*args, **kwargs):
            first = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else str(args[0])
            result = real(*args, **kwargs)
            if "_tmp/" in first:
                first = names.setdefault(first, "the temporary file")
            steps.append((name, first.replace(str(objects.root), "CACHE")))
            return result

        monkeypatch.setattr(os, name, call)

    objects.put_new("a/other", b"")
    for name in ("fsync", "link", "mkdir"):
        record(name)
    objects.put_new("a/b/c.json", b"data")
    assert steps == [
        ("fsync", "the temporary file"),
        ("mkdir", "CACHE/a/b"),
        ("fsync", "CACHE/a"),
        ("link", "the temporary file"),
        ("fsync", "CACHE/a/b"),
    ]


@pytest.mark.parametrize(
    "key", ["", "/", "/etc/passwd", "..", "a/../b", "a/./b", "a//b", "a/", ".hidden", "a\\b", "a\0b", "a\nb", "ä", "-a"]
)
def test_keys_that_could_lead_elsewhere(objects, key):
    for call in (objects.path, objects.exists, objects.size, objects.get, lambda key: objects.put_new(key, b"")):
        with pytest.raises(UsageError, match="is not the name of an object"):
            call(key)
    assert not (objects.root / "_tmp").exists() or everything(objects) == {}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "link", "chmod", "mkdir"])
def test_a_full_disk(objects, monkeypatch, number, call):
    objects.put_new("safe.json", b"safe")
    real = getattr(os, call)

    def full(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DiskFullError, match="cannot write") as error:
        objects.put_new("new/b.json", b"data")
    assert "committed rows are kept" in error.value.hint
    assert everything(objects) == {"safe.json": b"safe"}
    monkeypatch.setattr(os, call, real)
    assert objects.put_new("new/b.json", b"data") and objects.get("new/b.json") == b"data"


def test_a_directory_that_may_not_be_written(objects, monkeypatch):
    objects.put_new("safe.json", b"safe")

    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "link", denied)
    with pytest.raises(UsageError, match="cannot write"):
        objects.put_new("b.json", b"data")
    assert everything(objects) == {"safe.json": b"safe"}


def test_only_plain_files_inside_the_cache_are_read(objects, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/b.json").write_bytes(b"{}")
    objects.put_new("real.json", b"{}")
    (objects.root / "link.json").symlink_to(objects.root / "real.json")
    (objects.root / "behind").symlink_to(tmp_path / "outside")
    (objects.root / "directory").mkdir()
    os.mkfifo(objects.root / "pipe")
    for key in ("link.json", "behind/b.json", "directory", "pipe", "real.json/x", "missing"):
        for call in (objects.get, objects.size):
            with pytest.raises(CorruptCacheError):
                call(key)


def test_get_has_a_limit(objects):
    objects.put_new("a", b"12345")
    assert objects.get("a", limit=5) == b"12345"
    with pytest.raises(CorruptCacheError, match="larger than 4 bytes"):
        objects.get("a", limit=4)


def test_list_is_sorted_and_leaves_hidden_files_out(objects):
    for key in ("b", "a/x", "c.json"):
        objects.put_new(key, b"")
    (objects.root / ".git").mkdir()
    (objects.root / "with space").touch()
    assert objects.list() == ["_tmp", "a", "b", "c.json"]
    assert objects.list("a") == ["x"] and objects.list("b") == objects.list("none") == []


def test_sweep_removes_what_nobody_writes_any_more(objects):
    old, old_file = objects.temporary()
    new, new_file = objects.temporary()
    old_file.close(), new_file.close()
    os.utime(old, (time.time() - 90_000,) * 2)
    objects.sweep()
    assert not old.exists() and new.exists()


def test_sweep_leaves_what_it_cannot_remove(objects):
    path, file = objects.temporary()
    file.close()
    (path.parent / "directory").mkdir()
    for name in path.parent.iterdir():
        os.utime(name, (time.time() - 90_000,) * 2)
    objects.sweep()
    assert [name.name for name in path.parent.iterdir()] == ["directory"]


def test_a_disk_that_fails(objects, monkeypatch):
    def failed(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    objects.put_new("safe.json", b"safe")
    monkeypatch.setattr(os, "link", failed)
    with pytest.raises(FeatureCacheError, match="cannot write: .*Input/output error") as error:
        objects.put_new("b.json", b"data")
    assert type(error.value) is FeatureCacheError and "committed rows are kept" in error.value.hint
    assert everything(objects) == {"safe.json": b"safe"}


@pytest.mark.parametrize("lost", [FileExistsError(errno.EEXIST, "exists"), OSError(errno.EIO, "timed out")])
def test_a_link_whose_answer_was_lost_is_ours(objects, monkeypatch, lost):
    real = os.link

    def link(*args):
        real(*args)
        raise lost  # as a network file system does that asks again after its first question was heard

    monkeypatch.setattr(os, "link", link)
    assert objects.put_new("a.json", b"data") is True
    monkeypatch.setattr(os, "link", real)
    assert objects.put_new("a.json", b"other") is False
    assert everything(objects) == {"a.json": b"data"}


def test_no_hard_links(objects, monkeypatch):
    def refuse(*args):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(FeatureCacheError, match="is on a file system without hard links"):
        objects.put_new("a.json", b"data")
    assert everything(objects) == {}


def test_a_temporary_file_that_another_run_swept_away(objects):
    path, file = objects.temporary()
    file.close()
    path.unlink()
    with pytest.raises(FeatureCacheError, match="cannot write: .*No such file"):
        objects.publish(path, "a.json")
    assert everything(objects) == {}


def test_what_others_named_is_synced_before_it_is_built_upon(tmp_path, monkeypatch):
    LocalObjects(tmp_path / "cache").put_new("a/b/c.json", b"")  # which may have been killed before each sync
    synced, real = [], os.fsync

    def fsync(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(f"{tmp_path}/"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    objects = LocalObjects(tmp_path / "cache")
    assert objects.put_new("a/b/c.json", b"") is False
    assert {str(tmp_path), "cache", "cache/a", "cache/a/b"} <= set(synced)
    del synced[:]
    objects.sync("a/b")
    assert synced == ["cache/a/b"]  # those above are known by now


def test_sizes_of_what_a_cache_holds(objects):
    for name in ("_tmp/one", "_claims/two", "train/vit/_claims", "a", "b", "c"):
        path = objects.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"123456")
    (objects.root / "link").symlink_to(objects.root / "_tmp/one")
    assert sum(objects.sizes()) == 4 * 6
    sizes = objects.sizes()
    next(sizes)
    shutil.rmtree(objects.root)  # while somebody counts
    list(sizes)
