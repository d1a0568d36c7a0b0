"""The leading directions against a full eigen-decomposition."""

import pytest
import torch

from tailwise.spectrum.solve import solve
from tailwise.spectrum.solvers.leading import leading_directions, symmetric_product


def _gram(rows: int, cols: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    decay = torch.arange(1, cols + 1, dtype=torch.float64) ** -0.3
    weights = torch.randn(rows, cols, generator=generator, dtype=torch.float64) * decay
    return weights, weights.T @ weights


def _exact(gram: torch.Tensor, count: int) -> torch.Tensor:
    return torch.linalg.eigh(gram)[1].flip(1)[:, :count].float()


def _overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.T @ other).square().sum()) / one.shape[1]


@pytest.mark.parametrize("count", [1, 4, 16])
def test_the_subspace_is_that_of_the_largest_eigenvalues(count: int) -> None:
    _, gram = _gram(400, 120, count)
    found = leading_directions(symmetric_product(torch.tril(gram)), 120, count)[:, :count]
    assert _overlap(found, _exact(gram, count)) > 1 - 1e-3
    assert torch.allclose(found.T @ found, torch.eye(count), atol=1e-5)


def test_starting_near_the_answer_gives_the_same_subspace() -> None:
    weights, gram = _gram(300, 100, 1)
    other = weights + 0.05 * torch.randn(300, 100, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    start = leading_directions(symmetric_product(gram), 100, 8)
    found = leading_directions(symmetric_product(other.T @ other), 100, 8, start=start)
    exact = _overlap(_exact(gram, 8), _exact(other.T @ other, 8))
    assert _overlap(start[:, :8], found[:, :8]) == pytest.approx(exact, abs=2e-3)
    assert exact < 0.999


def test_as_many_directions_as_the_matrix_has_span_everything() -> None:
    _, gram = _gram(20, 6, 3)
    found = leading_directions(symmetric_product(gram), 6, 6)
    assert _overlap(found, torch.eye(6)) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_of_the_matrix_does_not_matter(scale: float) -> None:
    _, gram = _gram(200, 50, 4)
    found = leading_directions(symmetric_product(gram * scale), 50, 5)[:, :5]
    assert _overlap(found, _exact(gram, 5)) > 1 - 1e-3


def test_the_solver_shows_its_gram_matrix() -> None:
    weights, gram = _gram(60, 20, 5)
    seen: list[torch.Tensor] = []
    solve(weights, look=lambda triangle: seen.append(torch.tril(triangle).clone()))
    assert torch.allclose(seen[0], torch.tril(gram))
