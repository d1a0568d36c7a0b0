"""`evaluate`: the scores of a model, alone or against a base over the same windows and tasks."""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from tailwise.core.bars import Told, listener
from tailwise.core.errors import TailwiseError, UsageError
from tailwise.core.interrupts import ended_by_interrupts
from tailwise.core.storage import free_memory
from tailwise.core.validation import check_fields, check_least, checked
from tailwise.models.evaluation.adapters import base_of, is_adapter
from tailwise.models.evaluation.divergence import paired_losses
from tailwise.models.evaluation.intervals import few_windows, mean_interval
from tailwise.models.evaluation.loading import (
    Loaded,
    address_of,
    check_length,
    load_model,
    load_tokenizer,
    vocabulary_of,
)
from tailwise.models.evaluation.losses import check_causal, window_losses
from tailwise.models.evaluation.model_size import facts_of
from tailwise.models.evaluation.quiet import quiet
from tailwise.models.evaluation.score_pairs import compare_scores
from tailwise.models.evaluation.scores import Interval, ScoreComparison, Scores, TaskScore
from tailwise.models.evaluation.sources import SEPARATOR
from tailwise.models.evaluation.tokens import Tokens, check_vocabulary, shorter, tokens_of, windows_of
from tailwise.models.evaluation.turn import Turn

if TYPE_CHECKING:
    import torch

#: Times that weights grow which are read as float32: of 16 bits, and of some 4.
_WIDENS = {".safetensors": 2, ".bin": 2, ".gguf": 8}

#: Tokens in a window, and the fewest that a text is cut into so that there are `SEVERAL`.
WINDOW, SHORTEST, SEVERAL = 512, 64, 12

_LOSSES_ALONE = (
    "no divergence from the base: saved scores hold losses, not answers. Give the model itself to --against for it."
)

Losses = NDArray[np.float64]  # (n,) mean nats a token of every window
#: What is being done, how much of it, and how much in all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EvaluateOptions:
    """How a model is evaluated."""

    window: int | None = None  # tokens; None: `WINDOW`, and less where the text is short
    max_windows: int | None = None  # that many at random; None: all
    separator: str = SEPARATOR  # a line of a text file that ends a document
    bos: str = "auto"  # whether windows begin with the token that begins a text: auto, always, never
    tasks: tuple[str, ...] = ()
    include_path: str | Path | None = None  # task files
    limit: int | None = None  # documents of each task
    seed: int = 0
    dtype: str = "auto"  # auto, float32, bfloat16, float16
    device: str = "cpu"
    batch: int | None = None  # windows at once; None: as memory allows
    speed: bool = False
    facts: bool = True  # count parameters and zeros
    base: str | None = None  # of an adapter: the model it adapts; None: as the adapter says

    def __post_init__(self) -> None:
        check_fields(self)
        check_least(self, window=2, max_windows=1, limit=1, seed=0, batch=1)

    @property
    def length(self) -> int:
        """Tokens in a window."""
        return self.window or WINDOW


@overload
def evaluate(
    model: Any,
    *,
    text: Any = ...,
    against: None = None,
    tokenizer: Any = ...,
    options: EvaluateOptions = ...,
    progress: Progress | bool | None = ...,
) -> Scores: ...
@overload
def evaluate(
    model: Any,
    *,
    text: Any = ...,
    against: object,
    tokenizer: Any = ...,
    options: EvaluateOptions = ...,
    progress: Progress | bool | None = ...,
) -> ScoreComparison: ...
@checked
def evaluate(
    model: Any,
    *,
    text: Any = None,
    against: Any = None,
    tokenizer: Any = None,
    options: EvaluateOptions | None = None,
    progress: Progress | bool | None = None,
) -> Scores | ScoreComparison:
    """Perplexity, tasks, size and speed of a causal language model; with `against`, next to a base.

    `model` is a folder, a Hugging Face id, or a module of transformers with its `tokenizer`; `text` what
    `tokens_of` takes. `against` is another model, which then sees the very same windows and documents, or `Scores`
    that were saved. A model without a tokenizer of its own uses the base's. `progress` is called with what is done,
    how much of it, and how much in all; True shows a bar, as notebooks and interactive shells do by default.

    An interruption while windows are scored ends that early: the scores are of those that were, which were drawn at
    random. A second one raises `KeyboardInterrupt`.
    """
    with listener(progress, "evaluate", _of_three) as told:
        return _evaluated((model, against), text, tokenizer, options or EvaluateOptions(), told)


