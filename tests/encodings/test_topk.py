import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featurecache.encodings import make_encoding
from featurecache.errors import CorruptCacheError, UsageError
from featurecache.types import OutputSpec
from tests.contracts.encoding_contract import EncodingContract


class TestTopK(EncodingContract):
    spec, relative = "topk:4@1,2,4", 2.0**-11


class TestAllClasses(EncodingContract):
    spec, relative = "topk:9@0.5", 2.0**-11


def store(spec, logits):
    """Encoded, cast to the stored types, decoded."""
    encoding = make_encoding(spec, OutputSpec("logits", (logits.shape[1],)))
    encoded = encoding.encode(logits)
    stored = {array.name: encoded[array.name].numpy().astype(array.dtype) for array in encoding.arrays}
    return encoding, stored, encoding.decode({name: torch.from_numpy(array) for name, array in stored.items()})


def softmax(row):
    """Plain float64."""
    powers = np.exp(row - row.max())
    return powers / powers.sum()


@given(
    rows=st.integers(1, 4),
    classes=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.01, 1.0, 10.0, 300.0]),
    temperature=st.sampled_from([0.25, 1.0, 2.5, 20.0]),
    data=st.data(),
)
def test_probabilities_are_those_of_the_stored_row(rows, classes, seed, scale, temperature, data):
    k = data.draw(st.integers(1, classes))
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, scale, (rows, classes)).astype(np.float32))
    _, _, sparse = store(f"topk:{k}@{temperature}", logits)
    assert (sparse.size, sparse.temperatures) == (classes, (temperature,))
    for row in range(rows):
        full = logits[row].double().numpy()
        indices, values = sparse.indices[row].numpy(), sparse.values[row].double().numpy()
        assert len(set(indices)) == k and (np.diff(values) <= 0).all()
        assert set(full[indices]) == set(np.sort(full)[::-1][:k])
        full[indices] = full[indices].astype(np.float16)
        expected = softmax(full / temperature)
        found = np.exp(values / temperature - sparse.logsumexp[row, 0].item())
        # the logsumexp is float32: its own rounding is the only error there is
        tolerance = float(8 * np.spacing(np.float32(max(abs(full).max() / temperature, np.log(classes), 1))))
        np.testing.assert_allclose(found, expected[indices], rtol=tolerance)
        rest = np.delete(expected, indices).sum()
        assert found.sum() + rest == pytest.approx(1, abs=tolerance)
        if k == classes:
            assert found.sum() == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize(("classes", "dtype"), [(65_536, "uint16"), (65_537, "int32")])
def test_indices_are_as_small_as_the_classes_allow(classes, dtype):
    logits = torch.zeros(1, classes)
    logits[0, -1], logits[0, 5] = 9, 8
    encoding, stored, sparse = store("topk:2@1", logits)
    assert [array.dtype for array in encoding.arrays] == ["float16", dtype, "float32"]
    assert stored["logits.indices"].dtype == dtype
    assert sparse.indices.tolist() == [[classes - 1, 5]] and sparse.indices.dtype == torch.int64


def test_a_logit_beyond_float16_is_not_finite():
    _, stored, _ = store("topk:1", torch.tensor([[1e5, 0.0], [1.0, 0.0]]))
    assert np.isinf(stored["logits.values"][0]).all() and np.isinf(stored["logits.logsumexp"][0]).all()
    assert np.isfinite(stored["logits.values"][1]).all() and np.isfinite(stored["logits.logsumexp"][1]).all()


def test_a_minus_infinite_logit_below_the_top_has_no_mass():
    _, _, sparse = store("topk:1@1", torch.tensor([[1.0, 0.0, -torch.inf]]))
    assert torch.exp(sparse.values[0, 0] - sparse.logsumexp[0, 0]).item() == pytest.approx(1 / (1 + np.exp(-1)))


@pytest.mark.parametrize(
    ("spec", "full"),
    [
        ("topk:3", "topk:3@1,2,4"),
        ("topk:3@4,1,1", "topk:3@1,4"),
        ("topk:3@0.1", "topk:3@0.1"),
        ("topk:3@1.23456789", "topk:3@1.23456789"),
        ("topk:3@1.2345678,1.2345679", "topk:3@1.2345678,1.2345679"),
    ],
)
def test_spec_is_full_and_exact(spec, full):
    encoding = make_encoding(spec, OutputSpec("logits", (9,)))
    assert encoding.spec == full
    assert make_encoding(full, OutputSpec("logits", (9,))).temperatures == encoding.temperatures


@pytest.mark.parametrize("spec", ["topk", "topk:", "topk:many", "topk:2@a", "topk:2@1;2", "topk:2.5"])
def test_what_cannot_be_read(spec):
    with pytest.raises(UsageError, match="cannot read the encoding") as error:
        make_encoding(spec, OutputSpec("logits", (9,)))
    assert error.value.hint == "write topk:64, or topk:64@1,2,4"


@pytest.mark.parametrize("spec", ["topk:2@0", "topk:2@-1", "topk:2@nan", "topk:2@1,nan", "topk:2@inf"])
def test_temperatures_that_cannot_be(spec):
    with pytest.raises(UsageError, match="temperatures must be positive") as error:
        make_encoding(spec, OutputSpec("logits", (9,)))
    assert "--temperatures" in error.value.hint


@pytest.mark.parametrize(("k", "shape"), [(0, (9,)), (-1, (9,)), (10, (9,)), (1, (3, 3)), (1, ())])
def test_k_beyond_the_classes(k, shape):
    with pytest.raises(UsageError, match=f"topk:{k} needs an output with at least {k} classes"):
        make_encoding(f"topk:{k}", OutputSpec("logits", shape))


@pytest.mark.parametrize(("classes", "dtype"), [(5, np.uint16), (70_000, np.int32)])
def test_indices_are_numbers_of_classes(classes, dtype):
    encoding = make_encoding("topk:2@1", OutputSpec("logits", (classes,)))

    def check(*rows):
        encoding.check({"logits.indices": np.array(rows, dtype).reshape(-1, 2)})

    check()
    check([0, classes - 1], [3, 1])
    for wrong in (classes, np.iinfo(dtype).max, np.iinfo(dtype).min if dtype == np.int32 else 77):
        with pytest.raises(CorruptCacheError, match=rf"logits\.indices has numbers beyond its {classes:,} classes"):
            check([0, 1], [1, wrong])
