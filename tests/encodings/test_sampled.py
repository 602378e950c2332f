import math
from collections import Counter

import numpy as np
import pytest
import torch

from featurecache.encodings import make_encoding, sampled
from featurecache.encodings.sampled import Sampled, _drawn, _uniforms
from featurecache.errors import CorruptCacheError, UsageError
from featurecache.types import OutputSpec
from tests.contracts.encoding_contract import EncodingContract

LOGITS = np.array([3.0, 1.5, 1.25, 0.0, -0.5, -1.0, -2.0, -4.0])


def softmax(row, temperature=1.0):
    powers = np.exp(np.asarray(row, np.float64) / temperature)
    return powers / powers.sum()


class SampledContract(EncodingContract):
    def test_is_in_the_table(self, encoding):
        assert isinstance(encoding, Sampled)

    def test_round_trip_through_stored_arrays(self, encoding, values):
        encoded = encoding.encode(values)
        stored = {array.name: encoded[array.name].numpy().astype(array.dtype) for array in encoding.arrays}
        encoding.check(stored)
        decoded = encoding.decode({name: torch.from_numpy(array) for name, array in stored.items()})
        assert decoded.weights.dtype == torch.float32 and decoded.indices.dtype == torch.int64
        assert (decoded.size, decoded.temperature) == (9, encoding.temperature)
        chances = np.stack([softmax(row, encoding.temperature) for row in values.numpy()])
        np.testing.assert_allclose(decoded.entropy, -(chances * np.log(chances)).sum(1), rtol=2e-3)
        np.testing.assert_allclose(decoded.weights.sum(1), 1, rtol=1e-6)
        counts = stored["logits.counts"].astype(int)
        exact = decoded.indices.shape[1] - counts.shape[1]
        for row in range(len(values)):
            used = counts[row] > 0
            ids = decoded.indices[row, exact:].numpy()[used].tolist()
            assert counts[row].sum() == 20 and len(set(ids)) == len(ids)
            assert sorted(counts[row], reverse=True) == counts[row].tolist()
            top = np.argsort(-values[row].numpy())[:exact].tolist()
            assert decoded.indices[row, :exact].tolist() == top and not set(top) & set(ids)
            rest = 1 - chances[row][top].sum()
            np.testing.assert_allclose(decoded.weights[row, :exact], chances[row][top], rtol=2e-3)
            np.testing.assert_allclose(decoded.weights[row, exact:], rest * counts[row] / 20, rtol=5e-3, atol=1e-6)


class TestSampled(SampledContract):
    spec = "sampled:20@1"


class TestSampledAtAnotherTemperature(SampledContract):
    spec = "sampled:20@2.5"


class TestTopKAndSampledTail(SampledContract):
    spec = "topk:3+sampled:20@2"


def estimates(spec, rows=4000):
    """float64 (rows, 8): what rows of equal probabilities and different logits are kept as, all classes."""
    shifted = LOGITS + np.arange(rows)[:, None] / 2**10  # exact in float32, so each row has the same probabilities
    encoding = make_encoding(spec, OutputSpec("logits", (8,)))
    decoded = encoding.decode(encoding.encode(torch.from_numpy(shifted.astype(np.float32))))
    whole = torch.zeros(rows, 8, dtype=torch.float64)
    return whole.scatter_add(1, decoded.indices, decoded.weights.double()).numpy()


@pytest.mark.parametrize(("draws", "temperature"), [(5, 1.0), (50, 2.0)])
def test_estimates_are_unbiased_and_vary_as_independent_draws_do(draws, temperature):
    found = estimates(f"sampled:{draws}@{temperature}")
    p = softmax(LOGITS, temperature)
    variance = p * (1 - p) / draws
    z = (found.mean(0) - p) / np.sqrt(variance / len(found))
    assert abs(z).max() < 3.5  # of at least 20,000 draws
    often = p > 0.01
    assert abs(found.var(0) / variance - 1)[often].max() < 0.15


