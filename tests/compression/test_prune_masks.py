"""Which entries go."""

from __future__ import annotations

import pytest
import torch

from tailwise.compression.operators.masks import count_of, lowest, lowest_in_groups, lowest_in_rows

NAN = float("nan")


@pytest.fixture
def scores():
    return torch.rand(16, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("count", [0, 1, 100, 384])
def test_exactly_as_many_go_as_asked(scores, count):
    assert int(lowest(scores, count).sum()) == count


def test_what_goes_is_below_what_stays(scores):
    gone = lowest(scores, 150)
    assert scores[gone].max() < scores[~gone].min()


def test_the_count_is_exact_where_all_scores_are_equal():
    gone = lowest(torch.ones(10, 10), 30)
    assert int(gone.sum()) == 30
    assert gone.sum(dim=1).max() == 3  # spread evenly, not all from the first rows


def test_every_row_loses_the_same(scores):
    gone = lowest_in_rows(scores, 7)
    assert (gone.sum(dim=1) == 7).all()
    assert all(row[out].max() < row[~out].min() for row, out in zip(scores, gone, strict=True))


@pytest.mark.parametrize(("kept", "group"), [(2, 4), (4, 8), (3, 8), (1, 2), (2, 3)])
def test_every_group_keeps_its_n_highest(scores, kept, group):
    gone = lowest_in_groups(scores, kept, group).reshape(-1, group)
    groups = scores.reshape(-1, group)
    assert ((~gone).sum(dim=1) == kept).all()
    assert all(row[out].max() < row[~out].min() for row, out in zip(groups, gone, strict=True))


def test_a_score_that_is_no_number_is_kept():
    assert lowest(torch.tensor([1.0, NAN, 2.0, 3.0]), 3).tolist() == [True, False, True, True]


def test_a_count_is_not_lost_to_the_rounding_of_a_fraction():
    assert count_of(0.29, 100) == 29  # 0.29 · 100 is 28.999999999999996
    assert count_of(0.7, 256) == 179