def _of_three(what: str, done: int, total: int) -> Told:
    return what, done, total


def _evaluated(
    both: tuple[Any, Any], text: Any, tokenizer: Any, wanted: EvaluateOptions, progress: Progress | None
) -> Scores | ScoreComparison:
    model, against = both
    if text is None and not wanted.tasks and not wanted.speed:
        raise UsageError("there is nothing to evaluate", fix="give --text, --tasks or --speed")
    ours, theirs = _tokenizers(model, against, tokenizer, wanted.base)
    tokens = None if text is None else tokens_of(text, ours, separator=wanted.separator, bos=wanted.bos)
    if tokens is not None and theirs is not None and theirs is not ours and tokens.documents:
        _check_same(tokens, tokens_of(text, theirs, separator=wanted.separator, bos=wanted.bos), against)
    wanted, tokens = _sized(wanted, tokens)
    windows = None if tokens is None else windows_of(tokens, wanted.length, wanted.max_windows, wanted.seed)
    material = (tokens, windows)
    if against is None:
        return _scores(model, ours, material, wanted, progress)
    if isinstance(against, Scores):
        found = _scores(model, ours, material, wanted, progress)
        base = against if windows is None else _of_the_same(against, found, windows, wanted)
        compared = compare_scores(found, base, seed=wanted.seed)
        return compared if windows is None else replace(compared, notes=(*compared.notes, _LOSSES_ALONE))
    pair = (model, ours), (against, ours if theirs is None else theirs)
    short = None if windows is None else _lacks_room(model, against)
    if windows is not None and short is None:
        return _side_by_side(pair, material, wanted, progress)
    found = _scores(*pair[0], material, wanted, progress)
    if windows is not None:
        material = (tokens, Turn(windows, wanted.seed).first(len(found.losses)))
    base = _scores(*pair[1], material, wanted, progress)
    compared = compare_scores(found, base, seed=wanted.seed)
    return compared if short is None else replace(compared, notes=(*compared.notes, short))


def _sized(options: EvaluateOptions, tokens: Tokens | None) -> tuple[EvaluateOptions, Tokens | None]:
    """With a window: where none is asked for, half as long until a short text fills several."""
    if options.window is not None or tokens is None:
        return replace(options, window=options.window or WINDOW), tokens
    size = WINDOW
    while size > SHORTEST and len(tokens.ids) < SEVERAL * size:
        size //= 2
    if size < WINDOW:
        note = f"windows have {size} tokens, not {WINDOW}, so that a text of {len(tokens.ids)} fills several"
        tokens = replace(tokens, notes=(*tokens.notes, note))
    return replace(options, window=size), tokens


def _lacks_room(model: Any, base: Any) -> str | None:
    """Why two models are scored one after the other, without their divergence; None where both fit into memory."""
    need, free = sum(_nbytes(one) for one in (model, base) if _is_place(one)), free_memory()
    if free is None or need <= free:
        return None
    return (
        f"the two models were scored one after the other, without their divergence: together they take about "
        f"{need / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free"
    )


def _nbytes(model: Any) -> int:
    """About what a local model takes in memory, as float32; 0 where that is not known beforehand."""
    path, found = Path(os.fspath(model)).expanduser(), 0
    files = [path] if path.is_file() else [file for suffix in _WIDENS for file in path.glob(f"*{suffix}")]
    for file in files:
        found += file.stat().st_size * _WIDENS.get(file.suffix, 1)
    return found