def test_two_draws_of_a_row_are_independent():
    """Of 3,000 pairs of draws from two equal classes, half are equal ones."""
    rows = torch.arange(3000.0)[:, None].expand(-1, 2)
    counts = make_encoding("sampled:2@1", OutputSpec("logits", (2,))).encode(rows)["logits.counts"]
    equal = int((counts[:, 0] == 2).sum())
    assert abs(equal - 1500) < 3.5 * math.sqrt(3000 / 4)


def test_an_exact_top_is_unbiased_too_and_varies_less():
    found, plain = estimates("topk:2+sampled:5@1"), estimates("sampled:5@1")
    p = softmax(LOGITS)
    rest = p[2:].sum()
    variance = p[2:] * (rest - p[2:]) / 5
    np.testing.assert_allclose(found[:, :2], np.broadcast_to(p[:2], (len(found), 2)), rtol=2e-3)
    # float16 rounds the two that are kept, and so the mass of the others, by about 1e-3 of itself
    z = (found[:, 2:].mean(0) - p[2:]) / np.sqrt(variance / len(found))
    assert abs(z).max() < 3.5
    often = p > 0.01
    assert abs(found.var(0)[2:] / variance - 1)[often[2:]].max() < 0.15
    assert (found.var(0) < plain.var(0))[often].all()


def test_no_class_of_zero_probability_is_drawn_at_the_ends():
    weights = torch.tensor([[0.0, 0.1, 0.0, 0.7, 0.2, 0.0]], dtype=torch.float64)
    ends = torch.tensor([[0.0, 1 - 2.0**-53, 0.05, 0.5]], dtype=torch.float64)
    assert _drawn(weights, ends).tolist() == [[1, 4, 1, 3]]
    for count in range(1, 300):  # sums that are rounded up and down
        third = torch.full((1, count), 1 / 3, dtype=torch.float64)
        third[:, -1] = 0
        assert int(_drawn(third, ends).max()) == max(count - 2, 0)
    logits = torch.tensor([[-torch.inf, 0.0, -2000.0, 1.0, -torch.inf]])
    encoded = make_encoding("sampled:500@1", OutputSpec("logits", (5,))).encode(logits)
    drawn = encoded["logits.indices"][encoded["logits.counts"] > 0].tolist()
    assert sorted(drawn) == [1, 3] and encoded["logits.entropy"].isfinite().all()


def test_a_tail_without_mass_weighs_nothing():
    encoding = make_encoding("topk:1+sampled:4@1", OutputSpec("logits", (3,)))
    decoded = encoding.decode(encoding.encode(torch.tensor([[900.0, 0.0, -5.0]])))
    assert decoded.weights[0].tolist() == [1, 0, 0]


