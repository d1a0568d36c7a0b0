"""`evaluate` from Python: known perplexities, pairs, and what is refused."""

from __future__ import annotations

import math
import shutil
import signal
import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_models import make_llama, make_tokenizer

from tailwise.core.errors import UnreadableError, UsageError
from tailwise.models.evaluation.classifiers import classifier_scores
from tailwise.models.evaluation.evaluate import EvaluateOptions, evaluate
from tailwise.models.evaluation.model_size import facts_of
from tailwise.models.evaluation.quiet import quiet
from tailwise.models.evaluation.sources import Documents
from tailwise.models.evaluation.tokens import tokens_of, windows_of

SMALL = EvaluateOptions(window=32)


def test_stories260k_has_its_known_perplexity(stories, data):
    # 252 stories, each after BOS, in blocks of 512.
    found = evaluate(stories, text=data / "text" / "tinystories_252_stories.txt", options=EvaluateOptions(bos="never"))
    assert found.perplexity == pytest.approx(4.680, abs=0.001)
    assert found.settings["documents"] == 252
    assert len(found.losses) == 192
    assert found.interval[0] < 4.680 < found.interval[1]
    assert found.facts.parameters == 260_032


def test_pycode_on_held_out_modules_has_the_perplexity_that_transformers_gives(pycode):
    library = Path(sysconfig.get_paths()["stdlib"])
    held = [library / name for name in (pycode / "heldout.txt").read_text().split()[:12]]
    files = [file for file in held if file.is_file()]
    found = evaluate(pycode, text=files, options=EvaluateOptions(window=256, max_windows=8))
    with quiet():
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(pycode, dtype=torch.float32).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(pycode)
    ids = [token for file in files for token in (0, *tokenizer(file.read_text(encoding="utf-8"))["input_ids"])]
    windows = windows_of(np.array(ids), 256, 8)
    with torch.no_grad():
        losses = [float(model(input_ids=one[None], labels=one[None]).loss) for one in windows]
    assert found.losses == pytest.approx(losses, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)


def test_a_module_with_its_tokenizer_scores_as_its_folder_does(llama, tokenizer, folder, story):
    one = evaluate(folder, text=story, options=SMALL)
    other = evaluate(llama, text=story, tokenizer=tokenizer, options=SMALL)
    assert one.losses == pytest.approx(other.losses, rel=1e-6)
    assert one.digest == other.digest
    assert one.facts.parameters == other.facts.parameters == llama.num_parameters()


def test_the_perplexity_is_exp_of_the_mean_loss_inside_its_interval(folder, story):
    found = evaluate(folder, text=story, options=SMALL)
    assert found.perplexity == pytest.approx(math.exp(np.mean(found.losses)))
    assert found.interval[0] < found.perplexity < found.interval[1]
    assert found.tokens == 31 * len(found.losses)


def test_two_runs_are_equal(folder, story):
    some = replace(SMALL, max_windows=9)
    assert evaluate(folder, text=story, options=some) == evaluate(folder, text=story, options=some)


def test_ids_are_scored_without_a_tokenizer(llama):
    found = evaluate(llama, text=np.arange(256), options=SMALL)
    assert len(found.losses) == 8


