"""Recovery of image classifiers: the same short training behind the mask, on images with their classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from tailwise.checkpoints.draft import Draft, check_space
from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.writer import layout_of, write_checkpoint
from tailwise.compression.recovery.control import ControlRun
from tailwise.compression.recovery.masked import Written, masks_in, trainable
from tailwise.compression.recovery.recovered import RECOVERY_FILE, Recovered, card
from tailwise.compression.recovery.time_budget import TimeBudget
from tailwise.compression.recovery.train_loop import Course, Say, Trainer
from tailwise.core.errors import UsageError
from tailwise.models.evaluation.classify import task_scores_of
from tailwise.models.evaluation.images import Images, image_losses, images_of, load_classifier
from tailwise.models.evaluation.model_size import facts_of
from tailwise.models.evaluation.score_pairs import compare_scores
from tailwise.models.evaluation.scores import Scores
from tailwise.models.walking.stored_names import places_in

#: Shares of the images that quality is measured on, and that the best state is chosen by.
_HELD_OUT, _GUARD = 0.2, 0.1
_LEAST = 40  # images in all
#: Highest learning rate times the width, as for text.
_RATE = 0.1


@dataclass
class PictureTrainer(Trainer):
    """As `Trainer`; `ids` and `guard` are places in a set of images."""

    images: Images | None = None

    def _loss(self, windows: torch.Tensor) -> torch.Tensor:
        pixels, labels = self._at(windows)
        found: Any = self.model(pixel_values=pixels.to(self._device))
        return cross_entropy(found.logits.float(), labels.to(self._device))

    def _drawn(self, course: Course, generator: torch.Generator) -> torch.Tensor:
        return self.ids[torch.randint(0, len(self.ids), (course.batch,), generator=generator)]

    def _guard_loss(self) -> float:
        training = self.model.training
        self.model.eval()
        try:
            return float(image_losses(self.model, *self._at(self.guard))[0].mean())
        finally:
            self.model.train(training)

    def _at(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.images is not None and self.images.labels is not None  # noqa: S101, PT018 - looked at before
        return self.images.pixels[places], self.images.labels[places]


def recover_pictures(
    name: str, source: Any, target: Path, options: Any, clock: tuple[TimeBudget, Say | None]
) -> Recovered:
    """`recover` of an image classifier: `source` is what `images_of` takes, with classes. Raises `UsageError`."""
    if options.method != "masked":
        raise UsageError("an image classifier is recovered by its own weights", fix="use --method masked")
    budget = clock[0]
    loaded, budget.reading = budget.timed(lambda: load_classifier(name, device=options.device))
    images = images_of(source, name, loaded.module.config)
    if images.labels is None:
        raise UsageError("nobody says what the images show", where=images.name, fix="give a folder for each class")
    work = _Pictures(images, _divided(images, options.seed), options, clock)
    model = loaded.module
    before, budget.scoring = budget.timed(lambda: work.scores(model, name))
    dense = None if options.control is None else work.dense(options.control)
    zeros = facts_of(name).block_sparsity
    with open_checkpoint(name) as checkpoint:
        layout = layout_of(checkpoint, name)
        check_space(target, layout.nbytes + (1 << 20))
        budget.know_size(layout.nbytes)
        places = places_in(model, checkpoint)
        masks, moving = masks_in(model, checkpoint, places), trainable(model, checkpoint, places)
        width = max(value.shape[-1] for value in model.parameters() if value.ndim == 2)
        lr = options.lr or _RATE / width
        kept = {key: mask for key, mask in masks.items() if key in moving}
        seconds = budget.for_training(written=True)
        course = Course(options.steps, lr, max(options.batch, 16), 1, options.seed, seconds)
        training = work.trainer(model, moving, kept, ("", 0.0, budget.weight)).run(course)
        with Draft(target, force=options.force) as draft:
            write_checkpoint(layout, checkpoint, draft.folder, Written(checkpoint, places, moving, masks))
            again = load_classifier(str(draft.folder), device=options.device)
            compared = compare_scores(work.scores(again.module, str(target)), before, seed=options.seed)
            control = None if dense is None else dense.beside(training, course, compared, budget.until)
            trained = training.seconds + (0.0 if control is None else control.training.seconds)
            notes = (*work.notes(), *loaded.notes, *(control.notes() if control else ()), *budget.notes(trained))
            found = Recovered(
                target, "masked", compared, training, (zeros, facts_of(draft.folder).block_sparsity), None,
                _settings(options, lr, images, len(work.parts[0])), notes, control, budget.spent,
            )  # fmt: skip
            (draft.folder / RECOVERY_FILE).write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
            (draft.folder / "README.md").write_text(card(found, name), encoding="utf-8")
            draft.commit()
    return found


@dataclass
class _Pictures:
    """The images of one recovery: trained on, chosen by, and measured by."""

    images: Images
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    options: Any
    clock: tuple[TimeBudget, Say | None]

    def trainer(
        self,
        model: torch.nn.Module,
        moving: Mapping[str, torch.nn.Parameter],
        masks: Mapping[str, torch.Tensor],
        told: tuple[str, float, float],
    ) -> PictureTrainer:
        """`told`: what is said first of its progress, where that begins, and how much it is of all."""
        (first, start, part), say = told, self.clock[1]
        tell: Say | None = None if say is None else lambda what, share: say(first + what, start + part * share)
        return PictureTrainer(model, moving, masks, *self.parts[:2], tell, self.images)

    def scores(self, model: torch.nn.Module, name: str) -> Scores:
        """Accuracy and loss on what is measured by."""
        images, places = self.images, self.parts[2]
        assert images.labels is not None  # noqa: S101 - looked at before
        chosen = Images(images.pixels[places], images.labels[places], images.name)
        model.eval()
        return Scores(model=name, tasks=task_scores_of(model, chosen))

    def dense(self, name: str) -> ControlRun:
        """The control, scored before anything is trained."""
        budget = self.clock[0]

        def opened() -> torch.nn.Module:
            model: torch.nn.Module = load_classifier(name, device=self.options.device).module
            return model

        def trainer(model: torch.nn.Module) -> PictureTrainer:
            share = budget.weight
            with open_checkpoint(name) as checkpoint:
                moving = trainable(model, checkpoint, places_in(model, checkpoint))
            return self.trainer(model, moving, {}, ("control: ", share, 1 - share))

        model, reading = budget.timed(opened)
        before, scoring = budget.timed(lambda: self.scores(model, name))
        budget.control = (reading, scoring)
        return ControlRun(name, opened, trainer, self.scores, before)

    def notes(self) -> tuple[str, ...]:
        """How the images are divided."""
        train, guard, held_out = map(len, self.parts)
        return (
            f"{train} of {len(self.images)} images are trained on; {guard} others choose the best state, and "
            f"{held_out} more measure quality",
        )


def _divided(images: Images, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Places to train on, to choose by, and to measure by; drawn at random."""
    if len(images) < _LEAST:
        raise UsageError(f"{len(images)} images; recovery takes {_LEAST} or more", where=images.name, fix="give more")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held_out = round(_HELD_OUT * len(order))
    middle = held_out + max(round(_GUARD * len(order)), 4)
    return order[middle:], order[held_out:middle], order[:held_out].sort().values


def _settings(options: Any, lr: float, images: Images, train: int) -> Mapping[str, Any]:
    found = asdict(replace(options, lr=lr)) | {"images": images.name, "train_images": train}
    for key in ("force", "rank", "merge", "window"):
        del found[key]
    return found