def test_the_generator_is_splitmix64():
    """Its first numbers for the seed 1234567, as published with many implementations."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    found = _uniforms(torch.tensor([1234567, 0]), 5)
    assert found[0].tolist() == [(number >> 11) / 2**53 for number in known]


def test_draws_follow_the_row_alone(monkeypatch):
    values = torch.randn(40, 9, generator=torch.Generator().manual_seed(3))
    encoding = make_encoding("sampled:30@1", OutputSpec("logits", (9,)))
    first = encoding.encode(values)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(4))
    monkeypatch.setattr(sampled, "_ELEMENTS_AT_ONCE", 50)
    again = encoding.encode(values[order])
    assert all(torch.equal(array[order], again[name]) for name, array in first.items())
    twice = encoding.encode(values[:1].repeat(2, 1))
    assert torch.equal(twice["logits.counts"][0], twice["logits.counts"][1])
    other = values[:1].clone()
    other[0, 8] = torch.nextafter(other[0, 8], torch.tensor(9.0))  # as little as a logit can change
    pair = [encoding.encode(row) for row in (values[:1], other)]
    assert len({tuple(each["logits.counts"][0].tolist()) for each in pair}) == 2


def test_places_that_are_not_used_repeat_a_class_and_count_nothing():
    encoded = make_encoding("sampled:9@0.01", OutputSpec("logits", (20,))).encode(torch.arange(20.0)[None])
    assert encoded["logits.indices"].tolist() == [[19] * 9] and encoded["logits.counts"].tolist() == [[9] + [0] * 8]


@pytest.mark.parametrize(
    ("spec", "dtypes", "shapes"),
    [
        ("sampled:5@1", ["uint16", "uint8", "float32"], [(5,), (5,), ()]),
        ("sampled:256@1", ["uint16", "uint16", "float32"], [(40,), (40,), ()]),
        ("topk:3+sampled:255@1", ["float16", "float32", "uint16", "uint8", "float32"], [(3,), (1,), (40,), (37,), ()]),
    ],
)
def test_no_more_places_than_classes_or_draws(spec, dtypes, shapes):
    arrays = make_encoding(spec, OutputSpec("logits", (40,))).arrays
    assert [array.dtype for array in arrays] == dtypes and [array.shape for array in arrays] == shapes


@pytest.mark.parametrize(
    ("spec", "temperatures", "full"),
    [
        ("sampled:5", (1.0, 2.0, 4.0), "sampled:5@1"),
        ("sampled:5", (4.0,), "sampled:5@4"),
        ("sampled:05@0.10", (4.0,), "sampled:5@0.1"),
        ("topk:2+sampled:5@2", (4.0,), "topk:2+sampled:5@2"),
    ],
)
def test_spec_is_full(spec, temperatures, full):
    assert make_encoding(spec, OutputSpec("logits", (9,)), temperatures=temperatures).spec == full


@pytest.mark.parametrize(
    "spec",
    [
        *("sampled", "sampled:", "sampled:x", "sampled:5@1,2", "sampled:5@", "sampled:-5", "sampled:" + "9" * 5000),
        *("topk:2@1+sampled:5", "topk:2+", "topk:+sampled:2", "topk:2+topk:2", "sampled:5+topk:2"),
    ],
)
def test_what_cannot_be_read(spec):
    with pytest.raises(UsageError, match="cannot read the encoding") as error:
        make_encoding(spec, OutputSpec("logits", (9,)))
    assert "sampled:50@1, with one temperature" in error.value.hint


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sampled:0", "draws 0 times"),
        ("sampled:65536", "draws 65,536 times"),
        ("topk:9+sampled:5", "needs an output with more than 9 classes; logits has 9"),
        ("sampled:5@0", "temperatures must be positive"),
        ("sampled:5@nan", "temperatures must be positive"),
        ("sampled:5@inf", "temperatures must be positive"),
    ],
)
def test_what_cannot_be(spec, message):
    with pytest.raises(UsageError, match=message):
        make_encoding(spec, OutputSpec("logits", (9,)))


def test_outputs_that_are_no_classes():
    with pytest.raises(UsageError, match="embedding has 0"):
        make_encoding("sampled:5", OutputSpec("embedding", (3, 3)))


@pytest.mark.parametrize("spec", ["sampled:2@1", "topk:1+sampled:2@1"])
def test_numbers_of_a_stranger(spec):
    """Indices beyond the classes are refused; any counts are just weights."""
    encoding = make_encoding(spec, OutputSpec("logits", (5,)))
    arrays = {array.name: np.ones((2, *array.shape), array.dtype) for array in encoding.arrays}
    arrays["logits.counts"][:] = 255
    encoding.check(arrays)
    decoded = encoding.decode({name: torch.from_numpy(array) for name, array in arrays.items()})
    assert decoded.weights.isfinite().all() and decoded.weights.max() <= 255
    arrays["logits.indices"][1, 1] = 5
    with pytest.raises(CorruptCacheError, match=r"logits\.indices has numbers beyond its 5 classes"):
        encoding.check(arrays)


def test_counts_are_those_of_plain_loops():
    """The inverse of the distribution function, one draw at a time in Python."""
    values = torch.from_numpy(LOGITS.astype(np.float32))[None]
    encoded = make_encoding("sampled:40@1", OutputSpec("logits", (8,))).encode(values)
    uniforms = _uniforms(sampled._seeds(values), 40)[0].tolist()
    p, drawn = softmax(LOGITS), Counter()
    for u in uniforms:
        drawn[next(c for c in range(8) if u < math.fsum(p[: c + 1]))] += 1
    pairs = zip(encoded["logits.indices"][0].tolist(), encoded["logits.counts"][0].tolist(), strict=True)
    assert {index: count for index, count in pairs if count} == dict(drawn)
