"""Image classifiers from the command line: planned, pruned and scored on a folder of images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tailwise.audits.run import audit as audit_model
from tailwise.cli.main import app
from tailwise.compression.making.request import Request
from tailwise.compression.recovery.recover import RecoverOptions, recover
from tailwise.compression.trying.clock import Clock
from tailwise.compression.trying.planned import planned
from tailwise.compression.trying.predictors import foretold
from tailwise.compression.trying.stage import StageOptions
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.models.evaluation.classify import evaluate_images
from tailwise.models.evaluation.images import images_of, is_classifier, load_classifier
from tailwise.models.evaluation.preparation import Preparation, preparation_of

transformers = pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")

SIDE, CLASSES, EACH = 16, ("circle", "line", "noise"), 14
SIZES = {
    "vit": ("ViT", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
                    "image_size": SIDE, "patch_size": 8}),
    "deit": ("DeiT", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
                      "image_size": SIDE, "patch_size": 8}),
    "convnext": ("ConvNext", {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "image_size": SIDE,
                              "patch_size": 2, "layer_scale_init_value": 1.0}),
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder with one for each class."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (root / name).mkdir()
        for index in range(EACH):
            values = rng.integers(0, 60, (SIDE, SIDE, 3))
            values[:, :, number] += 120
            Image.fromarray(values.astype(np.uint8)).save(root / name / f"{index:02}.png")
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory, pictures) -> dict[str, Path]:
    """Kind → a classifier that was trained for a few steps on the pictures."""
    return {kind: _trained(kind, tmp_path_factory.mktemp(kind) / "model", pictures) for kind in SIZES}


def _trained(kind: str, folder: Path, pictures: Path) -> Path:
    name, sizes = SIZES[kind]
    torch.manual_seed(0)
    labels = {str(number): name for number, name in enumerate(CLASSES)}
    config = getattr(transformers, f"{name}Config")(
        **sizes, num_channels=3, num_labels=len(CLASSES), id2label=labels,
        label2id={name: int(number) for number, name in labels.items()},
    )  # fmt: skip
    model = getattr(transformers, f"{name}ForImageClassification")(config)
    model.save_pretrained(folder)
    images = images_of(str(pictures), str(folder), config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(25):
        loss = model(pixel_values=images.pixels, labels=images.labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


def run(*arguments: object):
    return CliRunner().invoke(app, [str(item) for item in arguments])


@pytest.mark.parametrize("kind", list(SIZES))
def test_the_whole_way_from_the_command_line(folders, pictures, tmp_path, kind):
    """Audit, plan, Wanda on images, and accuracy beside the dense model, image by image."""
    model, plan, output = folders[kind], tmp_path / "plan.json", tmp_path / "pruned"
    done = run("plan", "prune", model, "--sparsity", 0.5, "--operator", "wanda", "--allocator", "alpha", "-o", plan)
    assert done.exit_code == 0, done.output
    done = run("apply", plan, model, "-o", output, "--calibration", pictures, "--samples", 20)
    assert done.exit_code == 0, done.output
    assert json.loads((output / "tailwise_plan.json").read_text())["settings"]["estimator"] == "mid"
    done = run("evaluate", output, "--images", pictures, "--against", model, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    accuracy = found["base"]["tasks"][0]
    assert (accuracy["task"], accuracy["metric"], accuracy["n"]) == ("images", "acc", 3 * EACH)
    assert accuracy["value"] > 0.9  # it was trained on them
    assert len(found["tasks"]) == 2  # accuracy and loss, paired


def test_auto_tries_plans_on_images(folders, pictures):
    found = audit_model(str(folders["vit"]), estimator="mid", use_cache=False)
    plan = planned(found, Request(0.6), text=StageOptions([str(pictures)]), clock=Clock(2))
    assert plan.allocator == "auto"
    assert plan.sparsity == pytest.approx(0.6, abs=1e-6)
    words = " ".join(plan.notes)
    assert "nats a image" not in words
    assert "an image" in words or "nothing that was tried" in words
    assert "images" in words
    kept = [row for row in plan.tried if row["kept"]]
    judged = [row["guard_loss"] for row in plan.tried if row.get("guard_loss") is not None]
    assert kept[0]["guard_loss"] == min(judged)


@pytest.mark.parametrize("kind", ["deit", "convnext"])
def test_auto_from_the_command_line_tries_plans_on_images(folders, pictures, tmp_path, kind):
    plan = tmp_path / "plan.json"
    done = run(
        "plan", "prune", folders[kind], "--sparsity", 0.6, "--calibration", pictures, "--budget", "1s", "-o", plan
    )
    assert done.exit_code == 0, done.output
    made = json.loads(plan.read_text(encoding="utf-8"))
    assert made["budget"]["achieved"] == pytest.approx(0.6, abs=1e-6)
    assert any(row["kept"] for row in made["tried"])
    assert "images" in " ".join(made["notes"])


def test_images_without_classes_are_held_against_the_dense_model(folders, pictures, tmp_path):
    for place, file in enumerate(sorted(pictures.rglob("*.png"))[:24]):
        (tmp_path / f"{place}.png").write_bytes(file.read_bytes())
    found = audit_model(str(folders["vit"]), estimator="mid", use_cache=False)
    plan = planned(found, Request(0.6), text=StageOptions([str(tmp_path)]), clock=Clock(1))
    assert any("without classes" in note for note in plan.notes)
    with pytest.raises(UsageError, match="nobody says"):
        evaluate_images(str(folders["vit"]), str(tmp_path))


def test_only_classifiers_are_scored_on_images(llama, folders, pictures):
    assert is_classifier(folders["convnext"])
    assert not is_classifier(llama)
    with pytest.raises(UsageError, match="no image classifier"):
        evaluate_images(str(llama), str(pictures))
    done = run("evaluate", folders["vit"], "--images", pictures, "--text", "x.txt")
    assert "scored apart" in str(done.exception)


def test_arrays_are_read_as_the_files_are(folders, pictures, tmp_path):
    model = folders["vit"]
    config = load_classifier(str(model)).module.config
    files = images_of(str(pictures), str(model), config)
    arrays = np.stack(
        [np.asarray(Image.open(file)) for name in CLASSES for file in sorted((pictures / name).iterdir())]
    )
    np.savez(tmp_path / "x.npz", images=arrays, labels=np.repeat(np.arange(3), EACH))
    again = images_of(str(tmp_path / "x.npz"), str(model), config)
    assert torch.equal(files.pixels, again.pixels)
    assert torch.equal(files.labels, again.labels)
    few = images_of(str(pictures), str(model), config, most=5, seed=1)
    assert len(few) == 5


def test_folders_are_classes_by_label_by_number_or_in_order(folders, tmp_path):
    config = load_classifier(str(folders["vit"])).module.config
    for names, expected in ((("2", "0"), [0, 2]), (("noise", "line"), [1, 2]), (("a", "b", "c"), [0, 1, 2])):
        root = tmp_path / "-".join(names)
        for name in names:
            (root / name).mkdir(parents=True)
            Image.new("RGB", (SIDE, SIDE)).save(root / name / "x.png")
        assert images_of(str(root), str(folders["vit"]), config).labels.tolist() == expected
    (tmp_path / "odd" / "zebra").mkdir(parents=True)
    with pytest.raises(UsageError, match="zebra"):
        images_of(str(tmp_path / "odd"), str(folders["vit"]), config)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, Preparation(SIDE, SIDE, 3)),
        ({"size": {"height": 20, "width": 24}, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 2]},
         Preparation(20, 24, 3, None, (0.1, 0.2, 0.3), (1, 1, 2))),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, Preparation(224, 224, 3, 256)),
        ({"size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
         Preparation(224, 224, 3, 256)),
        ({"do_normalize": False, "rescale_factor": 0.5, "resample": 3},
         Preparation(SIDE, SIDE, 3, None, (0.0,), (1.0,), 0.5, 3)),
    ],
)  # fmt: skip
def test_pictures_are_made_ready_as_the_model_asks(folders, tmp_path, said, expected):
    config = load_classifier(str(folders["vit"])).module.config
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert preparation_of(str(tmp_path), config) == expected


def test_a_picture_is_cut_from_the_middle_and_scaled():
    picture = Image.new("RGB", (40, 20), (255, 0, 0))
    values = Preparation(16, 16, 3, 16)(picture)
    assert values.shape == (3, 16, 16)
    assert (values.min(), values.max()) == (-1.0, 1.0)
    assert Preparation(16, 16, 1)(picture).shape == (1, 16, 16)


def test_a_damaged_picture_is_named(folders, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    config = load_classifier(str(folders["vit"])).module.config
    with pytest.raises(UnreadableError, match="as an image"):
        images_of(str(tmp_path), str(folders["vit"]), config)


@pytest.mark.parametrize("kind", list(SIZES))
def test_a_pruned_classifier_is_recovered_with_its_zeros_kept(folders, pictures, tmp_path, kind):
    plan, pruned, output = tmp_path / "plan.json", tmp_path / "pruned", tmp_path / "back"
    model = folders[kind]
    assert run("plan", "prune", model, "--sparsity", 0.8, "--allocator", "uniform", "-o", plan).exit_code == 0
    assert run("apply", plan, model, "-o", pruned).exit_code == 0
    done = run("recover", pruned, "--text", pictures, "-o", output, "--steps", 30, "--lr", 0.003, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["training"]["guard_loss_after"] < found["training"]["guard_loss_before"]
    assert found["sparsity_after"] == pytest.approx(found["sparsity_before"])
    before, after = (load_classifier(str(place)).module.state_dict() for place in (pruned, output))
    zero = [key for key, value in before.items() if value.ndim > 1 and (value == 0).float().mean() > 0.5]
    assert zero
    assert all(bool((after[key][before[key] == 0] == 0).all()) for key in zero)
    assert "accuracy on images" in (output / "README.md").read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="own weights"):
        recover(str(pruned), [str(pictures)], tmp_path / "x", options=RecoverOptions(method="lora"))


def test_what_foretells_the_loss_of_a_classifier(folders, pictures):
    found = foretold(
        audit_model(str(folders["vit"]), use_cache=False), Request(0.6, "alpha"), StageOptions([str(pictures)])
    )
    assert set(found.losses) == {"alone at 60 %", "70 % among 60 %"}
    assert found.answers
