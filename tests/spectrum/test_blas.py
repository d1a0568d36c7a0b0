"""Whose products and reductions are taken: right ones only, the fastest of them, and as was asked."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import tailwise as tw
from tailwise.audits.cache import Cache
from tailwise.audits.work import blas_of
from tailwise.spectrum.solve import solve
from tailwise.spectrum.solvers import blas, openblas
from tailwise.spectrum.solvers.blas import Blas, BlasChoice
from tailwise.spectrum.solvers.gram import DenseMatrix, gram

BLAS = openblas.library()
needs_openblas = pytest.mark.skipif(BLAS is None, reason="no OpenBLAS with reductions in two stages is loaded")
PRECISIONS = ("float64", "float32")


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch):
    monkeypatch.setattr(blas, "_MEASURED", {})


def weights(rows: int, cols: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows + cols), dtype=torch.float64).to(dtype)


@needs_openblas
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(3, 3), (200, 9), (9, 200), (700, 500), (500, 1300), (513, 512)])
@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.bfloat16])
def test_spectra_of_both_libraries_agree_within_their_bounds(precision, shape, stored):
    W = weights(*shape, stored)
    one, other = (solve(W, precision=precision, blas=Blas(name, name)) for name in ("torch", "openblas"))
    assert np.abs(one.eigenvalues - other.eigenvalues).max() <= one.error_bound + other.error_bound
    assert (one.order_z is None) == (other.order_z is None)


@needs_openblas
@pytest.mark.parametrize("m", [1, 2, 7, 8, 9, 47, 48, 49, 95, 97, 600])
def test_the_reduction_agrees_with_lapack_whatever_the_size(m):
    W = weights(m + 3, m)
    triangle = (W.T @ W).tril()
    known = torch.linalg.eigvalsh(triangle, UPLO="L")
    found = openblas.eigenvalues(torch.stack([triangle, 2 * triangle]))
    assert (found - torch.stack([known, 2 * known])).abs().max() <= 1e-14 * math.sqrt(m) * 2 * known[-1]


@needs_openblas
def test_a_block_is_multiplied_as_it_lies():
    W = weights(300, 40)
    for block in (W, W.T.contiguous().T, W[::2], W[:, ::2], torch.randn(300, 90, dtype=torch.float64)[:, 20:60]):
        m = block.shape[1]
        triangle = torch.ones(m, m, dtype=torch.float64)
        openblas.add_product(triangle, block)
        assert torch.allclose(triangle.tril(), (1 + block.T @ block).tril())
        assert bool((triangle.triu(1) == torch.ones(m, m).triu(1)).all())


@needs_openblas
def test_the_threads_of_the_library_are_given_back():
    before = BLAS.controller.get_num_threads()
    openblas.eigenvalues(torch.eye(64, dtype=torch.float64)[None])
    assert BLAS.controller.get_num_threads() == before


@needs_openblas
def test_both_libraries_are_right_and_have_a_time():
    found = blas.measured(96, torch.float64)
    assert {step: set(times) for step, times in found.items()} == {
        "product": {"torch", "openblas"},
        "reduction": {"torch", "openblas"},
    }
    assert all(0 < value < math.inf for times in found.values() for value in times.values())


@needs_openblas
def test_a_library_that_is_wrong_or_raises_is_never_taken(monkeypatch):
    monkeypatch.setattr(openblas, "add_product", lambda triangle, block: None)
    monkeypatch.setattr(openblas, "eigenvalues", lambda batch: 1 / 0)
    found = blas.measured(96, torch.float64)
    assert {step: set(times) for step, times in found.items()} == {"product": {"torch"}, "reduction": {"torch"}}
    assert BlasChoice()(4096, "float64") == Blas()


@needs_openblas
@pytest.mark.parametrize(("share", "taken"), [(0.5, "openblas"), (0.95, "torch"), (2.0, "torch")])
def test_the_clearly_fastest_is_taken_and_measured_once(monkeypatch, tmp_path, share, taken):
    times = []

    def clocked(size, dtype):
        times.append((size, dtype))
        return {"product": {"torch": 1.0, "openblas": share}, "reduction": {"torch": 1.0, "openblas": 2.0}}

    monkeypatch.setattr(blas, "measured", clocked)
    choose = blas_of("auto", Cache(tmp_path))
    assert choose(4096, "float64") == choose(1600, "float64") == Blas(taken, "torch")
    assert choose(100, "float64") == Blas()  # too small for a gain
    assert times == [(2048, torch.float64)]
    monkeypatch.setattr(blas, "_MEASURED", {})
    assert blas_of("auto", Cache(tmp_path))(2000, "float64") == Blas(taken, "torch")
    assert len(times) == 1
    assert choose.told == ("" if taken == "torch" else f"products by openblas ({BLAS.name})")


@needs_openblas
def test_what_is_ahead_for_small_matrices_is_not_taken_for_large_ones(monkeypatch, tmp_path):
    ahead = {512: 0.5, 1024: 0.8, 2048: 1.4}

    def clocked(size, _):
        steps = {"torch": 1.0, "openblas": ahead[size]}
        return {"product": {"torch": 1.0, "openblas": 1.0}, "reduction": steps}

    monkeypatch.setattr(blas, "measured", clocked)
    choose = blas_of("auto", Cache(tmp_path))
    taken = {m: choose(m, "float64").reduction for m in (576, 1024, 1400, 1536, 4096, 8192)}
    assert taken == {576: "openblas", 1024: "openblas", 1400: "openblas", 1536: "torch", 4096: "torch", 8192: "torch"}


@needs_openblas
@pytest.mark.parametrize("noted", [[], {"product": {}}, {"product": {"torch": "1"}, "reduction": {}}, "text", 3])
def test_a_note_that_is_damaged_is_measured_again(monkeypatch, noted):
    known = {"product": {"torch": 1.0}, "reduction": {"torch": 1.0}}
    monkeypatch.setattr(blas, "measured", lambda *_: known)
    kept = []
    choose = BlasChoice("auto", lambda _: noted, lambda _, value: kept.append(value))
    assert choose(4096, "float64") == Blas()
    assert kept == [known]


def test_without_such_a_library_torch_computes_and_asking_for_it_is_one_error(monkeypatch):
    monkeypatch.setattr(openblas, "library", lambda: None)
    assert BlasChoice()(4096, "float64") == Blas()
    with pytest.raises(tw.UsageError, match="no OpenBLAS"):
        tw.audit({"up.weight": np.eye(20)}, use_cache=False, blas="openblas")


@needs_openblas
def test_what_was_asked_for_is_taken_and_stands_in_the_audit():
    given = {"layers.0.mlp.up_proj.weight": weights(60, 40)}
    by_torch = tw.audit(given, use_cache=False, blas="torch")
    other = tw.audit(given, use_cache=False, blas="openblas")
    assert "blas" not in by_torch.provenance.versions
    assert other.provenance.versions["blas"] == f"products by openblas, reductions by openblas ({BLAS.name})"
    (one,), (two,) = by_torch, other
    assert two.alpha == pytest.approx(one.alpha, rel=1e-9)


@needs_openblas
def test_the_gram_matrix_of_a_stream_is_the_same_by_either():
    W = DenseMatrix(weights(3000, 130, torch.bfloat16))
    one, other = (gram(W, torch.float64, torch.device("cpu"), add=Blas(name).add) for name in ("torch", "openblas"))
    assert torch.allclose(one.tril(), other.tril(), rtol=1e-13)
