"""`window_losses` against a plain loop, and the test for causality."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_models import VOCABULARY, make_llama

from tailwise.core.errors import UsageError
from tailwise.models.evaluation import losses as module
from tailwise.models.evaluation.losses import check_causal, window_losses
from tailwise.models.evaluation.quiet import quiet


@pytest.fixture(scope="module")
def windows():
    return torch.randint(VOCABULARY, (7, 33), generator=torch.Generator().manual_seed(1))


def plain_losses(model, windows):
    """One window and one token at a time, in float64."""
    found = []
    with torch.no_grad():
        for window in windows:
            logits = model(window[None]).logits[0].double()
            steps = [-torch.log_softmax(logits[i], 0)[window[i + 1]] for i in range(len(window) - 1)]
            found.append(float(torch.stack(steps).mean()))
    return np.array(found)


def test_losses_are_those_of_a_plain_loop(llama, windows):
    assert window_losses(llama, windows) == pytest.approx(plain_losses(llama, windows), rel=1e-6)


def test_losses_do_not_depend_on_the_batch_nor_on_how_logits_are_cut(llama, windows, monkeypatch):
    whole = window_losses(llama, windows, batch=7)
    monkeypatch.setattr(module, "_CHUNK", 5 * VOCABULARY)
    monkeypatch.setitem(module._LOGITS, "cpu", 1)
    assert window_losses(llama, windows) == pytest.approx(whole, rel=1e-6)


def test_two_runs_give_the_same_bits(llama, windows):
    assert np.array_equal(window_losses(llama, windows), window_losses(llama, windows))


def test_the_model_is_left_in_the_mode_it_was_in(windows):
    model = make_llama().train()
    window_losses(model, windows[:1])
    assert model.training


def test_progress_is_told_after_every_batch(llama, windows):
    steps = []
    window_losses(llama, windows, batch=3, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(3, 7), (6, 7), (7, 7)]


def test_a_module_that_is_not_of_transformers_is_scored():
    model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9))
    windows = torch.randint(9, (3, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(model(windows[1])[:-1], windows[1, 1:])
    assert window_losses(model, windows)[1] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("shape", [(0, 8), (3, 1), (8,)])
def test_windows_that_predict_nothing_are_refused(llama, shape):
    with pytest.raises(UsageError, match="windows are"):
        window_losses(llama, torch.zeros(shape, dtype=torch.int64))


def test_a_causal_model_passes(llama):
    check_causal(llama, VOCABULARY, "llama")


def test_a_model_in_bfloat16_passes():
    check_causal(make_llama().to(torch.bfloat16), VOCABULARY, "llama")


def test_a_model_that_looks_ahead_is_refused():
    with quiet():
        import transformers

        config = transformers.BertConfig(
            vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
        )
        model = transformers.BertForMaskedLM(config).eval()
    with pytest.raises(UsageError, match="later tokens"):
        check_causal(model, 50, "bert")
