"""A remedy as a part of somebody else's loop: made when the optimizer is there, asked before each of its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tailwise.core.errors import UsageError, unknown_name
from tailwise.training import remedies

#: Remedies that hang on an optimizer; on the model alone; and those that change the weights once, before training.
_OF_THE_OPTIMIZER = ("fixed_learning_rates", "layerwise_learning_rates", "layerwise_weight_decay", "llr")
_OF_THE_MODEL = ("AdaptiveClip", "spectral_penalty")
_BEFORE = ("scale_residual_branches", "reinitialize_dead_layers")
NAMES = (*_OF_THE_OPTIMIZER, *_OF_THE_MODEL, *_BEFORE)
_PENALTY = 1e-3

Make = Callable[[Any, Any], Any]


class Remedy:
    """One remedy of a run, by its name in `tailwise.remedies`, or made by a function of the model and an optimizer.

    Raises `UsageError` for a name that is no remedy of a training loop.
    """

    def __init__(self, remedy: str | Make, settings: Mapping[str, Any]) -> None:
        if not callable(remedy) and remedy not in NAMES:
            raise unknown_name("remedy", str(remedy), NAMES)
        if callable(remedy) and settings:
            raise UsageError(f"{sorted(settings)[0]} is given beside a function", fix="give it inside the function")
        self._remedy, self._settings = remedy, dict(settings)
        self._weight = self._settings.pop("weight", _PENALTY) if remedy == "spectral_penalty" else _PENALTY
        self.made: list[Any] = []  # what the remedy's function returned: one, or one an optimizer

    @property
    def name(self) -> str:
        """Of the remedy."""
        return self._remedy if isinstance(self._remedy, str) else "remedy"

    def start(self, model: Any, optimizers: list[Any], *, resumed: bool = False) -> None:
        """Make it. What changes the weights once does so where the training is not resumed."""
        self.made = []
        if self._remedy in _BEFORE:
            function: Callable[..., Any] = getattr(remedies, self.name)
            self.made = [] if resumed else [function(model, **self._settings)]
        elif self._remedy in _OF_THE_MODEL:
            self.made = [getattr(remedies, self.name)(model, **self._settings)]
        else:
            self._of_optimizers(model, optimizers)

    def _of_optimizers(self, model: Any, optimizers: list[Any]) -> None:
        function = self._remedy
        if isinstance(function, str):
            chosen, settings = getattr(remedies, function), self._settings
            function = lambda model, optimizer: chosen(model, optimizer, **settings)  # noqa: E731
        refused: UsageError | None = None
        for optimizer in optimizers:
            try:
                self.made.append(function(model, optimizer))
            except UsageError as error:  # of several optimizers, one may have no matrix
                refused = error
        if not self.made:
            raise refused or UsageError("the training has no optimizer", fix="use one of torch.optim")

    def before_step(self) -> None:
        """With the gradients there, and the optimizer about to step."""
        if self._remedy == "AdaptiveClip":
            self.made[0]()
        elif self._remedy == "spectral_penalty":
            (self._weight * self.made[0]()).backward()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs, in plain JSON types."""
        return {"name": self.name, "states": [one.state_dict() for one in self._kept()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        for one, mine in zip(self._kept(), state.get("states", ()), strict=False):
            one.load_state_dict(mine)

    def _kept(self) -> list[Any]:
        """What has a state that JSON can hold; the directions of a penalty are found anew in a few steps."""
        penalty = self._remedy == "spectral_penalty"
        return [] if penalty else [one for one in self.made if hasattr(one, "load_state_dict")]

    def end(self) -> None:
        """Leave the optimizer as it was."""
        for one in self.made:
            if callable(remove := getattr(one, "remove", None)):
                remove()
