"""What every encoding must do, however it keeps an output."""

import numpy as np
import pytest
import torch

from featurecache.encodings import ENCODINGS, Encoding, holds_values, make_encoding
from featurecache.types import OutputSpec, SampledLogits, TopLogits


class EncodingContract:
    """Subclass it and say which spec; `relative` is the largest relative error of a stored value.

    An encoding whose error is bounded another way overrides `allowed`; one with scales has them in `scale`.
    """

    spec: str
    relative: float = 0.0
    scale: tuple[float, ...] = ()

    def allowed(self, exact: torch.Tensor) -> torch.Tensor:
        """float64 (rows, classes): the largest error that each value of exact rows may have."""
        return self.relative * exact.abs()

    def output(self) -> OutputSpec:
        return OutputSpec("logits", (9,))

    @pytest.fixture
    def encoding(self) -> Encoding:
        return make_encoding(self.spec, self.output(), scale=self.scale)

    @pytest.fixture
    def values(self) -> torch.Tensor:
        return torch.randn(5, 9, generator=torch.Generator().manual_seed(0)) * 4

    def test_is_in_the_table(self, encoding):
        assert ENCODINGS.get(encoding.spec.partition(":")[0]) is type(encoding)

    def test_its_spec_reads_back_as_itself(self, encoding):
        again = make_encoding(encoding.spec, self.output(), temperatures=(7.0,), scale=self.scale)
        assert (again.spec, again.arrays) == (encoding.spec, encoding.arrays)

    def test_arrays_are_as_declared(self, encoding, values):
        encoded = encoding.encode(values)
        assert list(encoded) == [array.name for array in encoding.arrays]
        for array in encoding.arrays:
            assert array.name == "logits" or array.name.startswith("logits.")
            assert encoded[array.name].shape == (5, *array.shape)
            assert len(array.dimensions) == len(array.shape)
            stored = encoded[array.name].numpy()
            assert (stored.astype(array.dtype) == stored).all()  # nothing is lost when it is written

    def test_round_trip_through_stored_arrays(self, encoding, values):
        stored = {a.name: encoding.encode(values)[a.name].numpy().astype(a.dtype) for a in encoding.arrays}
        encoding.check(stored)
        decoded = encoding.decode({name: torch.from_numpy(array) for name, array in stored.items()})
        exact = values.double()
        allowed = self.allowed(exact)
        if isinstance(decoded, TopLogits):
            exact, allowed = exact.gather(1, decoded.indices), allowed.gather(1, decoded.indices)
            decoded = decoded.values
        assert decoded.dtype == torch.float32
        assert ((decoded.double() - exact).abs() <= allowed).all()

    def test_rows_are_encoded_alone(self, encoding, values):
        together = encoding.encode(values)
        for row in range(len(values)):
            alone = encoding.encode(values[row : row + 1])
            assert all(torch.equal(alone[name][0], array[row]) for name, array in together.items())

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_takes_any_floating_point(self, encoding, values, dtype):
        from_exact = encoding.encode(values.to(dtype).float())
        assert all(torch.equal(array, from_exact[name]) for name, array in encoding.encode(values.to(dtype)).items())

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_what_is_not_finite_has_no_values(self, encoding, values, bad):
        values[2, 3] = bad
        encoded = encoding.encode(values)
        held = holds_values({name: array.numpy() for name, array in encoded.items()})
        assert held.tolist() == [True, True, False, True, True]

    def test_fill_values_decode_to_nan(self, encoding):
        filled = {a.name: torch.from_numpy(np.full((2, *a.shape), a.fill, a.dtype)) for a in encoding.arrays}
        assert not holds_values({name: array.numpy() for name, array in filled.items()}).any()
        decoded = encoding.decode(filled)
        decoded = decoded.values if isinstance(decoded, TopLogits) else decoded
        assert (decoded.weights if isinstance(decoded, SampledLogits) else decoded).isnan().all()
