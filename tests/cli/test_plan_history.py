"""`plan --history`: a run that was watched is planned for, from its points."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import tailwise as tw
from tailwise.compression.plans.plan import Plan


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A small model, trained but for one layer, and the store of its monitor."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("watched")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4))  # fmt: skip
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    settings = {"every": 5, "full_every": 10, "max_overhead": 1.0, "optimizer": optimizer, "run": "a"}
    with tw.Monitor(model, history=folder / "h.db", **settings) as monitor:
        for _ in range(20):
            tokens = torch.randint(64, (4, 16))
            loss = model(tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            with monitor._solver._wake:
                assert monitor._solver._wake.wait_for(lambda: monitor._solver._job is None, 600)
            monitor.step(loss=loss)
    model.save_pretrained(folder / "model")
    return folder


def plan(folder, *options):
    environment = {name: value for name, value in os.environ.items() if name != "TAILWISE_STORE"}
    command = [sys.executable, "-P", "-m", "tailwise", "plan", *options, "--history", str(folder / "h.db")]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("options", [
    ("prune", "--sparsity", "0.5", "--allocator", "alpha"), ("prune", "--sparsity", "0.5", "--allocator", "uniform"),
    ("prune", "--sparsity", "0.5"), ("quantize", "--bits", "5", "--allocator", "alpha"),
])  # fmt: skip
def test_a_plan_of_a_run_says_what_moved_and_what_did_not(watched, tmp_path, options):
    target = tmp_path / "plan.json"
    verb, *rest = options
    done = plan(watched, verb, str(watched / "model"), *rest, "-o", str(target))
    assert done.returncode == 0, done.stderr
    made = Plan.load(target)
    assert len(made) == 21
    frozen = made["model.layers.1.mlp.up_proj.weight"]
    assert "did not move" in frozen.reason
    assert "still since" not in frozen.reason  # it never moved
    assert sum("moved by" in decision.reason for decision in made) == 20
    assert any(note.startswith("did not move, 1 of ") for note in made.notes)
    assert any("step 20, trained by AdamW" in note for note in made.notes)
    assert not any("other weights" in note for note in made.notes)
    applied = subprocess.run(
        [sys.executable, "-P", "-m", "tailwise", "apply", str(target), str(watched / "model"), "-o",
         str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert applied.returncode == 0, applied.stderr


def test_the_numbers_are_those_of_an_audit_of_the_same_weights(watched, tmp_path):
    done = plan(watched, "prune", str(watched / "model"), "--sparsity", "0.5", "--allocator", "alpha", "--json")
    ours = json.loads(done.stdout)
    audit = tmp_path / "m.audit"
    tw.audit(watched / "model", use_cache=False).save(audit)
    command = [sys.executable, "-P", "-m", "tailwise", "plan", "prune", str(audit), "--sparsity", "0.5", "--allocator",
               "alpha", "--estimator", "ks", "--json"]  # fmt: skip
    theirs = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    amounts = [{name: entry["sparsity"] for name, entry in one["entries"].items()} for one in (ours, theirs)]
    assert amounts[0] == pytest.approx(amounts[1])


def test_weights_that_were_changed_since_are_told(watched, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(watched / "model")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    model.save_pretrained(tmp_path / "other")
    done = plan(watched, "prune", str(tmp_path / "other"), "--sparsity", "0.5", "--allocator", "alpha", "--json")
    assert any("these are other weights" in note for note in json.loads(done.stdout)["notes"])


@pytest.mark.parametrize(("options", "said"), [
    (("--run", "b"), "no run named 'b'"), (("--estimator", "peak"), "a history has none"),
])  # fmt: skip
def test_what_cannot_be_planned_is_told(watched, options, said):
    done = plan(watched, "prune", str(watched / "model"), "--sparsity", "0.5", "--allocator", "alpha", *options)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_model_that_was_not_watched_is_refused(watched, tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"fc.weight": torch.randn(32, 32)}, path)
    done = plan(watched, "prune", str(path), "--sparsity", "0.5", "--allocator", "uniform")
    assert done.returncode == 2
    assert "is a layer of the run 'a'" in done.stderr
