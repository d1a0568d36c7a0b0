"""A short training that keeps its best state: AdamW, warm-up and cosine, clipped gradients, a seed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tailwise.core.errors import UsageError
from tailwise.models.evaluation.losses import logits_of, window_losses

WARM_UP = 0.05  # of the course
CLIP = 1.0  # norm of all gradients together
CHECKS = 20  # looks at the guard windows
GUARD_SHARE = 0.2  # of the work: where steps are few and dear, checks are fewer; a pass back costs two passes forth
PATIENCE = 5  # checks in a row without a better state, after which it ends
FOLLOWED = "as many steps as the other"
DIVERGED = 1.5  # times the guard loss at the start

Say = Callable[[str, float], None]  # what is done, and how far it is
State = Mapping[str, torch.Tensor]  # parameter → value


@dataclass(frozen=True)
class Course:
    """How long, how fast and in what portions."""

    steps: int
    lr: float  # highest
    batch: int  # windows a step
    window: int
    seed: int = 0
    seconds: float = math.inf

    def rate(self, done: float) -> float:
        """The learning rate when `done`, from 0 to 1, of the course is over: linear up, then half a cosine to 0."""
        if done < WARM_UP:
            return self.lr * done / WARM_UP
        return self.lr * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


@dataclass
class Training:
    """What a training came to."""

    steps: int = 0
    best_step: int = 0
    start_loss: float = math.inf  # on the guard windows, nats a token
    best_loss: float = math.inf
    ended: str = "all steps done"
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)  # step → guard loss
    rates: list[float] = field(default_factory=list)  # learning rate of every step

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "steps": self.steps,
            "best_step": self.best_step,
            "guard_loss_before": _finite(self.start_loss),
            "guard_loss_after": _finite(self.best_loss),
            "ended": self.ended,
            "seconds": round(self.seconds, 1),
            "curve": [[step, _finite(loss)] for step, loss in self.curve],
        }


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


@dataclass
class Trainer:
    """One model, the parameters of it that move, and the text."""

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    masks: Mapping[str, torch.Tensor]  # of these parameters: True where an entry may move
    ids: torch.Tensor  # (tokens,), to draw windows from
    guard: torch.Tensor  # (n, window)
    say: Say | None = None

    def run(self, course: Course) -> Training:
        """Train; the parameters are left in the state that was best on the guard windows.

        The rate follows steps or time, whichever is further. Raises `UsageError` where no state was better than the
        first.
        """
        with _seeded(course.seed):
            found = self._run(course)
        if found.best_step == 0:
            losses = [loss for _, loss in found.curve[1:] if math.isfinite(loss)]
            best = f"{min(losses):.4f} at best" if losses else "never finite again"
            raise UsageError(
                f"no step made it better ({found.ended}): {found.start_loss:.4f} nats a token on the guard windows "
                f"before, {best} after",
                fix=f"use a lower --lr than {course.lr:g}, more steps, or text nearer to what it learned from",
            )
        return found

    def follow(self, course: Course, led: Training, until: float = math.inf) -> Training:
        """Train as `led` was trained: as many steps, on the same windows, at the same rates, looked at after the same.

        The parameters are left in the state that was best on the guard windows, which may be the first. It ends at
        `until`, a time of `time.monotonic`, wherever it is then.
        """
        with _seeded(course.seed):
            found, best = self._begun()
            optimizer, generator = self._tools(course)
            began, checks = time.monotonic() - found.seconds, {step for step, _ in led.curve}
            look = found.seconds
            for step, rate in enumerate(led.rates, 1):
                started = time.monotonic()
                loss = self._step(optimizer, self._drawn(course, generator), rate)
                now = time.monotonic()
                found.steps, found.seconds = step, now - began
                found.rates.append(rate)
                # A step that would end after the time is not begun.
                over = step < len(led.rates) and 2 * now - started + look > until
                if not math.isfinite(loss):
                    found.ended = f"the loss was not finite at step {step}"
                    break
                if over or step in checks:
                    best = self._checked(found, best)
                    self._tell(found, step / len(led.rates))
                if over:
                    found.ended = "the time was over"
                    break
            else:
                found.ended = FOLLOWED
            found.seconds = time.monotonic() - began
            self._restore(best)
        return found

    def _begun(self) -> tuple[Training, State]:
        """Before the first step: the loss on the guard windows, and the state that is best so far."""
        began = time.monotonic()
        found, best = Training(), self._state()
        found.start_loss = found.best_loss = self._guard_loss()
        if not math.isfinite(found.start_loss):
            raise UsageError(
                "its loss is not finite before any training", fix="check the model with `tailwise evaluate`"
            )
        found.curve.append((0, found.start_loss))
        found.seconds = time.monotonic() - began
        return found, best

    def _tools(self, course: Course) -> tuple[torch.optim.Optimizer, torch.Generator]:
        optimizer = torch.optim.AdamW(self.parameters.values(), lr=course.lr, weight_decay=0.0)
        return optimizer, torch.Generator().manual_seed(course.seed)

    def _checked(self, found: Training, best: State) -> State:
        """Look at the guard windows; the best state until now."""
        guard = self._guard_loss()
        found.curve.append((found.steps, guard))
        if guard < found.best_loss:
            found.best_loss, found.best_step = guard, found.steps
            return self._state()
        return best

    def _run(self, course: Course) -> Training:
        found, best = self._begun()
        look = found.seconds  # of a look at the guard windows: one more comes when the time is over
        optimizer, generator = self._tools(course)
        began, check, done, apart = time.monotonic(), 1, 0.0, self._steps_between(course)
        # A step costs three passes; of a budget that holds few, the first is taken at the rate that it is worth.
        step = 3 * look * course.batch * course.window / self.guard.numel()
        pace = step / max(course.seconds - 2 * look - step, 1e-6)
        while done < 1.0:
            started = time.monotonic()
            # Half a step on; of a step that is all there is time for, the middle of what is left.
            rate = course.rate(min(done + 0.5 * max(1 / course.steps, pace), (1 + done) / 2))
            loss = self._step(optimizer, self._drawn(course, generator), rate)
            found.steps += 1
            found.rates.append(rate)
            now = time.monotonic()
            # A step that would end after the time is not begun.
            room = max(course.seconds - 2 * look - (now - started), 1e-6)
            done, pace = max(found.steps / course.steps, (now - began) / room), (now - started) / room
            if not math.isfinite(loss):
                found.ended = f"the loss was not finite at step {found.steps}"
                break
            if done < 1.0 and (done < check / CHECKS or found.steps - found.curve[-1][0] < apart):
                continue
            check = math.floor(done * CHECKS) + 1
            best = self._checked(found, best)
            self._tell(found, min(done, 1.0))
            if not found.curve[-1][1] < DIVERGED * found.start_loss:
                found.ended = f"the loss diverged by step {found.steps}"
                break
            if self._stale(found) >= PATIENCE:
                found.ended = f"no better state in {PATIENCE} checks"
                break
        else:
            found.ended = "all steps done" if found.steps >= course.steps else "the time was over"
        found.seconds = look + time.monotonic() - began
        self._restore(best)
        return found

    def _stale(self, found: Training) -> int:
        """Checks since the best state."""
        return sum(step > found.best_step for step, _ in found.curve)

    def _steps_between(self, course: Course) -> int:
        """Steps between two checks at least. By tokens and not by the clock, so that a seed gives the same again."""
        return math.ceil(self.guard.numel() / 3 / (GUARD_SHARE * course.batch * course.window))

    def _step(self, optimizer: torch.optim.Optimizer, windows: torch.Tensor, rate: float) -> float:
        """One step; the loss before it. A gradient that is not finite changes nothing."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        with self._autocast():
            loss = self._loss(windows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        # AdamW leaves alone what has no gradient, no momentum and no value; here before the norm is taken.
        for name, mask in self.masks.items():
            grad = self.parameters[name].grad
            if grad is not None:
                grad.mul_(mask)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), CLIP)
        if not torch.isfinite(norm):
            return math.nan
        optimizer.step()
        return float(loss.detach())

    def _loss(self, windows: torch.Tensor) -> torch.Tensor:
        """The mean loss of what was drawn."""
        logits = logits_of(self.model, windows)
        return cross_entropy(logits[:, :-1].flatten(0, 1).float(), windows[:, 1:].flatten())

    def _autocast(self) -> Any:
        return torch.autocast("cuda", torch.bfloat16) if self._device.type == "cuda" else nullcontext()

    @property
    def _device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def _drawn(self, course: Course, generator: torch.Generator) -> torch.Tensor:
        starts = torch.randint(0, len(self.ids) - course.window + 1, (course.batch,), generator=generator)
        return self.ids[starts[:, None] + torch.arange(course.window)].to(self._device)

    def _guard_loss(self) -> float:
        return float(window_losses(self.model, self.guard).mean())

    def _state(self) -> State:
        return {name: value.detach().clone() for name, value in self.parameters.items()}

    def _restore(self, state: State) -> None:
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(state[name])
                value.grad = None
        self.model.eval()

    def _tell(self, found: Training, done: float) -> None:
        if self.say is not None:
            self.say(f"step {found.steps}, guard loss {found.curve[-1][1]:.4f} (began at {found.start_loss:.4f})", done)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """What layers draw, such as dropout, comes from `seed`; the global generator is as before afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
