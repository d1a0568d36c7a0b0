"""Calibration: windows of text, and what a pass over them says of each block."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tailwise.checkpoints.blocks import number_blocks
from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.roles import NO_BLOCK, classify
from tailwise.core.errors import UsageError
from tailwise.models.activations import Activations, Need, weighted_magnitudes
from tailwise.models.evaluation.tokens import shorter, with_bos
from tailwise.models.walking.block_inputs import Block, Home
from tailwise.models.walking.hosts import check_causal, load_host
from tailwise.models.walking.statistics import matrices_of, of_group
from tailwise.models.walking.walk import home_of, walk_blocks

__all__ = ["BlockScores", "block_scores", "dlp_scores", "outlier_ratios", "sample_windows", "walk_blocks"]

#: Published calibration: 128 windows.
SAMPLES, WINDOW = 128, 512
OUTLIER_FACTOR = 5.0  # M of OWL
LEAST_TOKENS = 64  # heuristic: fewer say nothing of any layer

Inputs = torch.Tensor | Mapping[str, torch.Tensor]


def sample_windows(
    tokens: Any, samples: int = SAMPLES, window: int = WINDOW, seed: int = 0, bos: int | None = None
) -> torch.Tensor:
    """`samples` windows of `window` tokens at random places of a run of tokens (n,): (samples, window) int64.

    With `bos`, each begins with that token, and has one of text less.

    Windows may overlap, as in the published code, so a short text gives as many as a long one. `UsageError` where
    the text does not fill one.
    """
    ids = torch.as_tensor(tokens).to(torch.int64)
    if ids.ndim != 1:
        raise UsageError(f"tokens are on one axis, not {tuple(ids.shape)}", fix="flatten them")
    if samples < 1 or window < 2:
        raise UsageError(f"{samples} windows of {window} tokens say nothing", fix="use --samples 128 --window 512")
    if not len(ids):
        raise UsageError("the calibration text is empty", fix="give a file with some text")
    if len(ids) < LEAST_TOKENS:
        raise UsageError(f"the calibration text has {len(ids)} tokens, and {LEAST_TOKENS} are the least that says "
                         "something", fix="give more text")  # fmt: skip
    if len(ids) < window:
        fix = f"give more text, or use --window {len(ids)}"
        raise UsageError(f"the calibration text has {len(ids)} tokens, less than a window of {window}", fix=fix)
    generator = torch.Generator().manual_seed(seed)
    length = shorter(window, bos)
    starts = torch.randint(0, len(ids) - length + 1, (samples,), generator=generator)
    return with_bos(ids[starts[:, None] + torch.arange(length)], bos)


@dataclass(frozen=True)
class BlockScores:
    """What one dense pass says of each block; block → value."""

    outlier_ratios: dict[int, float]  # percent of |W|·‖X‖ above M times their mean (OWL)
    medians: dict[int, float]  # median of |W|·‖X‖ (DLP)


def block_scores(
    model: nn.Module | Home | str | os.PathLike[str], inputs: Inputs, M: float = OUTLIER_FACTOR, **options: Any
) -> BlockScores:
    """Both scores of every block, from one pass over the dense model.

    `model` is one of transformers or where it is stored; `inputs` as for `walk_blocks`. `options` are `device` and
    `dtype` for a stored model, `batch` and `progress`. Sources: Yin et al. 2023, arXiv:2310.05175 (a block's entries
    taken together); Chen et al. 2025, arXiv:2505.23807.
    """
    if M <= 0:
        raise UsageError(f"M is {M:g}", fix="give a factor above 0; published: 3 to 10")
    visitor = _Scores({}, {}, M)
    walked(model, inputs, visitor, options)
    return BlockScores(visitor.outliers(), visitor.medians())


def walked(
    model: nn.Module | Home | str | os.PathLike[str], inputs: Inputs, visitor: Any, options: Mapping[str, Any]
) -> None:
    """Take `visitor` past every block of the dense model; it is told how audits number blocks.

    `options` as for `block_scores`.
    """
    if not isinstance(model, str | os.PathLike):
        _walk(home_of(model), inputs, visitor, options)
        return
    if isinstance(inputs, torch.Tensor):
        check_causal(model)
    with open_checkpoint(model) as checkpoint:
        host = load_host(checkpoint, model, **{key: options[key] for key in ("device", "dtype") if key in options})
        visitor.stored = {parameter: name for name, parameter in host.places.items()}
        _walk(host.home, inputs, visitor, options)


def _walk(home: Home, inputs: Inputs, visitor: Any, options: Mapping[str, Any]) -> None:
    names = [visitor.stored.get(name, name) for name in home.model.state_dict()]
    visitor.numbers = _numbers(names)
    batch: int = options.get("batch", 8)
    progress: Callable[[int, int], None] | None = options.get("progress")
    walk_blocks(home, inputs, visitor, batch=batch, edits=False, progress=progress)


def outlier_ratios(model: Any, inputs: Inputs, M: float = OUTLIER_FACTOR, **options: Any) -> dict[int, float]:
    """Block → percentage of its |W|·‖X‖ above M times their mean, for OWL."""
    return block_scores(model, inputs, M, **options).outlier_ratios


def dlp_scores(model: Any, inputs: Inputs, **options: Any) -> dict[int, float]:
    """Block → median of its |W|·‖X‖, for DLP."""
    return block_scores(model, inputs, **options).medians


def _numbers(names: list[str]) -> Mapping[str, int]:
    """Stored tensor → number of its block, as audits have it."""
    return number_blocks(name for name in names if classify(name, 2, {}).role not in NO_BLOCK)


@dataclass
class ByBlock:
    """A visitor that knows how audits number the blocks; `walked` fills in both."""

    stored: Mapping[str, str]  # parameter → stored tensor
    numbers: Mapping[str, int]  # stored tensor → number of its block

    def matrices(
        self, block: Block, activations: Mapping[str, Activations]
    ) -> Iterator[tuple[int, torch.Tensor, Activations]]:
        """Of every matrix of a block: the number of its block in audits, W (out × in), and what it sees."""
        layers = block.layers()
        for name, inputs in activations.items():
            parameter = f"{name}.weight"
            number = self.numbers.get(self.stored.get(parameter, parameter), block.index)
            for group, W in enumerate(matrices_of(layers[name]).detach()):
                yield number, W, of_group(inputs, group)


@dataclass
class _Scores(ByBlock):
    M: float
    _by_block: dict[int, list[tuple[int, float, float]]] = field(default_factory=dict)

    def needs(self, block: Block) -> Mapping[str, Need]:
        return dict.fromkeys(block.layers(), "norms")

    def visit(self, block: Block, activations: Mapping[str, Activations]) -> None:
        scores: dict[int, list[torch.Tensor]] = {}
        for number, W, inputs in self.matrices(block, activations):
            assert inputs.norms is not None  # noqa: S101 - asked for in `needs`
            scores.setdefault(number, []).append(weighted_magnitudes(W, inputs.norms).flatten())
        for number, parts in scores.items():
            values = torch.cat(parts)
            above = 100.0 * float((values > self.M * values.mean(dtype=torch.float64)).sum()) / len(values)
            self._by_block.setdefault(number, []).append((len(values), above, float(values.median())))

    def outliers(self) -> dict[int, float]:
        return {
            block: mean_of_parts([(n, above) for n, above, _ in layers])
            for block, layers in sorted(self._by_block.items())
        }

    def medians(self) -> dict[int, float]:
        return {
            block: mean_of_parts([(n, middle) for n, _, middle in layers])
            for block, layers in sorted(self._by_block.items())
        }


def mean_of_parts(weighted: list[tuple[int, float]]) -> float:
    """The mean of values with sizes."""
    # One part, but where a block of the audit spans two steps of the walk.
    return sum(size * value for size, value in weighted) / sum(size for size, _ in weighted)
