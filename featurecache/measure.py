"""What every encoding costs: measured on some rows before an extraction, and what "int8" is chosen by."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from featurecache.encodings import Encoding, holds_values, make_encoding
from featurecache.encodings.int8 import column_scales
from featurecache.errors import UsageError
from featurecache.forward import Passes, forward_of, rows_at_once
from featurecache.loader import load
from featurecache.sources.base import Source
from featurecache.store.layout import EncodedOutput, PartSpec
from featurecache.store.views import StoredViews
from featurecache.teachers.base import Described, Recorded, Teacher
from featurecache.types import Json, OutputSpec, SampledLogits, SparseLogits, TopLogits

__all__ = ["encoding_cost", "loss", "measured_part", "sample_rows"]

_FEWEST, _MOST = 256, 1024
_LEAST_PROBABILITY = 1e-38
_MOST_NUMBERS = 2**24
"""Of an output that are compared: hidden states of a thousand samples would not fit in memory."""


def sample_rows(rows: int) -> np.ndarray:
    """int64: a 64th of the rows, but from 256 to 1,024 of them, spread evenly; all where there are fewer."""
    count = min(rows, max(_FEWEST, min(rows // 64, _MOST)))
    return np.arange(count, dtype=np.int64) * rows // count


def measured_part(
    teacher: Teacher | Recorded,
    source: Source,
    part: PartSpec,
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = "cpu",
    views: StoredViews | None = None,
) -> PartSpec:
    """A planned part, after the teacher has run on a sample of its rows.

    "int8" becomes the closer one of "int8:row" and "int8:column", columns get their scales, and
    `provenance["encoding_cost"]` says by output what each encoding costs. Where no row of the sample has outputs,
    "int8" is by row and nothing is known of the costs. Raises UsageError where int8:column was asked for then.
    """
    forward = forward_of(teacher, part, batch_size=batch_size, device=device)
    values = _outputs(forward, source, teacher, part, batch_size, workers, views)
    outputs, costs = [], {}
    for item in part.outputs:
        exact = values[item.output.name]
        chosen = _chosen(item, exact)
        outputs.append(chosen)
        # scales are judged on rows that they were not taken from
        if cost := encoding_cost(_encoding(chosen), _halves(exact)[1] if chosen.scale else exact):
            costs[item.output.name] = cost
    known = {array for item in part.outputs for array in _encoding(item).arrays}
    arrays = [array for item in outputs for array in _encoding(item).arrays]
    shared = [array for array in part.arrays if array not in known]
    return replace(
        part,
        arrays=(*arrays, *shared),
        outputs=tuple(outputs),
        provenance={**part.provenance, "encoding_cost": costs},
    )


def encoding_cost(encoding: Encoding, exact: Tensor) -> Json:
    """What is lost of float32 (rows, *shape) when it is stored, as numbers by name; empty if no row can be stored.

    Dense values: cosine, lowest_cosine, largest_error, and for "logits" kl (of the stored from the exact, nats, at
    temperature 1) and agreement (of the largest class). Top-k: kl and mass (of the k classes), by temperature; the
    classes that are not stored count as one. Sampled: mass (of the drawn classes), distance (half the sum over classes
    of |estimate - probability|) and entropy_error (the mean, in nats), at its temperature.
    """
    encoded = {name: values.cpu() for name, values in encoding.encode(exact).items()}
    held = torch.from_numpy(holds_values({name: values.numpy() for name, values in encoded.items()}))
    if not held.any():
        return {}
    decoded = encoding.decode({name: values[held] for name, values in encoded.items()})
    return loss(exact[held], decoded, are_logits=encoding.arrays[0].name == "logits")


def loss(exact: Tensor, stored: Tensor | SparseLogits, *, are_logits: bool) -> Json:
    """The numbers of `encoding_cost` for rows (one or more) that were stored somewhere already, and their count."""
    if isinstance(stored, SampledLogits):
        return {"rows": len(exact), **_sampled_cost(exact, stored)}
    if isinstance(stored, TopLogits):
        return {"rows": len(exact), **_sparse_cost(exact, stored)}
    return {"rows": len(exact), **_dense_cost(exact, stored, are_logits=are_logits)}


def _outputs(
    forward: Passes,
    source: Source,
    teacher: Described,
    part: PartSpec,
    batch_size: int,
    workers: int,
    views: StoredViews | None,
) -> dict[str, Tensor]:
    """float32 (rows, *shape) of each output of the part, on the CPU: the rows of the sample that have outputs, or as
    many as are enough. Of outputs for each token of texts every token is a row.

    The rows take turns in the part's views.
    """
    rows = sample_rows(part.rows)
    first, stop = part.views or (0, 1)
    shown = first + np.arange(len(rows)) % (stop - first)
    step = rows_at_once(source.modality, batch_size)
    each = [slice(start, start + step) for start in range(0, len(rows), step)]
    batches = [views.frames(rows[at], shown[at, None]) if views else rows[at] for at in each]
    found: dict[str, list[Tensor]] = {item.output.name: [torch.empty(0, *item.output.shape)] for item in part.outputs}
    for batch in load(source, teacher.input, batches, workers=workers):
        for given in forward.passes(batch, views.augmentation if views else None):
            for item in part.outputs:
                values = found[item.output.name]
                if sum(piece.numel() for piece in values) < _MOST_NUMBERS:
                    values.append(_compared(item.output, given.outputs[item.output.name], given.lengths))
    return {name: torch.cat(values) for name, values in found.items()}


def _compared(output: OutputSpec, values: Tensor, lengths: np.ndarray) -> Tensor:
    """float32 (rows, *shape) on the CPU: a batch of an output, or the real tokens in it."""
    exact = values.float().cpu()
    if not output.longest:
        return exact
    return torch.cat([row[:length] for row, length in zip(exact, lengths.tolist(), strict=True)])


def _chosen(item: EncodedOutput, exact: Tensor) -> EncodedOutput:
    """The output as it will be kept: "int8" decided, scales filled in."""
    if item.encoding not in ("int8", "int8:column"):
        return item
    by_row = replace(item, encoding="int8:row")
    fitted, judged = _halves(exact)
    if not len(fitted):
        if item.encoding == "int8":
            return by_row
        hint = f"write --encode {item.output.name}=int8:row"
        raise UsageError(f"int8:column of {item.output.name} found no sample to take its scales from", hint=hint)
    by_column = replace(item, encoding="int8:column", scale=column_scales(fitted))
    if item.encoding == "int8" and _mean_cosine(by_row, judged) >= _mean_cosine(by_column, judged):
        return by_row
    return by_column


def _halves(exact: Tensor) -> tuple[Tensor, Tensor]:
    """Every second of the rows that are finite, and the others; the same where there is only one."""
    finite = exact[exact.flatten(1).isfinite().all(1)]
    return finite[::2], finite[1::2] if len(finite) > 1 else finite


def _encoding(item: EncodedOutput) -> Encoding:
    return make_encoding(item.encoding, item.output, scale=item.scale)


def _mean_cosine(item: EncodedOutput, exact: Tensor) -> float:
    encoding = _encoding(item)
    decoded = encoding.decode(encoding.encode(exact))
    assert isinstance(decoded, Tensor)
    return float(_cosines(exact, decoded).mean())


def _cosines(exact: Tensor, decoded: Tensor) -> Tensor:
    """float64 (rows,); 1 where both are zero."""
    left, right = exact.double().flatten(1), decoded.double().flatten(1)
    norms = left.norm(dim=1) * right.norm(dim=1)
    same = (left == right).all(1)
    return torch.where(same, 1.0, (left * right).sum(1) / norms.clamp(min=torch.finfo(torch.float64).tiny))


def _dense_cost(exact: Tensor, decoded: Tensor, *, are_logits: bool) -> Json:
    cosines = _cosines(exact, decoded)
    cost = {
        "cosine": float(cosines.mean()),
        "lowest_cosine": float(cosines.min()),
        "largest_error": float((exact.double() - decoded.double()).abs().max()),
    }
    if are_logits:
        true, stored = exact.double().log_softmax(-1), decoded.double().log_softmax(-1)
        cost["kl"] = float((true.exp() * (true - stored)).sum(-1).mean())
        cost["agreement"] = float((exact.argmax(-1) == decoded.argmax(-1)).double().mean())
    return cost


def _sparse_cost(exact: Tensor, sparse: TopLogits) -> Json:
    kl, mass = {}, {}
    for number, temperature in enumerate(sparse.temperatures):
        name = _temperature(temperature)
        true = (exact.double() / temperature).softmax(-1)
        kept = true.gather(1, sparse.indices)
        rest = true.scatter(1, sparse.indices, 0.0).sum(1, keepdim=True)
        stored = (sparse.values.double() / temperature - sparse.logsumexp[:, number : number + 1].double()).exp()
        left, right = torch.cat([kept, rest], 1), torch.cat([stored, 1 - stored.sum(1, keepdim=True)], 1)
        right = right.clamp(min=_LEAST_PROBABILITY)
        kl[name] = float((torch.xlogy(left, left) - torch.xlogy(left, right)).sum(1).mean())
        mass[name] = float(kept.sum(1).mean())
    return {"kl": kl, "mass": mass}


def _sampled_cost(exact: Tensor, sampled: SampledLogits) -> Json:
    true = (exact.double() / sampled.temperature).softmax(-1)
    estimate = torch.zeros_like(true).scatter_add(1, sampled.indices, sampled.weights.double())
    error = torch.special.entr(true).sum(1) - sampled.entropy.double()
    name = _temperature(sampled.temperature)
    return {
        "mass": {name: float((true * (estimate > 0)).sum(1).mean())},
        "distance": {name: float((true - estimate).abs().sum(1).mean() / 2)},
        "entropy_error": float(error.abs().mean()),
    }


def _temperature(number: float) -> str:
    return repr(number).removesuffix(".0")
