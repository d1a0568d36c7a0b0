"""For `transformers.Trainer` and what builds on it: `Trainer(..., callbacks=[MonitorCallback(every=500)])`."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from tailwise.training.monitor import Monitor

_LOGGED = ("loss", "eval_loss", "grad_norm")


class MonitorCallback(TrainerCallback):
    """Takes the arguments of `Monitor` but the model. `monitor` is there from the training's beginning on."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self.monitor: Monitor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002 - theirs
        """Make the monitor."""
        settings = {"run": args.run_name or "", "first_step": state.global_step, **self._settings}
        self.monitor = Monitor(given["model"], **settings)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        """After each step of the optimizer, whatever the gradient accumulation."""
        if self.monitor is not None:
            optimizer = given.get("optimizer")
            scalars = {} if optimizer is None else {"lr": optimizer.param_groups[0]["lr"]}
            self.monitor.step(step=state.global_step, **scalars)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:  # noqa: ARG002
        """What the trainer logs after a step, of training or of an evaluation, goes into the next point, and once."""
        if self.monitor is not None:
            self.monitor.note(**{name: logs[name] for name in _LOGGED if name in (logs or {})})

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        """Close the monitor."""
        if self.monitor is not None:
            self.monitor.close()