def _side_by_side(
    both: tuple[tuple[Any, Any], tuple[Any, Any]],
    material: tuple[Tokens | None, torch.Tensor | None],
    options: EvaluateOptions,
    progress: Progress | None,
) -> ScoreComparison:
    """Both models in memory, so that each window goes through the two at once."""
    tokens, windows = material
    if windows is None:
        raise AssertionError("text alone is scored side by side")
    with quiet():
        ours, theirs = (load_model(*one, dtype=options.dtype, device=options.device, base=options.base) for one in both)
        for loaded in (ours, theirs):
            _check_fits(loaded, windows, options)
        what = f"{Path(ours.name).name} and {Path(theirs.name).name}"
        show = None if progress is None else lambda done, total: progress(what, done, total)
        if show is not None:  # they are read: the first windows may take a while
            show(0, len(windows))
        turn = Turn(windows, options.seed)
        with ended_by_interrupts(turn.end):
            after, before, divergence = paired_losses(
                ours.module, theirs.module, turn, batch=options.batch, progress=show, seed=options.seed
            )
        windows = turn.first(len(after))
        found, base = (
            _finished(_with_losses(_named(one, tokens, options), losses, windows, options), one, windows, options)
            for one, losses in ((ours, after), (theirs, before))
        )
    compared = compare_scores(found, base, seed=options.seed)
    return replace(compared, divergence=divergence, notes=(*turn.notes(len(after)), *compared.notes))


def _of_the_same(base: Scores, found: Scores, windows: torch.Tensor, options: EvaluateOptions) -> Scores:
    """The saved scores of the windows that were scored, where an interruption left some out."""
    if len(found.losses) == len(windows) or base.digest != digest_of(windows):
        return base
    turn = Turn(windows, options.seed)
    places = np.sort(turn.order[: len(found.losses)])
    losses = np.array([math.nan if base.losses[place] is None else base.losses[place] for place in places], float)
    return _with_losses(base, losses, turn.first(len(places)), options)


def _tokenizers(model: Any, against: Any, given: Any, base: str | None = None) -> tuple[Any, Any]:
    """The tokenizers of the model and of the base; the same one where one of them has none, or one is given."""
    if given is not None:
        found = load_tokenizer(*_place(given)) if _is_place(given) else given
        return found, found
    ours, theirs = (_own_tokenizer(model, base), _own_tokenizer(against, base))
    return (theirs if ours is None else ours), theirs


def _own_tokenizer(model: Any, base: str | None) -> Any:
    """Of a folder or id; an adapter that comes without one has its base's."""
    if not _is_place(model):
        return None
    found = load_tokenizer(*_place(model))
    if found is None and is_adapter(model):
        return load_tokenizer(*_place(base_of(model, base)))
    return found


