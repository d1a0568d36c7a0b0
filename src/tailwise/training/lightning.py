"""For Lightning: `Trainer(callbacks=[MonitorCallback(every=500)])`."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch.callbacks import Callback
except ModuleNotFoundError:
    from pytorch_lightning.callbacks import Callback

from tailwise.training.monitor import Monitor
from tailwise.training.remedy import Make, Remedy


class MonitorCallback(Callback):
    """Takes the arguments of `Monitor` but the model. `monitor` is there from the training's beginning on.

    A step is a batch after which an optimizer has stepped, however many of them have: two that step in one batch are
    one step, as they are for Lightning's own loggers.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self.monitor: Monitor | None = None
        self._counted = 0  # Lightning's count, which goes up with every optimizer

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the monitor."""
        self._counted = trainer.global_step
        first = trainer.global_step // max(len(trainer.optimizers), 1)
        settings = {"first_step": first, "optimizer": list(trainer.optimizers) or None, **self._settings}
        self.monitor = Monitor(pl_module, **settings)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *batch: Any) -> None:  # noqa: ARG002 - theirs
        """After each batch; only those after which an optimizer has stepped count, whatever the accumulation."""
        if self.monitor is not None and trainer.global_step > self._counted:
            self._counted = trainer.global_step
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            if loss is not None and pl_module.automatic_optimization:
                loss = loss * trainer.accumulate_grad_batches  # by which Lightning has divided it
            self.monitor.step(loss=loss)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """What the module logs as `val_loss`, or as `val_loss/dataloader_idx_N` of several sets, is an `eval_loss`."""
        if self.monitor is not None and not trainer.sanity_checking:
            evaluated = {_evaluated(name): value for name, value in trainer.callback_metrics.items()}
            self.monitor.note(**{name: value for name, value in evaluated.items() if name})

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002
        """Close the monitor, after an error too."""
        if self.monitor is not None:
            self.monitor.close()


class RemedyCallback(Callback):
    """A remedy in one line: `Trainer(callbacks=[RemedyCallback("llr", every=100)])`.

    Takes the name of a function of `tailwise.remedies` with its settings, or a function of the model and an optimizer
    that returns what such a function does. Of several optimizers, each that has matrices gets one. Clipping and
    penalties act on the gradients before Lightning clips them. Lightning's checkpoints keep the state.
    """

    def __init__(self, remedy: str | Make, **settings: Any) -> None:
        self.remedy = Remedy(remedy, settings)
        self._state: dict[str, Any] = {}

    @property
    def state_key(self) -> str:
        """Which remedy the state is of, since a run may have several."""
        return f"tailwise.{self.remedy.name}"

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the remedy, and go on from its state where the training does."""
        self.remedy.start(pl_module, list(trainer.optimizers), resumed=trainer.global_step > 0)
        self.remedy.load_state_dict(self._state)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:  # noqa: ARG002
        """The gradients are there."""
        self.remedy.before_step()

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoints."""
        return self.remedy.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From them; the remedy is made later."""
        self._state = state_dict

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002
        """Leave the optimizer as it was."""
        self.remedy.end()


def _evaluated(name: str) -> str:
    """What the history calls a metric of an evaluation; "" for what is none of its losses."""
    plain, _, loader = name.partition("/dataloader_idx_")
    if plain.replace("/", "_") not in ("val_loss", "validation_loss", "eval_loss"):
        return ""
    return f"eval_{loader}_loss" if loader else "eval_loss"
