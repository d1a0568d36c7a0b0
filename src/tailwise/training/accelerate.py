"""For Accelerate: a monitor that counts the optimizer's steps, whatever the gradient accumulation."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator

from tailwise.training.monitor import Monitor


class AcceleratedMonitor(Monitor):
    """`Monitor` of a prepared model: call `step` after every batch."""

    def __init__(self, accelerator: Accelerator, model: Any, **settings: Any) -> None:
        self._accelerator = accelerator
        settings = {"optimizer": list(accelerator._optimizers) or None, **settings}
        super().__init__(accelerator.unwrap_model(model, keep_torch_compile=False), **settings)

    def step(self, *, step: int | None = None, loss: Any = None, **scalars: Any) -> None:
        """As `Monitor.step`; nothing where the gradients are still being gathered, or the step was skipped."""
        if self._accelerator.sync_gradients and not self._accelerator.optimizer_step_was_skipped:
            super().step(step=step, loss=loss, **scalars)
