"""Two models on the same windows: divergence, top tokens and probabilities against a plain loop in float64."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from made_models import VOCABULARY, make_llama

from tailwise.models.evaluation import evaluate as module
from tailwise.models.evaluation.divergence import paired_losses
from tailwise.models.evaluation.evaluate import EvaluateOptions, evaluate
from tailwise.models.evaluation.losses import window_losses
from tailwise.models.evaluation.scores import ScoreComparison


@pytest.fixture(scope="module")
def windows():
    return torch.randint(VOCABULARY, (9, 33), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def moved(llama):
    other = copy.deepcopy(llama)
    with torch.no_grad():
        for index, parameter in enumerate(other.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter.add_(0.1 * parameter.std() * noise)
    return other


def plain(model, base, windows):
    """(KL, change of probability, same top) of every predicted token, each (tokens,)."""
    rows = []
    with torch.no_grad():
        for window in windows:
            q, p = (one(window[None]).logits[0, :-1].double().softmax(-1) for one in (model, base))
            at = torch.arange(len(window) - 1)
            kl = (p * (p.log() - q.log())).sum(-1)
            rows.append(torch.stack([kl, (q - p)[at, window[1:]], (q.argmax(-1) == p.argmax(-1)).double()]))
    return torch.cat(rows, dim=1).numpy()


def test_numbers_are_those_of_a_plain_loop(llama, moved, windows):
    kl, change, same = plain(moved, llama, windows)
    after, before, found = paired_losses(moved, llama, windows, batch=4)
    assert after == pytest.approx(window_losses(moved, windows), rel=1e-6)
    assert before == pytest.approx(window_losses(llama, windows), rel=1e-6)
    assert (found.tokens, found.same_top) == (kl.size, pytest.approx(same.mean()))
    assert found.kl == pytest.approx(kl.mean(), rel=1e-4)
    assert found.kl_interval[0] < found.kl < found.kl_interval[1]
    assert found.change == pytest.approx(change.mean(), abs=1e-7)
    assert found.rms_change == pytest.approx(np.sqrt((change**2).mean()), rel=1e-4)
    for name, value in found.kl_quantiles.items():
        assert value == pytest.approx(np.quantile(kl, float(name) / 100), rel=1e-3, abs=1e-6)
    for name, value in found.change_quantiles.items():
        assert value == pytest.approx(np.quantile(change, float(name) / 100), rel=1e-3, abs=1e-6)


def test_a_model_does_not_diverge_from_itself(llama, windows):
    _, _, found = paired_losses(llama, llama, windows)
    assert (found.kl, found.same_top, found.change, found.rms_change) == (0.0, 1.0, 0.0, 0.0)
    assert set(found.kl_quantiles.values()) == {0.0}


def test_padded_vocabularies_are_compared_where_both_have_tokens(llama, windows):
    padded = copy.deepcopy(llama)
    padded.resize_token_embeddings(VOCABULARY + 7, mean_resizing=False)
    with torch.no_grad():
        padded.get_output_embeddings().weight[VOCABULARY:] = 1.0  # tokens that no text has
    _, _, found = paired_losses(padded, llama, windows)
    assert found.kl == pytest.approx(0.0, abs=1e-6)
    assert found.same_top == 1.0


def test_a_model_with_nan_has_no_divergence(llama, windows):
    broken = copy.deepcopy(llama)
    with torch.no_grad():
        broken.get_output_embeddings().weight[0, 0] = float("nan")
    _, _, found = paired_losses(broken, llama, windows)
    assert found.kl is None
    assert found.kl_quantiles["50"] is None


def test_the_command_prints_it_and_keeps_it(call, folder, story, tmp_path):
    shared = ("evaluate", folder, "--against", folder, "--text", story, "--window", 16)
    code, out, _ = call(*shared, "-o", tmp_path / "both.json")
    assert code == 0
    for line in ("mean KL divergence", "median", "99.9 %", "same top token", "root mean square"):
        assert line in out
    table = out[out.index("over ") :].splitlines()[:10]
    assert max(len(line.rstrip()) for line in table) <= 80
    kept = ScoreComparison.load(tmp_path / "both.json")
    assert kept.divergence.same_top == 1.0
    assert json.loads((tmp_path / "both.json").read_text())["divergence"]["kl"] == 0.0


def test_where_memory_is_short_models_are_scored_in_turn_and_it_is_said(folder, story, monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda: 1000)
    found = evaluate(folder, against=folder, text=story, options=EvaluateOptions(window=16))
    assert found.divergence is None
    assert any("one after the other" in note for note in found.notes)
    assert found.ratio == 1.0


def test_models_of_other_layouts_are_compared_too(tokenizer, story):
    one, two = make_llama(), make_llama()
    found = evaluate(one, against=two, text=story, tokenizer=tokenizer, options=EvaluateOptions(window=16))
    assert found.divergence.kl is not None
