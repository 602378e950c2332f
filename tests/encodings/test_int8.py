"""int8 against plain numpy loops in float64, and against the bounds that it promises."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featurecache.encodings import holds_values, make_encoding
from featurecache.encodings.int8 import column_scales
from featurecache.errors import UsageError
from featurecache.types import ArraySpec, OutputSpec
from tests.contracts.encoding_contract import EncodingContract

ROUNDING = 1e-5
"""Of float32 arithmetic, as a part of a step."""


class TestRow(EncodingContract):
    spec = "int8:row"

    def allowed(self, exact):
        return (exact.abs().amax(1, keepdim=True) / 127 * (0.5 + ROUNDING)).expand_as(exact)


class TestUndecidedIsByRow(TestRow):
    spec = "int8"


class TestColumn(EncodingContract):
    spec, scale = "int8:column", (0.25, 0.125, 0.2, 0.3, 0.1, 0.15, 0.4, 0.35, 0.22)

    def allowed(self, exact):
        return torch.tensor(self.scale).double().expand_as(exact) * (0.5 + ROUNDING)


def rounded(number):
    """To the nearest whole number, halves to the even one."""
    low = math.floor(number)
    return low + (number - low > 0.5 or (number - low == 0.5 and low % 2 == 1))


def stored_by_row(values):
    """(q, scale) of a row, the way docs/format.md says it."""
    scale = np.float32(max(abs(v) for v in values)) / np.float32(127)
    return [0 if scale == 0 else max(-127, min(127, rounded(float(np.float32(v) / scale)))) for v in values], scale


def some(seed, shape, size=1.0):
    return torch.from_numpy((np.random.default_rng(seed).normal(size=shape) * size).astype(np.float32))


def test_by_row_as_a_plain_loop_says():
    values = some(0, (40, 7), 3.0)
    values[3] = 0
    values[5] = torch.tensor([127.0, -127.0, 0.5, 1.5, 2.5, -0.5, -1.5])  # halves, at a scale of exactly 1
    encoding = make_encoding("int8:row", OutputSpec("embedding", (7,)))
    assert encoding.arrays == (
        ArraySpec("embedding", "int8", (7,), ("feature",)),
        ArraySpec("embedding.scale", "float32"),
    )
    encoded = encoding.encode(values)
    decoded = encoding.decode(encoded).double().numpy()
    assert (encoded["embedding"].dtype, encoded["embedding.scale"].dtype) == (torch.int8, torch.float32)
    for row in range(40):
        expected, scale = stored_by_row(values[row].tolist())
        assert encoded["embedding"][row].tolist() == expected
        assert encoded["embedding.scale"][row].item() == scale
        np.testing.assert_allclose(decoded[row], [q * float(scale) for q in expected], rtol=1e-6)
    assert encoded["embedding"][5].tolist() == [127, -127, 0, 2, 2, 0, -2]
    assert (decoded[3] == 0).all()


def test_by_column_clips_what_is_beyond_its_scale():
    encoding = make_encoding("int8:column", OutputSpec("logits", (3,)), scale=(0.5, 0.01, 2.0))
    assert encoding.arrays == (ArraySpec("logits", "int8", (3,), ("class",)),)
    values = torch.tensor([[1.0, 0.024, -3.0], [70.0, -9.0, 254.0], [0.3, 0.0, -255.1]])
    encoded = encoding.encode(values)
    assert encoded["logits"].tolist() == [[2, 2, -2], [127, -127, 127], [1, 0, -127]]
    expected = [[1.0, 0.02, -4.0], [63.5, -1.27, 254.0], [0.5, 0.0, -254.0]]
    np.testing.assert_allclose(encoding.decode(encoded).numpy(), expected, rtol=1e-6)


SHAPES = st.sampled_from([(1,), (5,), (2, 3)])
SIZES = st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e30])


@given(rows=st.integers(1, 5), shape=SHAPES, seed=st.integers(0, 2**32 - 1), size=SIZES)
def test_no_value_is_further_off_than_half_a_step_of_its_row(rows, shape, seed, size):
    values = some(seed, (rows, *shape), size)
    encoding = make_encoding("int8:row", OutputSpec("tokens", shape))
    decoded = encoding.decode(encoding.encode(values))
    error = np.abs(decoded.double().numpy() - values.double().numpy()).reshape(rows, -1)
    step = np.abs(values.double().numpy()).reshape(rows, -1).max(1, keepdims=True) / 127
    assert (error <= step * (0.5 + ROUNDING)).all()


@given(rows=st.integers(1, 5), shape=SHAPES, seed=st.integers(0, 2**32 - 1), size=SIZES)
def test_by_column_the_same_within_the_scale_and_the_edge_beyond_it(rows, shape, seed, size):
    values = some(seed, (rows, *shape), size)
    scale = np.random.default_rng(seed).uniform(0.001, 0.05, math.prod(shape)) * size
    encoding = make_encoding("int8:column", OutputSpec("tokens", shape), scale=scale.tolist())
    decoded = encoding.decode(encoding.encode(values)).double().numpy().reshape(rows, -1)
    exact = values.double().numpy().reshape(rows, -1)
    nearest = np.clip(exact, -127 * scale, 127 * scale)
    assert (np.abs(decoded - nearest) <= scale * (0.5 + 2 * ROUNDING)).all()


def test_rows_without_values():
    for spec, scale in (("int8:row", ()), ("int8:column", (1.0, 1.0))):
        encoding = make_encoding(spec, OutputSpec("embedding", (2,)), scale=scale)
        encoded = encoding.encode(torch.tensor([[1.0, 2.0], [torch.nan, 1.0], [torch.inf, 1.0], [1.0, -torch.inf]]))
        assert encoded["embedding"][1:].tolist() == [[-128, -128]] * 3
        assert holds_values({name: array.numpy() for name, array in encoded.items()}).tolist() == [True] + [False] * 3
        assert encoding.decode(encoded).isnan().all(1).tolist() == [False, True, True, True]


def test_the_smallest_numbers_do_not_divide_by_zero():
    encoding = make_encoding("int8:row", OutputSpec("embedding", (2,)))
    tiny = torch.tensor([[1e-45, 0.0], [1e-42, -1e-42]])
    assert (encoding.decode(encoding.encode(tiny)) - tiny).abs().max() <= 1e-44


def test_scales_of_columns_reach_half_as_far_again_as_the_sample():
    values = torch.tensor([[1.0, 0.0, -4.0], [-2.0, 0.0, 3.0]])
    first, last = 2 * 1.5 / 127, 4 * 1.5 / 127
    # the column without any value gets the mean of all three
    np.testing.assert_allclose(column_scales(values), [first, (first + last) / 3, last], rtol=1e-5)
    assert all(scale == float(f"{scale:.6g}") for scale in column_scales(some(0, (9, 50))))


def test_what_int8_cannot_be():
    output = OutputSpec("embedding", (3,))
    with pytest.raises(UsageError, match="int8 has a scale for each row or column, not 'rows'") as error:
        make_encoding("int8:rows", output)
    assert "int8:row" in error.value.hint
    with pytest.raises(UsageError, match="embedding has 3 columns and 2 scales"):
        make_encoding("int8:column", output, scale=(1.0, 2.0))
    with pytest.raises(UsageError, match="int8:column can have 65,536 columns, not 65,537"):
        make_encoding("int8:column", OutputSpec("embedding", (65_537,)))
    with pytest.raises(UsageError, match="int8:column of embedding has no scales yet"):
        make_encoding("int8:column", output).encode(torch.zeros(1, 3))
