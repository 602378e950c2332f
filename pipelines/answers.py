"""What a cache has to say of rows in their views: the teacher's top classes, or which rows are nearest."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from featurecache.store.reader import CacheReader
from featurecache.types import Json, Reason, SampledLogits, SparseLogits

__all__ = ["Answer", "Answers", "ask"]

_ITEMS = 3
_MOST_ROWS = 10_000
"""Rows among which neighbours are looked for, spread evenly over the split."""
_MOST_BYTES = 2**28
"""Of all their embeddings, as float32."""
_CHUNK_BYTES = 2**25
_ALONE = "there is no other row"


@dataclass(frozen=True, slots=True)
class Answer:
    """What there is of one row in one view."""

    items: tuple[tuple[str, float], ...] = ()
    """Classes and their probabilities, or keys and their cosines, the largest first."""
    problem: str = ""
    """Why there is nothing."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Of several rows, and where it is from."""

    output: str
    teacher: str
    """Who gave the output."""
    kind: str
    """"classes" or "neighbours"."""
    by_view: dict[tuple[int, int], Answer]
    """Row and view to what there is."""
    temperature: float = 1.0
    """At which probabilities are given."""
    among: int = 0
    """Rows among which neighbours were looked for."""

    @property
    def legend(self) -> str:
        """What the items are, in words."""
        if self.kind == "classes":
            at = "" if self.temperature == 1 else f" at temperature {self.temperature:g}"
            return f"the largest classes of its cached {self.output}, with their probabilities{at}"
        return f"the nearest of {self.among:,} rows by the cosine of its {self.output} to theirs in view 0"

    def facts(self) -> dict[str, Json]:
        """Which output and whose; at which temperature, or among how many rows."""
        how = {"temperature": self.temperature} if self.kind == "classes" else {"among": self.among}
        return {"output": self.output, "output_of": self.teacher, **how}


def ask(reader: CacheReader, rows: Sequence[int], views: int) -> Answers:
    """Top classes by the cached logits of each view; without logits, the rows whose embedding of view 0 is nearest."""
    logits = [name for name, spec in reader.outputs.items() if _is_logits(name) and len(spec.shape) == 1]
    output = min(logits, key=len, default=None) or next(iter(reader.outputs))
    part = reader.output_part(output)
    teacher = f"the probe {part.prefix}" if part.kind == "probe" else str(part.facts["teacher"])
    there = min(views, reader.views([output]))
    problems = {
        (row, view): _problem(reader, output, row, view) if view < there else "the cache has nothing of this view"
        for row in rows
        for view in range(views)
    }
    asked = [place for place, problem in problems.items() if not problem]
    found = {place: Answer(problem=problem) for place, problem in problems.items() if problem}
    if not asked:
        return Answers(output, teacher, "classes" if logits else "neighbours", found)
    at = np.array(asked, np.int64)
    read = reader.read(at[:, 0], view=at[:, 1].copy(), outputs=[output])[output]
    if logits or isinstance(read, SparseLogits):
        names = reader.outputs[output].classes
        temperature, classes = _top_classes(read)
        items = [tuple((_class_name(names, number), value) for number, value in top) for top in classes]
        answers = [Answer(each) if each else Answer(problem="no finite logits") for each in items]
        return Answers(output, teacher, "classes", found | dict(zip(asked, answers, strict=True)), temperature)
    bank = _bank(reader, output)
    answers = list(_nearest(reader, output, at[:, 0], read, bank))
    return Answers(output, teacher, "neighbours", found | dict(zip(asked, answers, strict=True)), among=bank.size)


def _is_logits(name: str) -> bool:
    return name.rpartition("/")[2] == "logits"


def _problem(reader: CacheReader, output: str, row: int, view: int) -> str:
    """Why a row has no output in a view; "" if it has."""
    reason = int(reader.reasons(output, view=view)[row])
    return "" if reason == Reason.VALID else f"invalid: {Reason(reason).text if reason in set(Reason) else reason}"


def _class_name(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else f"class {number}"


def _top_classes(logits: Tensor | SparseLogits) -> tuple[float, list[list[tuple[int, float]]]]:
    """A temperature, and for each row the numbers of its largest classes with their probabilities at it."""
    if isinstance(logits, SampledLogits):
        temperature, chances = logits.temperature, logits.weights.double().masked_fill(logits.weights == 0, -math.inf)
    elif isinstance(logits, SparseLogits):
        # where they were not kept for temperature 1, the probabilities are known at others alone
        temperature = 1.0 if 1.0 in logits.temperatures else logits.temperatures[0]
        sums = logits.logsumexp[:, [logits.temperatures.index(temperature)]]
        chances = (logits.values.double() / temperature - sums).exp()
    else:
        temperature, chances = 1.0, logits.double().softmax(-1)
    values, at = chances.topk(min(_ITEMS, chances.shape[-1]), dim=-1)
    numbers = logits.indices.gather(-1, at) if isinstance(logits, SparseLogits) else at
    pairs = zip(numbers.tolist(), values.tolist(), strict=True)
    return temperature, [
        [(number, value) for number, value in zip(*pair, strict=True) if math.isfinite(value)] for pair in pairs
    ]


def _bank(reader: CacheReader, output: str) -> np.ndarray:
    """int64: the rows among which neighbours are looked for."""
    valid = np.flatnonzero(reader.valid([output]))
    most = min(_MOST_ROWS, max(_MOST_BYTES // _row_bytes(reader, output), 1))
    count = min(most, valid.size)
    return valid[np.arange(count) * valid.size // max(count, 1)]


def _row_bytes(reader: CacheReader, output: str) -> int:
    return 4 * max(math.prod(reader.outputs[output].shape), 1)


def _nearest(reader: CacheReader, output: str, rows: np.ndarray, read: Tensor, bank: np.ndarray) -> Iterator[Answer]:
    """For each of these rows, read in some view, the keys of others that are nearest to it in view 0."""
    if not bank.size:
        yield from [Answer(problem=_ALONE)] * len(rows)
        return
    queries = _directions(read)
    step = max(_CHUNK_BYTES // _row_bytes(reader, output), 1)
    chunks = [bank[at : at + step] for at in range(0, bank.size, step)]
    cosines = torch.cat([queries @ _directions(_dense(reader, output, chunk)).T for chunk in chunks], dim=1)
    for row, line in zip(rows.tolist(), cosines, strict=True):
        line[torch.from_numpy(bank == row)] = -math.inf  # everything is nearest to itself
        best = line.nan_to_num(nan=-math.inf).topk(min(_ITEMS, bank.size))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        items = tuple((reader.keys[int(bank[at])], cosine) for at, cosine in pairs if cosine > -2)
        yield Answer(items) if items else Answer(problem=_ALONE)


def _dense(reader: CacheReader, output: str, rows: np.ndarray) -> Tensor:
    read = reader.read(rows, outputs=[output])[output]
    assert isinstance(read, Tensor)
    return read


def _directions(vectors: Tensor) -> Tensor:
    """(rows, ...) -> float32 (rows, numbers) of length 1."""
    return normalize(vectors.flatten(1), dim=1)
