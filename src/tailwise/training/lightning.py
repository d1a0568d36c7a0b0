"""For Lightning: `Trainer(callbacks=[MonitorCallback(every=500)])`."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch.callbacks import Callback
except ModuleNotFoundError:
    from pytorch_lightning.callbacks import Callback

from tailwise.training.monitor import Monitor


class MonitorCallback(Callback):
    """Takes the arguments of `Monitor` but the model. `monitor` is there from the training's beginning on."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self.monitor: Monitor | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the monitor."""
        self.monitor = Monitor(pl_module, **{"first_step": trainer.global_step, **self._settings})

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *batch: Any) -> None:  # noqa: ARG002 - theirs
        """After each batch; the optimizer's steps are counted by the trainer, whatever the gradient accumulation."""
        if self.monitor is not None and trainer.global_step > self.monitor.step_count:
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            if loss is not None and pl_module.automatic_optimization:
                loss = loss * trainer.accumulate_grad_batches  # by which Lightning has divided it
            self.monitor.step(step=trainer.global_step, loss=loss)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """What the module logs as `val_loss` is `eval_loss` of the next point."""
        if self.monitor is not None and "val_loss" in trainer.callback_metrics:
            self.monitor.note(eval_loss=trainer.callback_metrics["val_loss"])

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002
        """Close the monitor, after an error too."""
        if self.monitor is not None:
            self.monitor.close()