def test_pruning_half_of_every_matrix_by_magnitude_makes_stories260k_worse(stories, data):
    with quiet():
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(stories)
        tokenizer = transformers.AutoTokenizer.from_pretrained(stories)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 2 and ".layers." in name:
                value[value.abs() <= value.abs().flatten().kthvalue(value.numel() // 2).values] = 0
    text = data / "text" / "tinystories_252_stories.txt"
    found = evaluate(
        model, text=text, against=stories, tokenizer=tokenizer, options=EvaluateOptions(max_windows=12, bos="never")
    )
    assert found.perplexity.verdict == "worse"
    # Over all windows: perplexity 46.7 against 4.680.
    assert found.ratio == pytest.approx(46.7 / 4.680, rel=0.1)
    assert found.model.facts.block_sparsity == pytest.approx(0.5, abs=0.001)


def test_a_base_may_be_scores_of_before(folder, story):
    base = evaluate(folder, text=story, options=SMALL)
    found = evaluate(folder, text=story, against=base, options=SMALL)
    assert found.perplexity.change == 0


@pytest.mark.parametrize("against", ["nothing", "a model", "saved scores"])
def test_an_interruption_keeps_the_windows_that_were_scored(folder, story, against):
    options, done = EvaluateOptions(window=16, batch=2), []
    base = {"nothing": None, "a model": folder, "saved scores": evaluate(folder, text=story, options=options)}[against]
    whole = evaluate(folder, text=story, options=options)
    assert len(whole.losses) > 20

    def interrupting(_what: str, count: int, _total: int) -> None:
        done.append(count)
        if count >= 8:
            signal.raise_signal(signal.SIGINT)

    found = evaluate(folder, text=story, against=base, options=options, progress=interrupting)
    scores = found if base is None else found.model
    assert done[-1] == len(scores.losses) == 8
    text_order = iter(whole.losses)
    assert all(loss in text_order for loss in scores.losses)
    assert scores.losses != whole.losses[:8]  # drawn at random, not the beginning of the text
    assert any(
        note.startswith(f"interrupted: 8 of {len(whole.losses)} windows") for note in (*found.notes, *scores.notes)
    )
    if base is not None:
        assert found.base.losses == scores.losses
        assert found.perplexity.verdict == "no difference seen"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_model_without_a_tokenizer_uses_that_of_the_base(folder, story, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, bare)
    assert evaluate(bare, text=story, against=folder, options=SMALL).perplexity.verdict == "no difference seen"
    with pytest.raises(UsageError, match="takes a tokenizer"):
        evaluate(bare, text=story, options=SMALL)


def test_models_of_different_tokenizers_are_not_paired(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    with quiet():
        make_tokenizer(bos=False).save_pretrained(other)
    with pytest.raises(UsageError, match="other tokens"):
        evaluate(folder, text=Documents(("some text " * 20,) * 2), against=other, options=SMALL)


def test_a_model_with_nan_has_no_perplexity_and_says_so(tokenizer, story):
    model = make_llama()
    with torch.no_grad():
        model.lm_head.weight[3, 0] = math.nan
    found = evaluate(model, text=story, tokenizer=tokenizer, options=SMALL)
    assert found.perplexity is None
    assert set(found.losses) == {None}
    assert "not finite" in found.notes[0]


def test_half_precision_is_computed_in_float32_on_a_cpu_unless_asked_otherwise(folder, story, tmp_path):
    with quiet():
        import transformers

        half = transformers.AutoModelForCausalLM.from_pretrained(folder).to(torch.bfloat16)
        half.save_pretrained(tmp_path / "half")
        shutil.copy(folder / "tokenizer.json", tmp_path / "half")
        shutil.copy(folder / "tokenizer_config.json", tmp_path / "half")
    some = replace(SMALL, max_windows=3, speed=True)
    assert evaluate(tmp_path / "half", text=story, options=some).speed.dtype == "float32"
    asked = evaluate(tmp_path / "half", text=story, options=replace(some, dtype="bfloat16"))
    assert asked.speed.dtype == "bfloat16"
    assert asked.perplexity == pytest.approx(evaluate(folder, text=story, options=some).perplexity, rel=0.05)


def test_speed_is_measured_for_prefill_and_decoding(folder):
    found = evaluate(folder, options=EvaluateOptions(window=32, speed=True))
    assert found.speed.prefill > found.speed.decode > 0
    assert (found.speed.prompt, found.speed.decoded, found.speed.threads) == (32, 16, torch.get_num_threads())


def test_zeros_are_counted_from_the_checkpoint(folder, tmp_path):
    with quiet():
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            for layer in model.model.layers:
                layer.mlp.down_proj.weight[:, ::2] = 0
        model.save_pretrained(tmp_path / "pruned")
    dense, pruned = facts_of(folder), facts_of(tmp_path / "pruned")
    assert pruned.parameters == dense.parameters == model.num_parameters()
    assert dense.nonzero - pruned.nonzero == 2 * 16 * 12
    assert pruned.block_sparsity == pytest.approx(2 * 16 * 12 / pruned.block_parameters)
    assert pruned.block_parameters == 2 * (4 * 16 * 16 + 3 * 16 * 24)


def test_tied_weights_count_once(tmp_path):
    model = make_llama(tie_word_embeddings=True)
    assert facts_of(model).parameters == model.num_parameters()


def refused(model, match, kind=UsageError, *, text=None, **changes):
    with pytest.raises(kind, match=match):
        evaluate(model, text=text, options=replace(SMALL, **changes))


def test_a_window_longer_than_the_positions_is_refused(folder, story):
    refused(folder, "64 positions", text=story, window=65)


def test_nothing_to_evaluate_is_refused(folder):
    refused(folder, "nothing to evaluate")


def test_ids_beyond_the_vocabulary_are_refused(folder):
    refused(folder, "token id 300", text=np.full(64, 300))


def test_an_unknown_dtype_is_refused(folder, story):
    refused(folder, "'int3'", text=story, dtype="int3")


def test_a_folder_that_is_not_there_is_unreadable():
    refused("/no/such/folder", "no such folder", UnreadableError, text=np.arange(64))


def test_a_file_is_no_model(folder):
    refused(folder / "model.safetensors", "is a file", text=np.arange(64))


def test_a_folder_without_a_model_is_unreadable(tmp_path):
    refused(tmp_path, "could not be loaded", UnreadableError, text=np.arange(64))


def test_an_encoder_is_refused(bert, story):
    refused(bert, "would be random", text=story)


def test_a_model_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    refused(tmp_path, "no causal language model", text=np.arange(64))


def test_a_checkpoint_without_its_head_is_refused(folder, tmp_path):
    with quiet():
        import transformers

        transformers.AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "body")
    refused(tmp_path / "body", "lm_head.weight", text=np.arange(64))


def test_the_accuracy_of_a_classifier_has_wilsons_interval():
    model = torch.nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(3))
    inputs = torch.eye(3).repeat(10, 1)
    labels = torch.arange(3).repeat(10)
    labels[:3] = torch.tensor([1, 2, 0])
    found = classifier_scores(model, [(inputs[:20], labels[:20]), (inputs[20:], labels[20:])])
    assert (found.accuracy, found.n, sum(found.correct)) == (0.9, 30, 27)
    assert found.interval == pytest.approx((0.7438, 0.9654), abs=1e-3)
    assert found.loss == pytest.approx(float(torch.nn.functional.cross_entropy(inputs, labels)), rel=1e-6)


def test_a_loader_without_examples_is_refused():
    with pytest.raises(UsageError, match="no examples"):
        classifier_scores(torch.nn.Linear(2, 2), [])


def test_tokens_of_several_sources_are_named_by_the_first(story):
    assert tokens_of([story, story], make_tokenizer()).name == f"{story} and 1 more"


@pytest.mark.parametrize("name", ["model.gguf", "./model.gguf", "models/model.gguf", "folder/model.safetensors"])
def test_a_file_that_is_not_there_is_called_that(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(name, "no such file", UnreadableError, text=np.arange(64))
