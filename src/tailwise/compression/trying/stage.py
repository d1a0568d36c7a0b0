"""What a search needs: the model in memory, windows to look at, windows kept from it, and scores of the blocks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import torch

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.formats.common import torch_dtype
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.plans.combined import how_of
from tailwise.compression.plans.plan import Plan
from tailwise.compression.trying.clock import Clock
from tailwise.compression.trying.material import Material, Objective, Pictures, Text, products_in
from tailwise.compression.trying.pace import Pace, pace_of, sized
from tailwise.compression.trying.trial import Looking, Trial, trial_of
from tailwise.core.errors import UsageError
from tailwise.core.freed import give_back
from tailwise.core.kept import kept_property
from tailwise.core.validation import check_fields, check_least
from tailwise.models.evaluation.images import images_of, is_classifier, load_classifier, predicted
from tailwise.models.evaluation.loading import Loaded, check_length, load_model
from tailwise.models.evaluation.tokens import tokens_of, windows_of
from tailwise.models.walking.calibrate import BlockScores, block_scores
from tailwise.models.walking.stored_names import places_in

#: Fewest windows that can be divided into some to look at and some to judge by.
FEWEST = 8
#: Part of a budget: where treating every tensor once takes more, trials take the lighter operator.
_TREATED = 0.01
_SEEING = "measuring what layers see"
#: Images that trials are scored on, and statistics taken from; twice as many for the last choice.
_IMAGES = 128


@dataclass(frozen=True)
class StageOptions:
    """Text and where to compute."""

    calibration: Any  # what `tokens_of` takes
    samples: int = 32  # windows that statistics are taken from
    window: int = 512
    search_windows: int = 8  # of these, the ones that every trial is scored on
    guard_windows: int = 24  # others, for the last choice
    judged_windows: int | None = None  # that layers look at when a plan is judged; None: all of `samples`
    objective: Objective | None = None  # what a search makes small; None: the loss, and `kl` where plans compete
    divergences: bool = False  # keep the dense model's predictions, to tell how far a plan is from them
    passes: torch.dtype | None = None  # what trials multiply in; None: as the weights are
    lighter: bool = False  # whether trials take the lighter operator, where there is one that does without XᵀX
    seed: int = 0
    bos: str = "auto"  # whether windows begin with the token that begins a text
    device: str = "cpu"
    dtype: str = "auto"
    executor: Executor | str = "local"  # as of `RunOptions`: of trials that do not wait for one another
    workers: int | None = None
    patience: float = 600.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_least(self, samples=1, window=2, search_windows=1, guard_windows=1, seed=0, workers=1)


@dataclass(frozen=True)
class Stage:
    """Set up once for a model, an operator and a text."""

    trial: Trial
    looked: torch.Tensor  # (n, window), what statistics are taken from
    search: torch.Tensor  # of these, what every trial is scored on
    guard: torch.Tensor
    options: StageOptions
    notes: tuple[str, ...] = ()
    pace: Pace | None = None  # where it was timed
    treating: float = 0.0  # seconds to treat every tensor once by the plan's own operator; 0 where that was not timed

    @kept_property
    def scores(self) -> BlockScores:
        """Of the blocks of the dense model, measured when they are first asked for: by no plan of formats."""
        self.trial.restore()
        with self.trial.quick():
            return block_scores(self.trial.model, self.trial.material.inputs(self.looked))

    @property
    def seed(self) -> int:
        """Of the windows and the search."""
        return self.options.seed

    @property
    def judged_on(self) -> torch.Tensor:
        """The windows that layers look at when a plan is judged: some of `looked`."""
        return (
            self.looked if self.options.judged_windows is None else self.looked[: max(1, self.options.judged_windows)]
        )


def stage_of(
    model: str,
    plan: Plan,
    options: StageOptions,
    clock: Clock | None = None,
    tell: Callable[[str], None] = lambda _what: None,
) -> Stage:
    """Load the model, cut the text into windows, and measure what the layers that a plan names see.

    `plan` says which tensors are to be tried, and by which operator. Windows are drawn at random; those of the last
    choice take part in nothing else. With a clock, a pass is timed first, and there are as many windows as its time
    pays for, at most those that `options` name. `tell` is called with what is done.
    """
    tell("reading the model")
    if is_classifier(model):
        return _of_images(model, plan, options)
    loaded = load_model(model, dtype=options.dtype, device=options.device)
    check_length(loaded.module, options.window, model)
    tell("reading the text")
    tokens = tokens_of(options.calibration, loaded.tokenizer, bos=options.bos)
    windows = windows_of(tokens, options.window)
    if len(windows) < FEWEST:
        raise UsageError(
            f"the text fills {len(windows)} windows of {options.window} tokens; a search takes {FEWEST} or more",
            where=tokens.name,
            fix="give more text, or a smaller --window",
        )
    tell("timing a pass")
    pace = None if clock is None else pace_of(loaded.module, windows[:1], clock.read)
    if pace is not None and clock is not None:
        options = sized(options, pace, clock.seconds, looks=how_of(plan).looks)
    text, parts = Text(options.objective or "loss"), _divided(windows, options)
    tell("predicting with the dense model")
    if options.divergences or text.objective == "kl":
        with products_in(options.passes, loaded.module):
            text.remember(loaded.module, parts[1])
        text.remember(loaded.module, parts[2])
    tell(_SEEING)
    return _set_up(loaded, plan, parts, (text, options, tokens.notes), (pace, clock), tell)


def _of_images(model: str, plan: Plan, options: StageOptions) -> Stage:
    """The same for a classifier; where nobody says what the images show, the model's own classes are the target."""
    if options.executor != "local":
        raise UsageError("plans of image classifiers are tried here alone", where=model, fix="leave --executor out")
    loaded = load_classifier(model, device=options.device)
    images = images_of(options.calibration, model, loaded.module.config)
    if len(images) < FEWEST:
        raise UsageError(f"{len(images)} images; a search takes {FEWEST} or more", where=images.name, fix="give more")
    notes, labels = images.notes, images.labels
    if labels is None:
        labels = predicted(loaded.module, images.pixels)
        notes = (*notes, f"{images.name}: without classes; the loss is against those that the dense model gives")
    # A window of text is hundreds of predictions, an image one.
    many = replace(options, samples=max(options.samples, _IMAGES), search_windows=_IMAGES, guard_windows=2 * _IMAGES)
    places = torch.arange(len(images))[:, None]
    return _set_up(loaded, plan, _divided(places, many), (Pictures(images.pixels, labels), many, notes))


