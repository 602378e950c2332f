"""What encodings cost, against plain loops in float64; what "int8" is chosen to be, and by which rows."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from featurecache.encodings import make_encoding
from featurecache.errors import CorruptCacheError, UsageError
from featurecache.extract import extract
from featurecache.measure import encoding_cost, measured_part, sample_rows
from featurecache.plan import plan_part
from featurecache.rows import list_rows
from featurecache.store.parts import part_from_json
from featurecache.store.reader import open_cache
from featurecache.store.seals import seal
from featurecache.store.writer import create_cache, matching_part
from featurecache.teachers.random_projection import RandomProjection
from featurecache.types import OutputSpec
from tests.bad_data import Encoded
from tests.store.small_parts import teacher_part, write_part, write_rows


class Table(RandomProjection):
    """A teacher that knows its outputs by heart: of text "17", row 17 of each table (rows, *shape)."""

    def __init__(self, **tables):
        super().__init__("text", dim=2)
        self.tables = {name: torch.as_tensor(table, dtype=torch.float32) for name, table in tables.items()}
        self.outputs = tuple(OutputSpec(name, tuple(table.shape[1:])) for name, table in self.tables.items())
        self.asked = []
        self._tokenizer = tokenizers.Tokenizer.from_str(self.input.tokenizer_json)

    def __call__(self, batch):
        texts = [
            self._tokenizer.decode(ids[mask].tolist()) for ids, mask in zip(batch["ids"], batch["mask"], strict=True)
        ]
        rows = [int(text) for text in texts]
        self.asked += rows
        return {name: table[rows] for name, table in self.tables.items()}


def numbered(rows):
    """Texts "0", "1", ..."""
    return Encoded([b"%d" % number for number in range(rows)])


def measured(teacher, source, **encode):
    return measured_part(teacher, source, plan_part(teacher, source, "train", encode=encode), batch_size=50)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize(
    ("rows", "count"), [(1, 1), (255, 255), (257, 256), (16_447, 256), (16_448, 257), (65_535, 1023), (10**7, 1024)]
)
def test_how_many_rows_are_sampled(rows, count):
    assert len(sample_rows(rows)) == count


@given(rows=st.integers(1, 10**6))
def test_sampled_rows_are_spread(rows):
    chosen = sample_rows(rows)
    gaps = np.diff(np.concatenate([chosen, [rows]]))
    assert chosen[0] == 0 and gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1 and chosen.dtype == np.int64


def cosine(left, right):
    top = sum(a * b for a, b in zip(left, right, strict=True))
    return top / math.sqrt(sum(a * a for a in left) * sum(b * b for b in right))


def softmax(logits, temperature=1.0):
    powers = [math.exp((value - max(logits)) / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("spec", ["float16", "int8:row", "int8:column"])
def test_cost_of_dense_logits(spec):
    exact = normal(0, 30, 6).astype(np.float32) * 5
    exact[4] = 0
    exact[7, :2] = 9.001, 9.0  # one class to int8, so the largest class may be another
    output = OutputSpec("logits", (6,))
    encoding = make_encoding(spec, output, scale=[0.11] * 6 if spec == "int8:column" else ())
    values = torch.from_numpy(exact)
    stored = encoding.decode(encoding.encode(values)).double().tolist()
    cost = encoding_cost(encoding, values)
    truth = exact.astype(np.float64).tolist()
    cosines = [1.0 if row == 4 else cosine(truth[row], stored[row]) for row in range(30)]
    kl = [
        sum(p * math.log(p / q) for p, q in zip(softmax(truth[row]), softmax(stored[row]), strict=True))
        for row in range(30)
    ]
    same = [truth[row].index(max(truth[row])) == stored[row].index(max(stored[row])) for row in range(30)]
    assert cost["rows"] == 30
    assert cost["cosine"] == pytest.approx(sum(cosines) / 30, abs=1e-12)
    assert cost["lowest_cosine"] == pytest.approx(min(cosines), abs=1e-12)
    assert cost["largest_error"] == pytest.approx(np.abs(np.subtract(truth, stored)).max(), rel=1e-12)
    assert cost["kl"] == pytest.approx(sum(kl) / 30, rel=1e-6, abs=1e-14)
    assert cost["agreement"] == sum(same) / 30
    assert set(encoding_cost(make_encoding("float16", OutputSpec("embedding", (6,))), values)) == {
        "rows",
        "cosine",
        "lowest_cosine",
        "largest_error",
    }


def test_float32_costs_nothing():
    values = torch.from_numpy(normal(1, 20, 5).astype(np.float32))
    cost = encoding_cost(make_encoding("float32", OutputSpec("logits", (5,))), values)
    assert cost == {"rows": 20, "cosine": 1, "lowest_cosine": 1, "largest_error": 0, "kl": 0, "agreement": 1}


def test_cost_of_top_k():
    exact = (normal(2, 25, 8) * 3).astype(np.float32)
    exact[3, 2] = -np.inf  # no mass, and not stored
    encoding = make_encoding("topk:3@1,4", OutputSpec("logits", (8,)))
    cost = encoding_cost(encoding, torch.from_numpy(exact))
    for temperature in (1.0, 4.0):
        kl, mass = [], []
        for row in exact.astype(np.float64).tolist():
            top = sorted(range(8), key=lambda c: -row[c])[:3]
            p = softmax(row, temperature)
            rounded = [float(np.float16(value)) if c in top else value for c, value in enumerate(row)]
            q = softmax(rounded, temperature)
            left = [p[c] for c in top] + [1 - sum(p[c] for c in top)]
            right = [q[c] for c in top] + [1 - sum(q[c] for c in top)]
            kl.append(sum(a * math.log(a / b) for a, b in zip(left, right, strict=True)))
            mass.append(sum(left[:3]))
        name = f"{temperature:.0f}"
        assert cost["kl"][name] == pytest.approx(np.mean(kl), rel=0.02, abs=1e-9)
        assert cost["mass"][name] == pytest.approx(np.mean(mass), rel=1e-6)
    assert cost["rows"] == 25 and set(cost) == {"rows", "kl", "mass"}


@pytest.mark.parametrize("spec", ["sampled:6@4", "topk:2+sampled:6@4"])
def test_cost_of_sampled_logits(spec):
    exact = (normal(3, 25, 8) * 3).astype(np.float32)
    encoding = make_encoding(spec, OutputSpec("logits", (8,)))
    cost = encoding_cost(encoding, torch.from_numpy(exact))
    stored = encoding.decode(encoding.encode(torch.from_numpy(exact)))
    mass, distance = [], []
    for row, ids, weights in zip(exact.tolist(), stored.indices.tolist(), stored.weights.tolist(), strict=True):
        p, found = softmax(row, 4.0), [0.0] * 8
        for index, weight in zip(ids, weights, strict=True):
            found[index] += weight
        mass.append(sum(chance for chance, weight in zip(p, found, strict=True) if weight))
        distance.append(sum(abs(a - b) for a, b in zip(p, found, strict=True)) / 2)
    assert cost["mass"] == {"4": pytest.approx(np.mean(mass), rel=1e-6)}
    assert cost["distance"] == {"4": pytest.approx(np.mean(distance), rel=1e-5)}
    assert cost["entropy_error"] < 1e-3 and set(cost) == {"rows", "mass", "distance", "entropy_error"}


def test_all_classes_kept_and_no_mass_left():
    exact = torch.tensor([[500.0, 0.0, -500.0], [1.0, 2.0, 3.0]])
    cost = encoding_cost(make_encoding("topk:3@1", OutputSpec("logits", (3,))), exact)
    assert cost["mass"]["1"] == 1 and cost["kl"]["1"] == pytest.approx(0, abs=1e-6)


def test_rows_that_cannot_be_stored_cost_nothing():
    exact = torch.tensor([[1.0, 2.0], [1e6, 1.0], [torch.nan, 0.0]])
    encoding = make_encoding("float16", OutputSpec("embedding", (2,)))
    assert encoding_cost(encoding, exact) == {"rows": 1, "cosine": 1, "lowest_cosine": 1, "largest_error": 0}
    assert encoding_cost(encoding, exact[1:]) == {} == encoding_cost(encoding, exact[:0])


def test_outlier_channels_get_a_scale_for_each_column():
    table = normal(3, 300, 64)
    table[:, 5] += 60
    part = measured(Table(embedding=table), numbered(300), embedding="int8")
    (output,) = part.outputs
    assert output.encoding == "int8:column" and len(output.scale) == 64
    assert [array.name for array in part.arrays] == ["embedding", "valid", "reason", "input_hash"]
    sample = table[np.arange(256) * 300 // 256]
    # every second row of the sample gave the scales
    assert max(output.scale) == pytest.approx(np.abs(sample[:, 5]).max() * 1.5 / 127, rel=0.02)
    assert output.scale[5] == max(output.scale)
    assert part.identity["encodings"] == {"embedding": "int8"}
    cost = part.provenance["encoding_cost"]["embedding"]
    assert cost["rows"] == 128 and 0.9999 < cost["lowest_cosine"] <= cost["cosine"] < 1
    assert part.provenance["packages"]


def test_rows_of_one_length_get_a_scale_for_each_row():
    table = normal(4, 300, 384)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    part = measured(Table(embedding=table), numbered(300), embedding="int8")
    assert (part.outputs[0].encoding, part.outputs[0].scale) == ("int8:row", ())
    assert [array.name for array in part.arrays] == ["embedding", "embedding.scale", "valid", "reason", "input_hash"]
    cost = part.provenance["encoding_cost"]["embedding"]
    assert cost["rows"] == 256 and cost["cosine"] == pytest.approx(0.99997, abs=1e-5)


def test_columns_are_judged_by_rows_that_did_not_make_their_scales():
    """In every other row of the sample the one column that counts is 40 times as large."""
    table = normal(5, 200, 4) * [1, 0.01, 0.01, 0.01]
    order = np.argsort(np.char.str_len(np.arange(200).astype(str)), kind="stable")  # as passes are: by length
    table[order[1::2], 0] *= 40
    forced = measured(Table(embedding=table), numbered(200), embedding="int8:column")
    cost = forced.provenance["encoding_cost"]["embedding"]
    reach = 127 * forced.outputs[0].scale[0]
    assert cost["rows"] == 100
    assert cost["largest_error"] == pytest.approx(np.abs(table[:, 0]).max() - reach, rel=1e-3)


def test_ties_go_to_rows():
    part = measured(Table(embedding=np.zeros((9, 3))), numbered(9), embedding="int8")
    assert part.outputs[0].encoding == "int8:row"


def test_what_is_asked_for_is_what_is_made():
    outlier = normal(6, 40, 8)
    outlier[:, 0] += 50
    teacher = Table(embedding=outlier, logits=outlier)
    part = measured(teacher, numbered(40), embedding="int8:row", logits="int8:column")
    assert [output.encoding for output in part.outputs] == ["int8:row", "int8:column"]
    assert part.identity["encodings"] == {"embedding": "int8:row", "logits": "int8:column"}
    assert part_from_json(json.loads(json.dumps(part.to_json()))) == part


def test_the_teacher_runs_once_on_each_row_of_the_sample():
    teacher = Table(embedding=normal(7, 600, 3), logits=normal(8, 600, 4))
    measured(teacher, numbered(600), embedding="int8", logits="topk:2")
    assert sorted(teacher.asked) == [number * 600 // 256 for number in range(256)]


def test_nothing_is_known_where_no_row_has_outputs():
    teacher = Table(embedding=np.full((5, 3), np.nan), logits=np.ones((5, 2)))
    part = measured(teacher, numbered(5), embedding="int8", logits="float16")
    assert part.outputs[0].encoding == "int8:row"
    assert set(part.provenance["encoding_cost"]) == {"logits"}
    blank = Encoded([b" ", b"", None])
    part = measured(Table(embedding=np.ones((3, 2))), blank, embedding="int8")
    assert part.outputs[0].encoding == "int8:row" and part.provenance["encoding_cost"] == {}
    with pytest.raises(UsageError, match="int8:column of embedding found no sample") as error:
        measured(Table(embedding=np.ones((3, 2))), blank, embedding="int8:column")
    assert error.value.hint == "write --encode embedding=int8:row"


def write(path, teacher, source, **encode):
    """A sealed cache of a measured part."""
    objects = create_cache(path, source={})
    list(list_rows(source, objects, "train"))
    list(extract(teacher, source, objects, measured(teacher, source, **encode)))
    seal(objects)
    return objects


def outlier_table(rows=30):
    table = normal(9, rows, 6).astype(np.float32)
    table[:, 0] += 40
    table[7] = np.nan
    return table


@pytest.mark.parametrize("spec", ["int8:row", "int8:column"])
def test_a_cache_read_by_zarr_alone_and_the_formula_of_the_format(tmp_path, spec):
    table = outlier_table()
    write(tmp_path, Table(embedding=table), numbered(30), embedding=spec)
    part = json.loads((tmp_path / "train/random-text/part.json").read_bytes())
    array = zarr.open_group(tmp_path, mode="r")["train/random-text/embedding"]
    q = array[0]
    assert (array.dtype, array.fill_value, array.shape) == (np.int8, -128, (1, 30, 6))
    (output,) = part["outputs"]
    assert output["encoding"] == spec
    if spec == "int8:row":
        scale = zarr.open_group(tmp_path, mode="r")["train/random-text/embedding.scale"][0][:, None]
    else:
        scale = np.array(output["scale"], np.float32)
    decoded = np.where(q == -128, np.nan, q * scale)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(decoded).all(1)), [7])
    step = np.abs(table).max(1, keepdims=True) / 127 if spec == "int8:row" else scale
    rest = np.delete(np.arange(30), 7)
    assert (np.abs(decoded - table)[rest] <= (step * np.ones((30, 6)) * 0.5001)[rest]).all()
    reader = open_cache(tmp_path).split()
    np.testing.assert_array_equal(reader.read(np.arange(30))["embedding"].numpy(), decoded.astype(np.float32))
    assert reader.valid().tolist() == [row != 7 for row in range(30)]


def test_what_stands_on_the_disk_decides(tmp_path):
    """A run that goes on uses the scales it began with, whatever it would measure now."""
    teacher = Table(embedding=outlier_table())
    objects = write(tmp_path, teacher, numbered(30), embedding="int8")
    plan = plan_part(teacher, numbered(30), "train", encode={"embedding": "int8"})
    standing = matching_part(objects, "train", "teacher", plan.identity)
    assert standing.outputs[0].encoding == "int8:column" and plan.outputs[0].encoding == "int8"
    list(extract(teacher, numbered(30), objects, plan))


@pytest.mark.parametrize("encoding", ["int9", "topk:99", "int8:diagonal", "", "head"])
def test_an_encoding_that_is_none_is_a_corrupt_cache(tmp_path, encoding):
    objects = create_cache(tmp_path, source={})
    write_rows(objects)
    part = teacher_part(10)
    part = replace(part, outputs=(replace(part.outputs[0], encoding=encoding),))
    with pytest.raises(CorruptCacheError, match=f"train/vit|{encoding!r} is unknown"):
        written_and_read(objects, part)


def written_and_read(objects, part):
    write_part(objects, part)
    seal(objects)
    return open_cache(objects.root).split().read([0])
