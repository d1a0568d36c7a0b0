"""The curriculum, against the paper's competence by hand, and the measures of difficulty."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import tailwise as tw
from tailwise.core.errors import UsageError

SCORES = [float((i * 37) % 100) for i in range(100)]


def test_competence_is_the_papers():
    sampler = tw.remedies.CurriculumSampler(SCORES, ramp=1000, start=0.1)
    assert sampler.competence(0) == pytest.approx(0.1)
    assert sampler.competence(500) == pytest.approx(math.sqrt(500 * (1 - 0.01) / 1000 + 0.01))
    assert sampler.competence(1000) == sampler.competence(10**9) == 1.0
    linear = tw.remedies.CurriculumSampler(SCORES, ramp=1000, start=0.1, power=1)
    assert linear.competence(500) == pytest.approx(0.55)


def test_no_draw_is_harder_than_the_competence_allows():
    sampler = tw.remedies.CurriculumSampler(SCORES, ramp=250, start=0.05)
    ranks = {index: rank for rank, index in enumerate(sampler.order)}
    for epoch in range(3):
        for draw, index in enumerate(sampler):
            assert ranks[index] < math.ceil(sampler.competence(epoch * 100 + draw) * 100)


def test_it_goes_from_easy_to_hard_and_in_the_end_draws_all():
    sampler = tw.remedies.CurriculumSampler(SCORES, ramp=400)
    epochs = [[SCORES[index] for index in sampler] for _ in range(12)]
    means = [sum(scores) / len(scores) for scores in epochs]
    assert means[0] < means[1] < means[3]
    assert sum(means[4:]) / 8 == pytest.approx(49.5, abs=4)
    assert len(Counter(score for scores in epochs[4:] for score in scores)) > 95


def test_it_feeds_a_loader_of_torch():
    sampler = tw.remedies.CurriculumSampler(SCORES)
    assert len(sampler) == 100
    batches = list(DataLoader(torch.arange(100), batch_size=10, sampler=sampler))
    assert len(batches) == 10


@pytest.mark.parametrize("ranks", [1, 3, 4, 7])
def test_shards_take_disjoint_draws_of_one_order_and_as_many_as_each_other(ranks):
    whole = list(tw.remedies.CurriculumSampler(SCORES, seed=3))
    shards = [tw.remedies.CurriculumSampler(SCORES, seed=3, shard=(rank, ranks)) for rank in range(ranks)]
    parts = [list(shard) for shard in shards]
    each = math.ceil(len(SCORES) / ranks)
    assert [len(part) for part in parts] == [len(shard) for shard in shards] == [each] * ranks
    drawn = [part[draw] for draw in range(each) for part in parts]
    assert drawn[: len(whole)] == whole


def test_a_state_goes_on_in_the_middle_of_an_epoch():
    sampler = tw.remedies.CurriculumSampler(SCORES, seed=5)
    draws = iter(sampler)
    for _ in range(130):
        index = next(draws, None)
        if index is None:
            draws = iter(sampler)
    again = tw.remedies.CurriculumSampler(SCORES, seed=0)
    again.load_state_dict(sampler.state_dict())
    assert list(draws) == list(again)
    assert list(sampler) == list(again)


def test_a_seed_gives_the_same_draws_and_equal_scores_keep_their_order():
    assert list(tw.remedies.CurriculumSampler(SCORES, seed=1)) == list(tw.remedies.CurriculumSampler(SCORES, seed=1))
    assert tw.remedies.CurriculumSampler([1.0, 0.0, 1.0, 0.0]).order == [1, 3, 0, 2]


def test_wrong_requests_say_what_to_do():
    with pytest.raises(UsageError, match="one number for each"):
        tw.remedies.CurriculumSampler([])
    with pytest.raises(UsageError, match="one number for each"):
        tw.remedies.CurriculumSampler([1.0, math.nan])
    with pytest.raises(UsageError, match="shard"):
        tw.remedies.CurriculumSampler(SCORES, shard=(2, 2))


def test_rarity_is_the_negative_logarithm_of_the_unigram_chance():
    found = tw.remedies.token_rarity([[1, 1], torch.tensor([1, 2]), []])
    # Of four tokens three are 1.
    assert found == pytest.approx([-2 * math.log(0.75), -math.log(0.75) - math.log(0.25), 0.0])
    assert tw.remedies.token_rarity([[1, 1], [1, 2]], per_token=True)[0] == pytest.approx(-math.log(0.75))


def test_the_loss_of_a_model_is_its_mean_cross_entropy():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([0.0, math.log(3.0)]))

        def forward(self, ids):
            return self.logits.expand(*ids.shape, 2)

    model = Constant().train()
    found = tw.remedies.loss_difficulty(model, [[0, 1, 1], torch.tensor([1, 0]), [1]])
    assert found == pytest.approx([-math.log(0.75), -math.log(0.25), 0.0])
    assert model.training
