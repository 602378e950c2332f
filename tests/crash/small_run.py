"""A whole run that takes milliseconds: a cache created, one part of three arrays and two shards, sealed."""

from pathlib import Path

from featurecache.store.seals import seal
from featurecache.store.writer import CacheWriter, create_cache
from tests.store.small_parts import teacher_part, values_of

PART = teacher_part(1100)
"""1,024 rows and 76."""


def write_all(root: Path, *, seed: int = 0) -> None:
    """Create what is not there, write what is not committed, seal."""
    writer = CacheWriter(create_cache(root, source={}), PART)
    for shard in writer.pending():
        writer.write(shard, values_of(PART, shard, seed))
    seal(writer.objects)
