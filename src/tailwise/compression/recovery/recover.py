"""`recover()`: a pruned model trained for a while, its zeros kept at zero."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.draft import Draft, check_output, check_space
from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.writer import OutputLayout, layout_of, write_checkpoint
from tailwise.compression.applying.card import PLAN_FILE
from tailwise.compression.plans.plan import Plan
from tailwise.compression.recovery.control import ControlRun
from tailwise.compression.recovery.image_data import recover_pictures
from tailwise.compression.recovery.lora import adapter_of, behind_masks, layers_for, merged, save_adapter, with_adapter
from tailwise.compression.recovery.masked import Written, masks_in, trainable
from tailwise.compression.recovery.recovered import RECOVERY_FILE, Recovered, card
from tailwise.compression.recovery.text_data import GUARD, Split, split_text
from tailwise.compression.recovery.time_budget import TimeBudget
from tailwise.compression.recovery.train_loop import Course, Say, Trainer, Training
from tailwise.core.bars import listener, of_share
from tailwise.core.errors import UsageError
from tailwise.core.validation import check_fields, check_least, checked
from tailwise.models.evaluation.evaluate import digest_of, summary
from tailwise.models.evaluation.images import is_classifier
from tailwise.models.evaluation.intervals import MIN_VALUES
from tailwise.models.evaluation.loading import Loaded, check_length, load_model, vocabulary_of
from tailwise.models.evaluation.losses import check_causal, window_losses
from tailwise.models.evaluation.model_size import facts_of
from tailwise.models.evaluation.score_pairs import compare_scores
from tailwise.models.evaluation.scores import Scores
from tailwise.models.evaluation.tokens import check_vocabulary
from tailwise.models.walking.stored_names import places_in

METHODS = ("masked", "lora")
_PROMPTS = (
    "it trains vectors in front of the input and leaves the weights as they are, so what pruning took away stays away"
)
#: Other methods of peft that are asked for, and why they are not offered.
_WHY_NOT: Mapping[str, str] = {
    "ia3": "it rescales activations by a vector for each layer, which can not make good what single entries did",
    "prefix": _PROMPTS,
    "prefix_tuning": _PROMPTS,
    "prompt_tuning": _PROMPTS,
    "p_tuning": _PROMPTS,
}
#: Highest learning rate times the width. A heuristic: 2.4e-5 and 1.2e-4 at a width of 4,096, where published
#: fine-tunings and LoRA trainings are; narrower models take larger steps.
_RATES = {"masked": 0.1, "lora": 0.5}
_PRUNED = 0.01  # share of zeros in the blocks below which nothing was pruned


@dataclass(frozen=True)
class RecoverOptions:
    """How a model is recovered."""

    method: str = "masked"
    steps: int = 1000
    lr: float | None = None  # highest; None: by the model's width
    rank: int = 8  # of the adapter
    merge: bool = False  # train the adapter behind the mask and add it to the weights; else it is written by itself
    window: int = 512  # tokens
    batch: int = 4  # windows a step
    seed: int = 0
    seconds: float = 300.0  # of everything, reading and scoring too; it ends earlier where the steps are done
    control: str | None = None  # the dense model, trained as long to tell adaptation to the text from recovery
    device: str = "cpu"
    force: bool = False  # replace the output

    def __post_init__(self) -> None:
        check_fields(self)
        check_least(self, seed=0)
        # Told before a model is read.
        if (why := _WHY_NOT.get(self.method.lower().replace("³", "3").replace("-", "_"))) is not None:
            raise UsageError(f"{self.method} does not recover a pruned model: {why}", fix=f"use {' or '.join(METHODS)}")
        if self.method not in METHODS:
            raise UsageError(f"{self.method!r} is no way to recover", fix=f"use {' or '.join(METHODS)}")
        if self.merge and self.method != "lora":
            raise UsageError("there is no adapter to merge", fix="leave --merge out, or use --method lora")
        for name, least in (("steps", 1), ("rank", 1), ("batch", 1), ("window", 2)):
            if getattr(self, name) < least:
                raise UsageError(f"{getattr(self, name)} is too little", where=f"--{name}", fix=f"use {least} or more")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UsageError(f"{self.lr:g} is no learning rate", where="--lr", fix="use some number above 0, e.g. 1e-4")
        if not self.seconds > 0:
            raise UsageError(f"a time budget of {self.seconds:g} s", fix="give more than zero to --budget")


@checked
def recover(
    model: str | os.PathLike[str],
    text: Any,
    output: str | os.PathLike[str],
    *,
    options: RecoverOptions | None = None,
    say: Say | bool | None = None,
    began: float | None = None,
) -> Recovered:
    """Train the pruned `model` on `text` and write it to `output`, its zeros kept at zero.

    `model` is a folder or a Hugging Face id of a causal language model, `text` what `tokens_of` takes; or of an image
    classifier, and `text` what `images_of` takes, with classes. A part of the
    text is kept out: quality before and after is measured on it, and the best state is chosen on another part.
    `masked` trains every stored parameter; `lora` an adapter of peft on the pruned layers, written as peft's folder,
    or, trained behind the mask, merged into the weights. With a control, the dense model is trained as long beside it.
    The time budget runs from `began`, a time of `time.monotonic`, or from now. The output appears whole or not at all.
    `say` is called with what is done and the share of all; True shows a bar, as notebooks and interactive shells do by
    default. Raises
    `UsageError` where the model is not causal, the text is too short, or no state was better than the first.
    """
    wanted, name, target = options or RecoverOptions(), os.fspath(model), Path(output)
    budget = TimeBudget(wanted.seconds) if began is None else TimeBudget(wanted.seconds, began=began)
    source = Path(name).expanduser()
    check_output(target, force=wanted.force, source=source if source.exists() else None)
    _check_plan(source, wanted)
    with listener(say, "recover", of_share) as told:
        if is_classifier(name):
            return recover_pictures(name, text, target, wanted, (budget, told))
        return _recovered(name, text, target, wanted, (budget, told))


def _recovered(
    name: str, text: Any, target: Path, wanted: RecoverOptions, clock: tuple[TimeBudget, Say | None]
) -> Recovered:
    budget, say = clock
    _tell(say, "reading the model and the text", 0.0)
    loaded, budget.reading = budget.timed(lambda: load_model(name, dtype="float32", device=wanted.device))
    split = split_text(text, loaded.tokenizer, wanted.window, wanted.seed)
    _check_windows(loaded, split, wanted)
    with open_checkpoint(name) as checkpoint:
        layout = layout_of(checkpoint, name)
        check_space(target, layout.nbytes + (1 << 20))
        budget.know_size(layout.nbytes)
        return _Run(name, target, loaded, split, (checkpoint, layout), wanted, clock).done()


def _tell(say: Say | None, what: str, share: float) -> None:
    if say is not None:
        say(what, share)


def _check_plan(source: Path, options: RecoverOptions) -> None:
    """`UsageError` for a model of low rank, which either way would lose its rank."""
    path = source / PLAN_FILE
    if not path.is_file() or (options.method == "lora" and not options.merge):
        return
    if Plan.load(path).operator == "low_rank":
        raise UsageError(
            "it is of low rank, and would no longer be", where=source, fix="use --method lora without --merge"
        )


def _check_windows(loaded: Loaded, split: Split, options: RecoverOptions) -> None:
    vocabulary = vocabulary_of(loaded.module)
    check_length(loaded.module, options.window, loaded.name)
    if vocabulary is not None:
        for ids in (split.train, split.guard, split.held_out):
            check_vocabulary(ids, vocabulary, loaded.name)
    check_causal(loaded.module, vocabulary or int(split.train.max()) + 1, loaded.name)


@dataclass
class _Run:
    name: str
    output: Path
    loaded: Loaded
    split: Split
    stored: tuple[Checkpoint, OutputLayout]
    options: RecoverOptions
    clock: tuple[TimeBudget, Say | None]

    def done(self) -> Recovered:
        checkpoint, _ = self.stored
        model, wanted, budget = self.loaded.module, self.options, self.clock[0]
        places = places_in(model, checkpoint)
        masks = masks_in(model, checkpoint, places)
        zeros = facts_of(self.name).block_sparsity
        notes = [*self.split.notes, *self.loaded.notes]
        if zeros < _PRUNED:
            notes.append(f"{zeros:.2%} of the entries in its blocks are zero: it is not pruned, and is only fine-tuned")
        lr = wanted.lr or _RATES[wanted.method] / _width(model)
        notes += self._fewer_windows()
        self._tell("scoring the model as it is", 0.0)
        before, budget.scoring = budget.timed(lambda: self._scores(model, self.name))
        dense = None if wanted.control is None else self._dense(wanted.control, masks)
        settings = asdict(replace(wanted, lr=lr)) | {"text": self.split.name, "train_tokens": len(self.split.train)}
        for name in ("force", *(() if wanted.method == "lora" else ("rank", "merge"))):
            del settings[name]
        with Draft(self.output, force=wanted.force) as draft:
            recovery = self._masked if wanted.method == "masked" else self._lora
            seconds = budget.for_training(written=wanted.method == "masked" or wanted.merge)
            course = Course(wanted.steps, lr, wanted.batch, wanted.window, wanted.seed, seconds)
            training, after, unmerged = recovery(draft, course, places, masks)
            compared = compare_scores(after, before, seed=wanted.seed)
            control = None if dense is None else dense.beside(training, course, compared, budget.until)
            trained = training.seconds + (0.0 if control is None else control.training.seconds)
            found = Recovered(
                self.output,
                "lora, merged" if wanted.merge else wanted.method,
                compared,
                training,
                (zeros, zeros if wanted.method == "lora" and not wanted.merge else self._zeros(draft)),
                unmerged,
                settings,
                (*notes, *(control.notes() if control else ()), *budget.notes(trained)),
                control,
                budget.spent,
            )
            (draft.folder / RECOVERY_FILE).write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
            (draft.folder / "README.md").write_text(card(found, self.name), encoding="utf-8")
            draft.commit()
        return found

    def _fewer_windows(self) -> list[str]:
        """Measure on as many of the held-out windows as the time allows; what there is to say of it."""
        held_out, guard, budget = self.split.held_out, self.split.guard, self.clock[0]
        self._tell("timing a pass", 0.0)
        _, seconds = budget.timed(lambda: window_losses(self.loaded.module, held_out[:MIN_VALUES]))
        each, passes = seconds / MIN_VALUES, (2 if self.options.control is None else 4) + int(self.options.merge)
        measured = budget.held_out(len(held_out), each, passes, least=MIN_VALUES)
        chosen = budget.guard(len(guard), each, least=GUARD[0])
        if (measured, chosen) == (len(held_out), len(guard)):
            return []
        self.split = replace(self.split, held_out=_some(held_out, measured), guard=_some(guard, chosen))
        return [
            f"quality is measured on {measured} of {len(held_out)} windows, and the best state chosen by {chosen} of "
            f"{len(guard)}: more would leave too little of the time for training"
        ]

    def _tell(self, what: str, share: float) -> None:
        _tell(self.clock[1], what, share)

    def _dense(self, name: str, masks: Mapping[str, torch.Tensor]) -> ControlRun:
        """The control, scored before anything is trained, so that one that does not fit is told at once."""
        wanted, budget = self.options, self.clock[0]

        def opened() -> nn.Module:
            loaded = load_model(name, self.loaded.tokenizer, dtype="float32", device=wanted.device)
            _check_windows(loaded, self.split, wanted)
            return loaded.module

        def trainer(model: nn.Module) -> Trainer:
            share = budget.weight
            return self._trainer(*self._moving(model, name, masks), {}, ("control: ", share, 1 - share))

        self._tell("scoring the control as it is", 0.0)
        model, reading = budget.timed(opened)
        before, scoring = budget.timed(lambda: self._scores(model, name))
        budget.control = (reading, scoring)
        return ControlRun(name, opened, trainer, self._scores, before)

    def _moving(
        self, model: nn.Module, name: str, masks: Mapping[str, torch.Tensor]
    ) -> tuple[nn.Module, Mapping[str, nn.Parameter]]:
        """The control and what moves of it: what moves of the pruned model, without its masks."""
        wanted = self.options
        if wanted.method == "lora":
            adapted = with_adapter(model, layers_for(model, masks), wanted.rank, wanted.seed, name)
            return adapted, adapter_of(adapted)
        with open_checkpoint(name) as checkpoint:
            return model, trainable(model, checkpoint, places_in(model, checkpoint))

    def _masked(
        self, draft: Draft, course: Course, places: Mapping[str, str], masks: Mapping[str, torch.Tensor]
    ) -> tuple[Training, Scores, None]:
        model = self.loaded.module
        moving = trainable(model, self.stored[0], places)
        kept = {name: mask for name, mask in masks.items() if name in moving}
        training = self._trained(model, moving, kept, course)
        return training, self._write(draft, places, moving, masks), None

    def _lora(
        self, draft: Draft, course: Course, places: Mapping[str, str], masks: Mapping[str, torch.Tensor]
    ) -> tuple[Training, Scores, Scores | None]:
        model, wanted = self.loaded.module, self.options
        layers = [name for name in layers_for(model, masks) if f"{name}.weight" in set(places.values())]
        source = Path(self.name).expanduser()
        base = str(source.resolve()) if source.is_dir() else self.name
        adapted = with_adapter(model, layers, wanted.rank, wanted.seed, base)
        if wanted.merge:
            behind_masks(adapted, masks)
        training = self._trained(adapted, adapter_of(adapted), {}, course)
        scores = self._scores(adapted, str(self.output))
        if not wanted.merge:
            save_adapter(adapted, draft.folder)
            return training, scores, None
        return training, self._write(draft, places, merged(adapted, layers), masks), scores

    def _trained(
        self,
        model: nn.Module,
        moving: Mapping[str, nn.Parameter],
        masks: Mapping[str, torch.Tensor],
        course: Course,
    ) -> Training:
        return self._trainer(model, moving, masks, ("", 0.0, self.clock[0].weight)).run(course)

    def _trainer(
        self,
        model: nn.Module,
        moving: Mapping[str, nn.Parameter],
        masks: Mapping[str, torch.Tensor],
        told: tuple[str, float, float],
    ) -> Trainer:
        """`told`: what is said first of its progress, where that begins, and how much it is of all."""
        first, start, part = told
        say: Say | None = (
            None if self.clock[1] is None else lambda what, share: self._tell(first + what, start + part * share)
        )
        return Trainer(model, moving, masks, self.split.train, self.split.guard, say)

    def _write(
        self,
        draft: Draft,
        places: Mapping[str, str],
        values: Mapping[str, torch.Tensor],
        masks: Mapping[str, torch.Tensor],
    ) -> Scores:
        """Write the checkpoint and score it as it was written, rounded to its dtype."""
        checkpoint, layout = self.stored
        self._tell("writing and scoring what was written", self.clock[0].weight)
        write_checkpoint(layout, checkpoint, draft.folder, Written(checkpoint, places, values, masks))
        again = load_model(str(draft.folder), self.loaded.tokenizer, dtype="float32", device=self.options.device)
        return self._scores(again.module, str(self.output))

    def _scores(self, model: nn.Module, name: str) -> Scores:
        windows = self.split.held_out
        losses = window_losses(model, windows)
        perplexity, interval = summary(losses, seed=self.options.seed)
        return Scores(
            model=name,
            perplexity=perplexity,
            interval=interval,
            losses=tuple(float(loss) if math.isfinite(loss) else None for loss in losses),
            tokens_per_window=windows.shape[1] - 1,
            digest=digest_of(windows),
        )

    def _zeros(self, draft: Draft) -> float:
        return facts_of(draft.folder).block_sparsity


def _some(windows: torch.Tensor, count: int) -> torch.Tensor:
    """So many of the windows, evenly apart and in their order."""
    return windows[torch.linspace(0, len(windows) - 1, count).round().long()]


def _width(model: nn.Module) -> int:
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    found = None if embedding is None else embedding.weight.shape[1]
    return int(found or max(value.shape[-1] for value in model.parameters() if value.ndim > 1))
