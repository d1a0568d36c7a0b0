"""LSA's least error of linear reconstruction: the published code's numbers, and what it stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import built, inputs_for, saved

from tailwise.models.walking.reconstruction import least_error, reconstruction_errors
from tailwise.models.walking.walk import blocks_of, walk_blocks

#: Computed by the authors' code (github.com/BeiYazi0/LSA, `blk_s`) from W and X as `given` makes them.
PUBLISHED = [
    ((6, 8, 20, 4, 0.5), 277.39798),
    ((5, 12, 30, 6, 0.5), 494.01703),
    ((24, 64, 100, 16, 0.5), 23834.79297),
    ((10, 32, 40, 32, 0.25), 361.83899),
]


class Hessians:
    """H of every layer, by block."""

    def __init__(self):
        self.found = []

    def needs(self, block):
        return dict.fromkeys(block.layers(), "hessian")

    def visit(self, block, found):
        self.found.append({name: item.hessian for name, item in found.items()})


def given(rows: int, cols: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(rows * cols)
    W, X = torch.randn(rows, cols, generator=stream), torch.randn(3, tokens, cols, generator=stream)
    return W, 2 / 3 * (X.mT @ X).sum(0)


@pytest.mark.parametrize(("case", "published"), PUBLISHED)
def test_the_error_is_that_of_the_published_code(case, published):
    rows, cols, tokens, group, share = case
    W, H = given(rows, cols, tokens)
    assert least_error(W, H, group, share) == pytest.approx(published, rel=1e-6)


def test_it_is_the_error_of_the_outputs_under_the_mask_that_was_chosen():
    W, H = given(7, 12, 40)
    W, H = W.double(), H.double()
    total = 0.0
    for w in W:
        gone: list[int] = []
        for _ in range(6):
            rest = [j for j in range(12) if j not in gone]
            gone.append(
                min(rest, key=lambda j: float(H[j, j] * w[j] ** 2 + 2 * w[j] * sum(w[i] * H[i, j] for i in gone)))
            )
        lost = torch.zeros_like(w)
        lost[gone] = w[gone]
        total += float(lost @ H @ lost)
    assert least_error(W.float(), H.float(), group=12) == pytest.approx(total, rel=1e-5)


def test_rows_do_not_see_each_other_and_a_scale_counts_squared():
    W, H = given(9, 16, 30)
    parts = sum(least_error(W[i : i + 1], H, 8) for i in range(9))
    assert least_error(W, H, 8) == pytest.approx(parts, rel=1e-6)
    assert least_error(3 * W, H, 8) == pytest.approx(9 * least_error(W, H, 8), rel=1e-5)


def test_the_statistic_of_a_block_is_the_mean_over_its_matrices(tmp_path):
    model, inputs = built("llama"), inputs_for("llama")
    seen = Hessians()
    walk_blocks(model, inputs, seen, edits=False)
    found = reconstruction_errors(model, inputs)
    for index, block in enumerate(blocks_of(model)):
        hessians = {name: H.reshape(-1, *H.shape[-2:])[0] for name, H in seen.found[index].items()}
        errors = [least_error(layer.weight, hessians[name]) for name, layer in block.layers().items()]
        assert found[index] == pytest.approx(np.mean(errors), rel=1e-3)
    assert reconstruction_errors(saved("llama", tmp_path), inputs["input_ids"]) == pytest.approx(found, rel=1e-4)
