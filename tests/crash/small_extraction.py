"""Real extractions that take about a second: many shards, a slow teacher; as a function and as a command."""

import os
import sys
import time
from pathlib import Path

import pytest

from featurecache.extract import extract
from featurecache.plan import plan_part
from featurecache.rows import list_rows
from featurecache.store import layout
from featurecache.store.seals import seal
from featurecache.store.writer import ShardWriter, create_cache
from featurecache.teachers.random_projection import RandomProjection
from pipelines.cli import main
from tests.small_caches import Texts, sentences

ROWS, SHARD_ROWS = 320, 16
COMMAND = ("extract", "--teacher", "random", "--data", "synthetic-text:400", "--split", "train", "--device", "cpu")
"""Without --out and --workers."""


def make_small_and_slow(patch: pytest.MonkeyPatch, *, seconds: float) -> None:
    """Shards of a few rows, and a teacher that takes so long for each batch."""
    patch.setattr(layout, "_MAX_SHARD_BYTES", SHARD_ROWS * 64 * 2)  # the teacher's rows are 64 float16 numbers
    real = RandomProjection.__call__

    def slow(self, batch):
        time.sleep(seconds)
        return real(self, batch)

    patch.setattr(RandomProjection, "__call__", slow)


def extract_texts(out: Path) -> None:
    """What `featurecache extract` does, without what it does only once: twenty shards of texts."""
    source, teacher = Texts(sentences(ROWS)), RandomProjection("text")
    objects = create_cache(out, source={})
    for _ in list_rows(source, objects, "train"):
        pass
    for _ in extract(teacher, source, objects, plan_part(teacher, source, "train"), batch_size=1):
        pass
    seal(objects)


def featurecache(*arguments: object) -> None:
    """The command line, as the installed program starts it; ends with SystemExit."""
    sys.argv = ["featurecache", *map(str, arguments)]
    main()


def log_begun_shards(patch: pytest.MonkeyPatch, log: Path) -> None:
    """Each shard that is begun adds a line to `log`: its part and number, and whether it was committed before."""
    real = ShardWriter.__init__

    def begin(self, objects, part, shard):
        committed = objects.exists(f"{part.prefix}/_commits/{shard.view:05d}-{shard.index:07d}.json")
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, f"{part.prefix} {shard.index} {'again' if committed else 'first'}\n".encode())
        os.close(descriptor)
        real(self, objects, part, shard)

    patch.setattr(ShardWriter, "__init__", begin)
