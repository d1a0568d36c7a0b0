"""Image classifiers of transformers, from an audit to the pruned model that transformers loads."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import inputs_for, saved

from tailwise.audits.run import audit
from tailwise.compression.applying.apply import apply
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.making.make import plan_prune
from tailwise.compression.making.request import Request
from tailwise.core.errors import UsageError
from tailwise.models.evaluation.classifiers import classifier_scores
from tailwise.models.evaluation.quiet import quiet

pytest.importorskip("transformers")

KINDS = ("vit", "deit", "convnext")
WAYS = (
    ("magnitude", "depth", {}),
    ("magnitude", "alpha", {"mapping": "block"}),
    ("magnitude", "alpha", {"mapping": "matrix"}),
    ("magnitude", "alpha-role", {}),
    ("wanda", "uniform", {}),
    ("sparsegpt", "alpha-role", {}),
)


@pytest.fixture(scope="module")
def audits(tmp_path_factory):
    """Kind → folder and audit."""
    folders = {kind: saved(kind, tmp_path_factory.mktemp(kind) / "model") for kind in KINDS}
    return {kind: (folder, audit(folder, estimator="mid")) for kind, folder in folders.items()}


def loaded(folder):
    import transformers

    with quiet():
        return transformers.AutoModelForImageClassification.from_pretrained(folder)


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("operator", "allocator", "settings"), WAYS)
def test_the_whole_way_reaches_the_budget_and_keeps_every_shape(audits, tmp_path, kind, operator, allocator, settings):
    folder, found = audits[kind]
    plan = plan_prune(found, Request(0.6, allocator, operator, settings=settings))
    done = apply(plan, folder, tmp_path / "out", options=ApplyOptions(calibration=inputs_for(kind)))
    before, after = tensors_of(folder), tensors_of(tmp_path / "out")
    assert done.achieved == pytest.approx(0.6, abs=0.03)  # rows of 8 inputs keep whole entries
    assert {name: value.shape for name, value in before.items()} == {name: v.shape for name, v in after.items()}
    assert all(torch.equal(after[name], value) for name, value in before.items() if name not in plan)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_the_pruned_classifier_and_it_can_be_scored(audits, tmp_path, kind):
    folder, found = audits[kind]
    apply(plan_prune(found, Request(0.6)), folder, tmp_path / "out")
    images = inputs_for(kind)["pixel_values"]
    labels = loaded(folder)(images).logits.argmax(dim=1)
    dense = classifier_scores(loaded(folder), [(images, labels)])
    pruned = classifier_scores(loaded(tmp_path / "out"), [(images, labels)])
    assert dense.accuracy == 1.0
    assert 0.0 <= pruned.interval[0] <= pruned.accuracy <= pruned.interval[1] <= 1.0
    assert pruned.loss != dense.loss


@pytest.mark.parametrize("kind", KINDS)
def test_patches_positions_and_the_classifier_are_left_out(audits, kind):
    planned = plan_prune(audits[kind][1], Request(0.6))
    assert not [d.tensor for d in planned if "embeddings" in d.tensor or "classifier" in d.tensor]


def test_every_convolution_and_linear_layer_of_the_stages_of_a_convnext_is_pruned(audits):
    folder, found = audits["convnext"]
    inside = {name for name, value in tensors_of(folder).items() if ".stages." in name and value.ndim > 1}
    assert {decision.tensor for decision in plan_prune(found, Request(0.6))} == inside


def test_patches_are_pruned_where_they_are_named(audits, tmp_path):
    from tailwise.compression.plans.candidates import TensorChoice

    folder, found = audits["vit"]
    plan = plan_prune(found, Request(0.5, choice=TensorChoice(also=("patch_embed",))))
    apply(plan, folder, tmp_path / "out")
    name = next(decision.tensor for decision in plan if decision.role == "patch_embed")
    assert float((tensors_of(tmp_path / "out")[name] == 0).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_text_calibrates_no_image_classifier(audits, tmp_path):
    folder, found = audits["vit"]
    text = tmp_path / "text.txt"
    text.write_text("words " * 500)
    with pytest.raises(UsageError, match="holds no images"):
        apply(plan_prune(found, Request(0.6, operator="wanda")), folder, tmp_path / "out",
              options=ApplyOptions(calibration=str(text)))  # fmt: skip


def test_no_plan_of_an_image_classifier_is_tried_on_text(audits, tmp_path):
    from tailwise.compression.trying.planned import planned
    from tailwise.compression.trying.stage import StageOptions

    text = tmp_path / "text.txt"
    text.write_text("words " * 500)
    with pytest.raises(UsageError, match="holds no images"):
        planned(audits["vit"][1], Request(0.6), text=StageOptions(str(text)))
