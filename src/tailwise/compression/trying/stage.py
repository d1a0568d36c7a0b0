"""What a search needs: the model in memory, windows to look at, windows kept from it, and scores of the blocks."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import torch

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.formats.common import torch_dtype
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.plans.plan import Plan
from tailwise.compression.trying.material import Material, Pictures, Text
from tailwise.compression.trying.trial import Trial, trial_of
from tailwise.core.errors import UsageError
from tailwise.core.validation import check_fields, check_least
from tailwise.models.evaluation.images import images_of, is_classifier, load_classifier, predicted
from tailwise.models.evaluation.loading import Loaded, check_length, load_model
from tailwise.models.evaluation.tokens import tokens_of, windows_of
from tailwise.models.walking.calibrate import BlockScores, block_scores
from tailwise.models.walking.stored_names import places_in

#: Fewest windows that can be divided into some to look at and some to judge by.
FEWEST = 8
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
    few: torch.Tensor  # half of `search`, for what is measured often
    guard: torch.Tensor
    scores: BlockScores
    seed: int
    notes: tuple[str, ...] = ()


def stage_of(model: str, plan: Plan, options: StageOptions) -> Stage:
    """Load the model, cut the text into windows, and measure what the layers that a plan names see.

    `plan` says which tensors are to be tried, and by which operator. Windows are drawn at random; those of the last
    choice take part in nothing else.
    """
    if is_classifier(model):
        return _of_images(model, plan, options)
    loaded = load_model(model, dtype=options.dtype, device=options.device)
    check_length(loaded.module, options.window, model)
    tokens = tokens_of(options.calibration, loaded.tokenizer, bos=options.bos)
    windows = windows_of(tokens, options.window)
    if len(windows) < FEWEST:
        raise UsageError(
            f"the text fills {len(windows)} windows of {options.window} tokens; a search takes {FEWEST} or more",
            where=tokens.name,
            fix="give more text, or a smaller --window",
        )
    return _set_up(loaded, plan, _divided(windows, options), (Text(), options.seed, tokens.notes))


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
    return _set_up(loaded, plan, _divided(places, many), (Pictures(images.pixels, labels), options.seed, notes))


def _set_up(
    loaded: Loaded,
    plan: Plan,
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    what: tuple[Material, int, tuple[str, ...]],
) -> Stage:
    (looked, search, guard), (material, seed, said), model = parts, what, loaded.name
    with open_checkpoint(model) as checkpoint:
        places, config = places_in(loaded.module, checkpoint), dict(checkpoint.config)
        dtypes = {item.tensor: _dtype_of(checkpoint, item.tensor) for item in plan if item.tensor in checkpoint.tensors}
    trial, notes = trial_of(loaded.module, places, plan, looked, (config, dtypes), material)
    scores = block_scores(loaded.module, material.inputs(looked))
    return Stage(
        trial,
        looked,
        search,
        search[: max(1, len(search) // 2)],
        guard,
        scores,
        seed,
        (*loaded.notes, *said, *notes),
    )


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
