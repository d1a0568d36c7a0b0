"""For `transformers.Trainer` and what builds on it: `Trainer(..., callbacks=[MonitorCallback(every=500)])`."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tailwise.core.storage import json_of
from tailwise.training.monitor import Monitor
from tailwise.training.remedy import Make, Remedy

#: What the Trainer logs of a training and of its evaluations; of several evaluation sets, `eval_NAME_loss`.
_LOGGED = re.compile(r"loss|grad_norm|learning_rate|eval_(?:.+_)?loss")
_NAMES = {"learning_rate": "lr"}
_LOOK = 1.0  # seconds between looks whether the training is still there


class MonitorCallback(TrainerCallback):
    """Takes the arguments of `Monitor` but the model. `monitor` is there from the training's beginning on.

    Loss, gradient norm, rate and losses of evaluations stand at the step at which the Trainer logs them. The Trainer
    hands no loss of a single step to callbacks, so its losses are means over `logging_steps`; NaN is left out of them
    unless `logging_nan_inf_filter=False`. A training that ends by an error, or by Ctrl-C, closes the monitor too.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self.monitor: Monitor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002 - theirs
        """Make the monitor."""
        self._close()
        optimizer = given.get("optimizer")
        settings = {"run": args.run_name or "", "first_step": state.global_step, "optimizer": optimizer,
                    **self._settings}  # fmt: skip
        self.monitor = monitor = Monitor(given["model"], **settings)
        _when_it_ends(monitor.close)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        """After each step of the optimizer, whatever the gradient accumulation."""
        if self.monitor is not None:
            self.monitor.step(step=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:  # noqa: ARG002
        """What the trainer logs of a step stands there in the history."""
        if self.monitor is not None:
            self.monitor.note(**noted(logs or {}))

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        """Close the monitor."""
        self._close()

    def _close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()


class RemedyCallback(TrainerCallback):
    """A remedy in one line: `callbacks=[RemedyCallback("llr", every=100)]`.

    Takes the name of a function of `tailwise.remedies` with its settings, or a function of the model and the optimizer
    that returns what such a function does. Clipping and penalties act on the gradients as the Trainer has them before
    its step, so set `max_grad_norm=0` beside AdaptiveClip. Checkpoints of the Trainer keep the state, and a training
    that resumes from one goes on with it. `remedy.made` holds what was made.
    """

    def __init__(self, remedy: str | Make, **settings: Any) -> None:
        self.remedy = Remedy(remedy, settings)

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        """Make the remedy, and go on from its state where the training does."""
        resumed = state.global_step > 0
        self.remedy.start(given["model"], [given["optimizer"]], resumed=resumed)
        file = self._file(args, state)
        if resumed and file.exists():
            self.remedy.load_state_dict(json_of(file.read_text(encoding="utf-8")))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        """The gradients are there, clipped by the Trainer if it clips."""
        self.remedy.before_step()

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        """Keep the state beside the optimizer's."""
        path = self._file(args, state)
        if state.is_world_process_zero and path.parent.is_dir():
            path.write_text(json.dumps(self.remedy.state_dict()), encoding="utf-8")

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        """Leave the optimizer as it was."""
        self.remedy.end()

    def _file(self, args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / f"tailwise_{self.remedy.name}.json"


def noted(logs: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a log that belong into a history."""
    return {_NAMES.get(name, name): value for name, value in logs.items() if _LOGGED.fullmatch(name)}


def _when_it_ends(then: Callable[[], object]) -> None:
    """Call it when the function that trains is not running any more: no callback tells of an error or of Ctrl-C."""
    thread = threading.get_ident()
    frame: Any = sys._getframe()
    while frame is not None and not _trains(frame):
        frame = frame.f_back
    if frame is None:
        return
    key = id(frame)  # its object is held below, so no other frame gets this number

    def watch(held: Any) -> None:
        waiting = threading.Event()
        while _runs(thread, key):
            waiting.wait(_LOOK)
        del held
        then()

    threading.Thread(target=watch, args=(frame,), name="tailwise-trainer", daemon=True).start()


def _trains(frame: Any) -> bool:
    return frame.f_code.co_name in ("train", "_inner_training_loop") and hasattr(frame.f_locals.get("self"), "args")


def _runs(thread: int, key: int) -> bool:
    """Whether a frame is on a thread's stack."""
    frame: Any = sys._current_frames().get(thread)
    while frame is not None:
        if id(frame) == key:
            return True
        frame = frame.f_back
    return False
