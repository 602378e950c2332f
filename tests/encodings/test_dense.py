import pytest
import torch

from featurecache.encodings import make_encoding
from featurecache.errors import UnknownNameError, UsageError
from featurecache.types import ArraySpec, OutputSpec
from tests.contracts.encoding_contract import EncodingContract


class TestFloat32(EncodingContract):
    spec, relative = "float32", 0.0


class TestFloat16(EncodingContract):
    spec, relative = "float16", 2.0**-11


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_array_has_the_name_and_shape_of_its_output(dtype):
    (array,) = make_encoding(dtype, OutputSpec("embedding", (8,))).arrays
    assert array == ArraySpec("embedding", dtype, (8,), ("feature",))
    (array,) = make_encoding(dtype, OutputSpec("tokens", (4, 8))).arrays
    assert (array.shape, array.dimensions) == ((4, 8), ("axis0", "axis1"))


def test_float16_ends_at_65504():
    encoding = make_encoding("float16", OutputSpec("embedding", (4,)))
    encoded = encoding.encode(torch.tensor([[65504.0, 65519.0, 65520.0, -1e9]]))["embedding"]
    assert encoded.tolist() == [[65504.0, 65504.0, float("inf"), float("-inf")]]


@pytest.mark.parametrize(("spec", "hint"), [("float61", "'float16'"), ("top", "'topk'"), ("zzz", "known: float16,")])
def test_unknown_encoding(spec, hint):
    with pytest.raises(UnknownNameError) as error:
        make_encoding(spec, OutputSpec("embedding", (8,)))
    assert hint in error.value.hint


def test_options_of_an_encoding_that_has_none():
    with pytest.raises(UsageError, match="float16 takes no option, got 'float16:3'"):
        make_encoding("float16:3", OutputSpec("embedding", (8,)))
