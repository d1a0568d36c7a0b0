"""Revisions of a model on the Hub as the checkpoints of a run: found, audited and watched."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save

from tailwise.core.errors import UnreadableError, UsageError
from tailwise.history.runs.found import find
from tailwise.history.store import History

MODEL = {"model.safetensors": save({"model.layers.0.mlp.up_proj.weight": torch.randn(64, 64)})}
BRANCHES = ("main", "step1000", "step200", "stage2-step5000-tokens10B")


@pytest.fixture
def run(hub):
    hub.publish(MODEL, revisions=(*BRANCHES, "step-9"))
    hub.publish_branches(*BRANCHES, tags=("step-9", "v1"))
    return hub


def test_branches_and_tags_named_after_a_step_are_checkpoints(run):
    assert [(one.step, one.uri) for one in find("org/model")] == [
        (9, "hf://org/model@step-9"), (200, "hf://org/model@step200"), (1000, "hf://org/model@step1000"),
        (5000, "hf://org/model@stage2-step5000-tokens10B"),
    ]  # fmt: skip
    assert find("hf://org/model") == find("https://huggingface.co/org/model") == find("org/model")


def test_revisions_that_are_named(run):
    assert [one.step for one in find("org/model", ["step1000", "step200"])] == [200, 1000]
    with pytest.raises(UsageError, match="'main' has no step in its name"):
        find("org/model", ["main"])
    with pytest.raises(UsageError, match="names one revision already"):
        find("org/model@step200")


def test_a_model_that_is_not_there(hub):
    with pytest.raises(UnreadableError, match="org/nothing"):
        find("org/nothing")


def test_all_checkpoints_of_a_model_go_into_a_store(run, call, tmp_path):
    store = tmp_path / "h.db"
    code, out, err = call(
        "audit", "org/model", "--all-checkpoints", "--revisions", "step1000,step200", "--store", store
    )
    assert code == 0, err
    assert "step 200  1 matrices" in out
    code, out, _ = call("watch", "org/model", "--once", "--store", store)
    assert code == 0
    assert "step 5000" in out
    assert "step 200 " not in out
    with History(store) as history:
        (summary,) = history.runs()
        audits = history.audits("org/model")
    assert (summary.name, summary.audits) == ("org/model", 4)
    assert audits[0].provenance.model == "hf://org/model@step-9"
    assert audits[0].provenance.revision is not None