def _is_place(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


def _place(value: str | os.PathLike[str]) -> tuple[str, str | None]:
    return address_of(os.fspath(value))


def _check_same(tokens: Tokens, other: Tokens, base: Any) -> None:
    if np.array_equal(tokens.ids, other.ids):
        return
    raise UsageError(
        "its tokenizer cuts the text into other tokens than the model's, so perplexities are not comparable",
        where=base,
        fix="compare models of one tokenizer; use --tasks for others",
    )


def _scores(
    model: Any,
    tokenizer: Any,
    text: tuple[Tokens | None, torch.Tensor | None],
    options: EvaluateOptions,
    progress: Progress | None,
) -> Scores:
    tokens, windows = text
    with quiet():
        loaded = load_model(model, tokenizer, dtype=options.dtype, device=options.device, base=options.base)
        found = _named(loaded, tokens, options)
        if windows is not None:
            _check_fits(loaded, windows, options)
            show = None if progress is None else lambda done, total: progress(loaded.name, done, total)
            if show is not None:
                show(0, len(windows))
            turn = Turn(windows, options.seed)
            with ended_by_interrupts(turn.end):
                losses = window_losses(loaded.module, turn, batch=options.batch, progress=show)
            windows = turn.first(len(losses))
            found = _with_losses(found, losses, windows, options)
            found = replace(found, notes=(*turn.notes(len(losses)), *found.notes))
        return _finished(found, loaded, windows, options)


def _named(loaded: Loaded, tokens: Tokens | None, options: EvaluateOptions) -> Scores:
    return Scores(
        model=loaded.name,
        settings=_settings(options, tokens),
        versions=versions(with_tasks=bool(options.tasks)),
        notes=(*loaded.notes, *(tokens.notes if tokens else ())),
    )


def _finished(found: Scores, loaded: Loaded, windows: torch.Tensor | None, options: EvaluateOptions) -> Scores:
    """With tasks, speed and size, as asked for."""
    if options.tasks:
        found = replace(found, tasks=_task_scores(loaded, options))
    if options.speed:
        found = replace(found, speed=_speed(loaded, windows, options))
    return with_facts(found, loaded) if options.facts else found


def _task_scores(loaded: Loaded, options: EvaluateOptions) -> tuple[TaskScore, ...]:
    from tailwise.models.evaluation.tasks import task_scores

    return task_scores(
        loaded,
        options.tasks,
        include_path=options.include_path,
        limit=options.limit,
        seed=options.seed,
        batch=options.batch or 1,
    )


def with_facts(found: Scores, loaded: Loaded) -> Scores:
    """Scores that were made are not lost where the stored tensors cannot be counted."""
    try:
        return replace(found, facts=facts_of(loaded.where))
    except TailwiseError as error:
        return replace(found, notes=(*found.notes, f"{loaded.name}: its parameters were not counted ({error.what})"))


def _check_fits(loaded: Loaded, windows: torch.Tensor, options: EvaluateOptions) -> None:
    """`UsageError` where windows are longer than the model reads, or it does not know a token, or looks ahead."""
    vocabulary = vocabulary_of(loaded.module)
    check_length(loaded.module, options.length, loaded.name)
    if vocabulary is not None:
        check_vocabulary(windows, vocabulary, loaded.name)
    check_causal(loaded.module, vocabulary or int(windows.max()) + 1, loaded.name)


def _with_losses(found: Scores, losses: Losses, windows: torch.Tensor, options: EvaluateOptions) -> Scores:
    perplexity, interval = summary(losses, seed=options.seed)
    bad = int((~np.isfinite(losses)).sum())
    what = f"the loss of {bad} of {len(losses)} windows is not finite" if bad else "the loss is too large for exp"
    notes = [] if perplexity is not None else [f"{found.model}: {what}"]
    if few := few_windows(len(losses)):
        notes.append(few)
    return replace(
        found,
        perplexity=perplexity,
        interval=interval,
        losses=tuple(float(loss) if math.isfinite(loss) else None for loss in losses),
        tokens_per_window=windows.shape[1] - 1,
        digest=digest_of(windows),
        notes=(*found.notes, *notes),
    )


def summary(losses: Losses, *, seed: int = 0) -> tuple[float | None, Interval | None]:
    """Perplexity and its 95 % interval from the mean losses of windows, (n,), that weigh the same."""
    mean = float(losses.mean())
    if not math.isfinite(mean) or mean > 700:
        return None, None
    interval = mean_interval(losses, seed=seed)
    return math.exp(mean), None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))


def digest_of(windows: torch.Tensor) -> str:
    """SHA-256 of the windows' shape and token ids."""
    head = f"{tuple(windows.shape)}".encode()
    return hashlib.sha256(head + windows.contiguous().numpy().astype("<i8").tobytes()).hexdigest()


def _speed(loaded: Loaded, windows: torch.Tensor | None, options: EvaluateOptions) -> Any:
    import torch

    from tailwise.models.evaluation.speed import speed_of

    if windows is not None:
        return speed_of(loaded.module, windows[0])
    check_length(loaded.module, options.length, loaded.name)
    generator = torch.Generator().manual_seed(options.seed)
    vocabulary = vocabulary_of(loaded.module) or 2
    return speed_of(loaded.module, torch.randint(vocabulary, (options.length,), generator=generator))


def _settings(options: EvaluateOptions, tokens: Tokens | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "window": options.length,
        "max_windows": options.max_windows,
        "seed": options.seed,
        "dtype": options.dtype,
        "device": options.device,
        "limit": options.limit,
    }
    if tokens is not None:
        found |= {"text": tokens.name, "documents": tokens.documents, "tokens": len(tokens.ids)}
        found["windows"] = len(tokens.ids) // shorter(options.length, tokens.bos)  # of which `max_windows` are drawn
        if tokens.bos is not None:
            found["bos"] = tokens.bos
    return found


def versions(*, with_tasks: bool) -> dict[str, str]:
    """What the numbers came out of."""
    found = {"python": platform.python_version()}
    names = ("tailwise", "torch", "transformers", "tokenizers", "numpy", *(("lm_eval",) if with_tasks else ()))
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
