"""`fc verify`: whether a cache is whole, and on request whether its teacher still says what is stored."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.errors import CorruptCacheError, UsageError
from featurecache.types import Json
from pipelines.describe import describe_progress
from pipelines.events import Advance, Message, Run

if TYPE_CHECKING:
    from featurecache.store.objects import LocalObjects

__all__ = ["verify_cache"]

_SHOWN = 20


def verify_cache(
    *,
    cache: Path | str = "./cache",
    sample: float = 1.0,
    recompute: int = 0,
    teacher: str | None = None,
    weights: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    data: Sequence[str] | None = None,
    device: str | None = None,
) -> Run[Json]:
    """Read every byte of a cache, or all JSON and a sample of the payloads, and compare it with records and seals.

    With `recompute` the teacher runs again on that many valid rows of every split, if nothing was wrong before; it is
    found by what the cache says of it, unless `teacher` names it. Returns cache, digest, sample, bytes, ok, complete,
    how many problems, the first 20 of them, and by output what the teacher says now: not ok is a mean cosine below
    0.999 or, of logits, an agreement of the largest class below 0.99. Raises UsageError if there is no cache,
    IdentityError if the teacher or the data are others.
    """
    from featurecache.store.objects import LocalObjects
    from featurecache.store.verify import Checked, verify
    from pipelines.recompute import prepare
    from pipelines.recompute import recompute as run_again

    objects = LocalObjects(cache)
    if not any(objects.exists(name) for name in ("cache.json", "zarr.json", "seals/0.json")):
        raise UsageError(f"there is no cache at {cache}", hint="check the path")
    prepared = None
    if recompute:  # before bytes are read for hours
        with contextlib.suppress(CorruptCacheError):  # of which there is more to say below
            options: dict[str, Any] = {"teacher": teacher, "weights": weights, "model_kwargs": model_kwargs}
            prepared = prepare(cache, data=data, **options)
    if sample < 1:
        yield Message(f"reading {sample:.3g} of the payloads; of the others only the sizes, and all JSON")
    problems, read = 0, 0
    shown: list[str] = []
    for event in verify(objects, sample=sample):
        if isinstance(event, Checked):
            read = event.done
            yield Advance("verify", event.done, event.total, unit="bytes")
            continue
        problems += 1
        if len(shown) < _SHOWN:
            shown.append(str(event))
    result: dict[str, Json] = {
        "cache": str(cache),
        "digest": None if problems else _digest(objects),
        "ok": not problems,
        "complete": None if problems else describe_progress(cache)["complete"],
        "sample": sample,
        "bytes": read,
        "problems": problems,
        "findings": shown,
    }
    if prepared is not None and not problems:
        found = yield from run_again(prepared, recompute, device=device)
        result["recomputed"] = found
        result["ok"] = all(output["ok"] for split in found.values() for output in split.values())
    return result


def _digest(objects: "LocalObjects") -> str | None:
    from featurecache.store.seals import latest_seal

    seal = latest_seal(objects)
    return seal.digest if seal else None