def _set_up(
    loaded: Loaded,
    plan: Plan,
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    what: tuple[Material, StageOptions, tuple[str, ...]],
    time: tuple[Pace | None, Clock | None] = (None, None),
    tell: Callable[[str], None] = lambda _what: None,
) -> Stage:
    (looked, search, guard), (material, options, said), model = parts, what, loaded.name
    with open_checkpoint(model) as checkpoint:
        places, config = places_in(loaded.module, checkpoint), dict(checkpoint.config)
        dtypes = {item.tensor: _dtype_of(checkpoint, item.tensor) for item in plan if item.tensor in checkpoint.tensors}
    looking = Looking(looked, material, options.passes, lambda done, total: tell(f"{_SEEING}, block {done} of {total}"))
    trial, notes = trial_of(loaded.module, places, plan, looking, (config, dtypes))
    give_back()
    treating = 0.0 if time[1] is None else trial.seconds_of_treating(plan, time[1].read)
    options, swift = _swift(trial, treating, options, time[1])
    return Stage(
        trial,
        looked,
        search,
        guard,
        options,
        (*loaded.notes, *said, *notes, *swift),
        time[0],
        treating,
    )


def _swift(
    trial: Trial, took: float, options: StageOptions, clock: Clock | None
) -> tuple[StageOptions, tuple[str, ...]]:
    """Trials by the lighter operator, where it was asked for or the plan's own would take the time."""
    if trial.how.needs != "hessian":
        return options, ()
    heavy, why = trial.how.operator.name, ""
    if not options.lighter:
        # Plans of formats by rounding to nearest were no guide to GPTQ's: docs/evidence.md.
        if clock is None or trial.how.operator.does != "prune":
            return options, ()
        if took <= _TREATED * clock.seconds:
            return options, ()
        why = f", for {heavy} takes {took:.2g} s to treat every tensor once"
    trial.lighten()
    note = f"trials took {trial.how.operator.name}{why}; what was judged and kept is of {heavy}"
    return replace(options, lighter=True), (note,)


def _dtype_of(checkpoint: Checkpoint, tensor: str) -> torch.dtype:
    """As it is stored; float32 where a GGUF file holds rounded values, which is what they are read as."""
    code = checkpoint.tensors[tensor].dtype
    plain = code in ("F64", "F32", "F16", "BF16")
    return torch_dtype(code, where=tensor) if plain or checkpoint.format != "gguf" else torch.float32


def _divided(windows: torch.Tensor, options: StageOptions) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Windows for statistics, those of them for trials, and others for the last choice."""
    generator = torch.Generator().manual_seed(options.seed)
    order = torch.randperm(len(windows), generator=generator)
    apart = min(options.guard_windows, len(windows) // 2)
    # In the order of the text, by which intervals tell how alike neighbours are.
    guard, rest = windows[order[:apart].sort().values], windows[order[apart:]]
    looked = rest[: options.samples]
    return looked, looked[: options.search_windows], guard
