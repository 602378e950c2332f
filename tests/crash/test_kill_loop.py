"""kill -9 at random moments of a real extraction, which is then run again, until it is done."""

import collections
import random
import shutil
import time

from featurecache.store.objects import LocalObjects
from featurecache.store.verify import Finding, verify
from tests.crash import small_extraction
from tests.crash.checks import content_of, faults_in, files_of, records_in
from tests.crash.children import kill, start, wait

SHARDS = small_extraction.ROWS // small_extraction.SHARD_ROWS


def test_killed_at_random_moments(folder, monkeypatch, kills):
    small_extraction.make_small_and_slow(monkeypatch, seconds=0.001)
    began = time.monotonic()
    assert wait(start(lambda: small_extraction.extract_texts(folder / "undisturbed"))) == 0
    seconds = time.monotonic() - began
    whole = content_of(files_of(folder / "undisturbed"))
    assert len(records_in(whole)) > SHARDS

    small_extraction.log_begun_shards(monkeypatch, folder / "begun")
    root, chance, seen = folder / "cut", random.Random(0), collections.Counter()
    while seen["kills"] < kills:
        committed = len(records_in(files_of(root)))
        child = start(lambda: small_extraction.extract_texts(root))
        time.sleep(chance.uniform(0, seconds / 2))
        ended = kill(child)
        left = files_of(root)
        assert faults_in(left) == []
        seen["kills"] += ended == -9
        seen["with progress"] += len(records_in(left)) > committed
        seen["in the middle of a shard"] += any((root / "_tmp").iterdir()) if (root / "_tmp").exists() else 0
        if ended == 0 or len(records_in(left)) == len(records_in(whole)):
            finish_and_check(root, whole)
            seen["caches"] += 1
            shutil.rmtree(root)
    finish_and_check(root, whole)
    begun = (folder / "begun").read_text().splitlines()
    assert not [line for line in begun if line.endswith("again")]
    assert len(begun) > len(records_in(whole))  # some were begun, lost, and begun once more
    assert seen["kills"] == kills and seen["with progress"] >= kills // 4
    assert seen["in the middle of a shard"] >= kills // 4


def finish_and_check(root, whole):
    """Run to the end; what stood there under its name is still the same file."""
    stood = {name: (root / name).stat().st_ino for name in files_of(root)}
    assert wait(start(lambda: small_extraction.extract_texts(root))) == 0
    assert content_of(files_of(root)) == whole
    assert stood == {name: (root / name).stat().st_ino for name in stood}
    assert not [finding for finding in verify(LocalObjects(root)) if isinstance(finding, Finding)]
