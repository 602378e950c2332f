"""Balanced embeddings against NumPy in float64: unit variance, distances, the way back, and Hadamard matrices."""

import numpy as np
import pytest
import torch

from featurecache.errors import CorruptCacheError, UsageError
from student.balance import load_balances, moments, phi_s, save_balances, standardise
from student.hadamard import hadamard

WIDTHS = [1, 2, 6, 12, 50, 64, 100, 384]
"""Of these 6, 50 and 100 have no Hadamard matrix by these constructions."""


def vectors(width, rows=800, seed=0):
    """float32 values whose dimensions hang together and differ in scale by a thousand."""
    draw = np.random.default_rng(seed)
    mixed = draw.normal(size=(rows, width)) @ draw.normal(size=(width, width))
    return torch.from_numpy(mixed * 10.0 ** draw.uniform(-2, 1, width) + draw.normal(size=width) * 5).float()


def found(values, *, covariance=True):
    return moments(values.split(97), covariance=covariance)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 12, 20, 28, 36, 40, 60, 192, 384, 768, 1000, 1024, 1280])
def test_hadamard_matrices(size):
    matrix = hadamard(size)
    assert set(np.unique(matrix)) <= {-1, 1}
    exact = matrix.astype(float)
    assert (exact @ exact.T == size * np.eye(size)).all()


@pytest.mark.parametrize("size", [-4, 0, 3, 6, 50, 92, 100])
def test_sizes_without_one(size):
    assert hadamard(size) is None


def test_moments_are_those_of_all_rows_at_once_and_exact_far_from_zero():
    values = vectors(5).double() * 1e-3 + 1e6
    exact = values.numpy()
    whole, each = found(values), found(values, covariance=False)
    np.testing.assert_allclose(whole.mean, exact.mean(0), rtol=1e-14)
    np.testing.assert_allclose(whole.covariance, np.cov(exact.T, bias=True), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(each.covariance, exact.var(0), rtol=1e-6)
    assert whole.count == each.count == 800


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("make", [standardise, phi_s])
def test_every_dimension_has_mean_0_and_variance_1(make, width):
    values = vectors(width)
    balanced = make(found(values)).apply(values).double().numpy()
    np.testing.assert_allclose(balanced.var(0), 1, rtol=2e-5)
    np.testing.assert_allclose(balanced.mean(0), 0, atol=1e-3)


@pytest.mark.parametrize("width", WIDTHS)
def test_phi_s_scales_all_distances_alike(width):
    values = vectors(width)
    balanced = phi_s(found(values)).apply(values).double()
    phi = np.sqrt(values.double().numpy().var(0).sum() / width)
    assert torch.pdist(balanced[:60]).mul(phi).numpy() == pytest.approx(torch.pdist(values[:60].double()).numpy(), 1e-4)


@pytest.mark.parametrize("width", [6, 384])
@pytest.mark.parametrize("make", [standardise, phi_s])
def test_the_way_back_and_a_head_that_is_moved_there(make, width):
    values = vectors(width)
    balance = make(found(values))
    torch.testing.assert_close(balance.inverse(balance.apply(values)), values, rtol=1e-4, atol=1e-2)
    draw = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(3, width, generator=draw), torch.randn(3, generator=draw)
    moved, shifted = balance.classifier(weight, bias)
    logits = values.double() @ weight.double().T + bias
    again = balance.apply(values).double() @ moved.double().T + shifted
    torch.testing.assert_close(again, logits, rtol=1e-3, atol=1e-2)


def test_a_constant_dimension_is_left_at_zero():
    values = vectors(4)
    values[:, 2] = 0.1
    balanced = standardise(found(values)).apply(values)
    assert (balanced[:, 2].abs() < 1e-6).all() and balanced.isfinite().all()
    np.testing.assert_allclose(phi_s(found(values)).apply(values).double().numpy().var(0), 1, rtol=1e-5)


@pytest.mark.parametrize("make", [standardise, phi_s])
def test_embeddings_that_are_all_the_same_are_refused(make):
    with pytest.raises(UsageError, match="is the same for every training row"):
        make(found(torch.full((9, 4), 0.5)))


@pytest.mark.parametrize("batches", [[], [torch.full((2, 3), float("nan"))]])
def test_nothing_to_balance(batches):
    with pytest.raises(UsageError, match="not there or not finite"):
        moments(batches, covariance=True)


def test_saved_and_loaded(tmp_path):
    values = vectors(12)
    balances = {"a/embedding": phi_s(found(values)), "embedding": standardise(found(values))}
    save_balances(tmp_path / "balance.safetensors", balances)
    loaded = load_balances(tmp_path / "balance.safetensors")
    assert loaded.keys() == balances.keys()
    assert all(torch.equal(loaded[name].apply(values), balances[name].apply(values)) for name in balances)
    assert load_balances(tmp_path / "none.safetensors") == {}
    (tmp_path / "balance.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(CorruptCacheError, match="cannot read"):
        load_balances(tmp_path / "balance.safetensors")
