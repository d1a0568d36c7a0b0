"""How a plan is applied."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from tailwise.compression.applying.calibration_inputs import Draw
from tailwise.core.recipe import RunOptions
from tailwise.core.validation import check_fields, check_least
from tailwise.models.walking.calibrate import SAMPLES, WINDOW


@dataclass(frozen=True)
class ApplyOptions:
    """How a plan is applied. What calibrates is text unless it is tensors."""

    calibration: Any = None  # windows (n, window) of ids, model inputs by name, or what `tokens_of` takes
    images: Any = None  # of models that read images beside text: for the tower that reads them
    samples: int = SAMPLES  # windows drawn from a text
    window: int = WINDOW
    seed: int = 0  # of the draw
    bos: str = "auto"  # whether windows begin with the token that begins a text: auto, always, never
    device: str = "cpu"
    dtype: str = "auto"  # what the model computes in
    batch: int = 8  # windows at once
    force: bool = False  # replace the output, and apply a plan made from other weights
    save_masks: bool = False
    resume: bool = True  # go on where a run that was killed had come to
    equal_widths: bool = False  # structured: the same in every block, which a config can say
    multiple: int = 8  # structured: of neurons, a multiple of this stays
    factored: bool = False  # low_rank: two matrices in place of their product
    packed: str | None = None  # plans to quantize: compressed-tensors, torchao or gguf in place of dequantized floats
    dequantize: bool = False  # plans to quantize: read a model that is quantized already as what it decodes to
    executor: Executor | str = "local"  # as of `RunOptions`: shards of what looks at no text, each by a worker
    workers: int | None = None
    patience: float = 600.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_least(self, samples=1, window=2, seed=0, batch=1, workers=1)

    @property
    def draw(self) -> Draw:
        """How windows are drawn from a text."""
        return Draw(self.samples, self.window, self.seed, self.bos)

    @property
    def engine(self) -> RunOptions:
        """Where shards are written."""
        return RunOptions(device=self.device, workers=self.workers, executor=self.executor, patience=self.patience)
