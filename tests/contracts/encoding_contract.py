"""What every encoding must do, however it keeps an output."""

import numpy as np
import pytest
import torch

from featurecache.encodings import ENCODINGS, Encoding, make_encoding
from featurecache.types import OutputSpec, SparseLogits


class EncodingContract:
    """Subclass it and say which spec; `relative` is the largest relative error of a stored value."""

    spec: str
    relative: float

    def output(self) -> OutputSpec:
        return OutputSpec("logits", (9,))

    @pytest.fixture
    def encoding(self) -> Encoding:
        return make_encoding(self.spec, self.output())

    @pytest.fixture
    def values(self) -> torch.Tensor:
        return torch.randn(5, 9, generator=torch.Generator().manual_seed(0)) * 4

    def test_is_in_the_table(self, encoding):
        assert ENCODINGS.get(encoding.spec.partition(":")[0]) is type(encoding)

    def test_its_spec_reads_back_as_itself(self, encoding):
        again = make_encoding(encoding.spec, self.output(), temperatures=(7.0,))
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
        decoded = encoding.decode({name: torch.from_numpy(array) for name, array in stored.items()})
        exact = values.double()
        if isinstance(decoded, SparseLogits):
            exact, decoded = exact.gather(1, decoded.indices), decoded.values
        assert decoded.dtype == torch.float32
        assert ((decoded.double() - exact).abs() <= self.relative * exact.abs()).all()

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
    def test_what_is_not_finite_stays_so(self, encoding, values, bad):
        values[2, 3] = bad
        encoded = encoding.encode(values)
        finite = np.stack(
            [array.isfinite().reshape(5, -1).all(1).numpy() for array in encoded.values() if array.is_floating_point()]
        ).all(0)
        assert finite.tolist() == [True, True, False, True, True]
