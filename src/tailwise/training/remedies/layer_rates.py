"""Learning rates and weight decay by matrix, from the exponents of their spectra: TempBalance and AlphaDecay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from tailwise.core.errors import UsageError, unknown_name
from tailwise.core.validation import check_fields, check_least
from tailwise.spectrum.power_law import ESTIMATORS
from tailwise.training.remedies.groups import GroupScaler, follow, scaler_of
from tailwise.training.remedies.live_matrices import exponent, role_of, weight_matrices
from tailwise.training.remedies.process_ranks import of_first_rank

_NEVER = 1 << 62  # steps between updates of factors that stay


@dataclass(frozen=True)
class BalanceOptions:
    """How exponents become factors."""

    estimator: str = "mid"  # of both papers: the upper half of the spectrum; any of the audit's
    smoothing: float = 0.5  # weight of the past in each new exponent; 0 is what the papers do
    within: Literal["model", "role"] = "model"  # what is compared; "role" keeps shapes and roles apart
    keep_mean: bool = False  # divide by the mean factor over the entries; the papers do not
    min_evals: int = 16  # smaller matrices keep their setting
    over: int = 0  # steps over which factors move to new ones, in a straight line; 0: at once

    def __post_init__(self) -> None:
        check_fields(self)
        check_least(self, min_evals=1)
        if self.estimator not in ESTIMATORS:
            raise unknown_name("estimator", self.estimator, ESTIMATORS)
        if not 0.0 <= self.smoothing < 1.0:
            raise UsageError(f"smoothing is {self.smoothing}", fix="give a number from 0 to below 1")
        if self.over < 0:
            raise UsageError(f"over is {self.over}", fix="give a number of steps, or 0")


def linear_factors(alphas: Mapping[str, float], low: float, high: float) -> dict[str, float]:
    """low + (high − low)·(α − α_min)/(α_max − α_min) for each; 1 for all where the exponents are equal.

    Source: TempBalance, eq. 3 (`tb_linear_map` in its code); AlphaDecay uses the same map.
    """
    if not alphas:
        return {}
    least, most = min(alphas.values()), max(alphas.values())
    if most <= least:
        return dict.fromkeys(alphas, 1.0)
    return {name: low + (high - low) * (alpha - least) / (most - least) for name, alpha in alphas.items()}


class Balance:
    """Multiplies one setting of an optimizer by a factor for each matrix, renewed every so many steps.

    `alphas` and `factors` hold what is in force, by the matrix's name. Made by `layerwise_learning_rates` and
    `layerwise_weight_decay`.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, setting: str, bounds: tuple[float, float], every: int,
        options: BalanceOptions,
    ) -> None:  # fmt: skip
        low, high = bounds
        if not 0.0 < low <= high or every < 1:
            raise UsageError(f"low {low}, high {high}, every {every}", fix="give 0 < low ≤ high and every ≥ 1")
        if not any(setting in group for group in optimizer.param_groups):
            raise UsageError(f"{type(optimizer).__name__} has no {setting}", fix="use an optimizer that has one")
        self.setting, self.every, self.options = setting, every, options
        self.alphas: dict[str, float] = {}
        self.factors: dict[str, float] = {}
        self.steps = 0
        self._bounds, self._model = bounds, model
        self._matrices = weight_matrices(model, options.min_evals)
        _check_held(self._matrices, optimizer, options.min_evals)
        self._from: dict[str, float] = {}  # factors that are being left
        self._left = 0  # steps until the new ones are reached
        self._scaler: GroupScaler | None = None
        self.attach(optimizer)
        self._following = follow(self, self._matrices.values())

    def attach(self, optimizer: Optimizer) -> None:
        """Balance this optimizer from here on, in the place of the one before.

        An optimizer that was made anew for the same weights is noticed when it steps, and attached; a warning says so.
        """
        scaler = scaler_of(optimizer)
        if scaler is self._scaler:
            return
        if self.setting in scaler.before:
            raise UsageError(f"the {self.setting} of this optimizer is balanced already",
                             fix="call remove() on the first")  # fmt: skip
        self._detach()
        self._scaler = scaler
        scaler.before[self.setting] = self._before_step
        self._apply()

    def follows(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer that steps some of the matrices is another one than is balanced, and has the setting."""
        known = scaler_of(optimizer) is self._scaler
        return not known and any(self.setting in group for group in optimizer.param_groups)

    def update(self) -> dict[str, float]:
        """Measure the exponents and renew the factors, which are returned. Called every `every` steps by itself."""
        past, before = self.options.smoothing, self.alphas
        trained = {name: weight for name, weight in self._matrices.items() if weight.requires_grad}
        self.alphas = {name: before[name] for name in trained if name in before}
        for name, alpha in self._measured(trained).items():
            self.alphas[name] = past * before.get(name, alpha) + (1 - past) * alpha
        self._from, self._left = self._now(), self.options.over
        self.factors = self._kept_mean(self._mapped())
        self._apply()
        return dict(self.factors)

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        self._following()
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of the training needs beside the optimizer's own state."""
        return {"setting": self.setting, "steps": self.steps, "alphas": dict(self.alphas),
                "factors": dict(self.factors), "from": dict(self._from), "left": self._left}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. Raises `UsageError` where it is of other matrices or another setting."""
        unknown = set(state["factors"]) - set(self._matrices)
        if state["setting"] != self.setting or unknown:
            what = f"it has {sorted(unknown)[0]}" if unknown else f"it is of {state['setting']}"
            raise UsageError(f"the state is not of this balance: {what}", fix="load the state of the same model")
        self.steps, self.alphas, self.factors = state["steps"], dict(state["alphas"]), dict(state["factors"])
        self._from, self._left = dict(state.get("from", {})), min(state.get("left", 0), self.options.over)
        self._apply()

    def _detach(self) -> None:
        if self._scaler is not None:
            self._scaler.before.pop(self.setting, None)
            self._scaler.factors.pop(self.setting, None)
            self._scaler = None

    def _now(self) -> dict[str, float]:
        """The factors in force, on their way from the last ones to the new."""
        done = 1 - self._left / self.options.over if self.options.over else 1.0
        return {name: self._from.get(name, 1.0) * (1 - done) + by * done for name, by in self.factors.items()}

    def _measured(self, trained: Mapping[str, nn.Parameter]) -> dict[str, float]:
        """Exponents, on all ranks those of the first: replicas with other rates would drift apart."""
        if not trained:
            return {}
        found = [exponent(weight, self.options.estimator) for weight in trained.values()]
        values = torch.tensor([math.nan if alpha is None else alpha for alpha in found], dtype=torch.float64)
        shared = of_first_rank(values, self._model, next(iter(trained.values()))).tolist()
        return {name: alpha for name, alpha in zip(trained, shared, strict=True) if not math.isnan(alpha)}

    def _before_step(self) -> None:
        # Not before the first step: at random weights an exponent tells the shape alone.
        if self.steps and self.steps % self.every == 0:
            self.update()
        elif self._left:
            self._left -= 1
            self._apply()
        self.steps += 1

    def _mapped(self) -> dict[str, float]:
        low, high = self._bounds
        if self.options.within == "model":
            return linear_factors(self.alphas, low, high)
        roles: dict[str, dict[str, float]] = {}
        for name, alpha in self.alphas.items():
            roles.setdefault(role_of(name, self._model), {})[name] = alpha
        return {name: by for group in roles.values() for name, by in linear_factors(group, low, high).items()}

    def _kept_mean(self, factors: dict[str, float]) -> dict[str, float]:
        if not self.options.keep_mean or not factors:
            return factors
        entries = {name: self._matrices[name].numel() for name in factors}
        mean = sum(by * entries[name] for name, by in factors.items()) / sum(entries.values())
        return {name: by / mean for name, by in factors.items()}

    def _apply(self) -> None:
        if self._scaler is not None:
            self._scaler.factors[self.setting] = {id(self._matrices[name]): by for name, by in self._now().items()}


def _check_held(matrices: Mapping[str, nn.Parameter], optimizer: Optimizer, min_evals: int) -> None:
    """Raise `UsageError` where nothing would be balanced."""
    if not matrices:
        raise UsageError(f"the model has no linear layer with {min_evals} eigenvalues or more, nor another matrix",
                         fix="lower min_evals")  # fmt: skip
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(weight) in held for weight in matrices.values()):
        fix = "give the model that it was made for; where the model was sharded or copied since, make it anew"
        raise UsageError("the optimizer has none of the model's linear layers", fix=fix)


def layerwise_learning_rates(
    model: nn.Module, optimizer: Optimizer, *, low: float = 0.5, high: float = 1.5, every: int = 100,
    options: BalanceOptions | None = None,
) -> Balance:  # fmt: skip
    """TempBalance: matrices with a high α (less trained) learn faster, those with a low α slower.

    The rate that the group has, by whatever scheduler, is multiplied by `low` (smallest α) to `high` (largest), in a
    straight line between. Embeddings, heads, norms, biases and what is frozen keep it. The factors are
    first set after `every` steps, and renewed every so many; `smoothing` steadies them. The optimizer's groups stay as
    they are. On several ranks every one balances, with the exponents of the first; sharded matrices are gathered.

    The mean rate changes unless `options.keep_mean` is set. Source: Zhou et al. 2023, Temperature Balancing,
    Layer-wise Weight Analysis, and Neural Network Training, arXiv:2312.00359.
    """
    return Balance(model, optimizer, "lr", (low, high), every, options or BalanceOptions())


def llr(
    model: nn.Module, optimizer: Optimizer, *, low: float = 1.0, high: float = 5.0, every: int = 100,
    options: BalanceOptions | None = None,
) -> Balance:  # fmt: skip
    """LLR: the heavier a matrix's tail, the smaller its rate: 1 to 5 times that of its group, for AdamW and Muon.

    The map is that of `layerwise_learning_rates`, upwards from the rate that was tuned for the model as a whole instead
    of around it, and new factors are reached in a straight line over 50 steps. The bounds, the period and the 50 steps
    are those that the paper's code gives for a Llama of a billion parameters. Muon steps matrices alone: give the
    optimizer that has them, and what the other has keeps its rate.

    Source: He et al. 2026, One LR Doesn't Fit All: Heavy-Tail Guided Layerwise Learning Rates for LLMs,
    arXiv:2605.22297.
    """
    chosen = options or BalanceOptions(smoothing=0.0, over=50)
    return Balance(model, optimizer, "lr", (low, high), every, chosen)


def fixed_learning_rates(
    model: nn.Module, optimizer: Optimizer, *, attention: float = 0.6, mlp: float = 1.4
) -> Balance:  # fmt: skip
    """A fixed factor of the rate for the matrices of attention, and one for those of MLPs and experts; no spectrum.

    A control for remedies that follow α: where two fixed rates gain as much, α is not what helped. The defaults are
    what TempBalance came to on small Llamas; on one they gained three times as much as it did, on a smaller one they
    lost (see the documentation's evidence from training). `state_dict` and `remove` are those of `Balance`.
    """
    if attention <= 0 or mlp <= 0:
        raise UsageError(f"attention {attention}, mlp {mlp}", fix="give positive factors")
    balance = Balance(model, optimizer, "lr", (1.0, 1.0), _NEVER, BalanceOptions(min_evals=1))
    kinds = {name: _kind_of(role_of(name, model)) for name in weight_matrices(model, 1)}
    balance.factors = {name: attention if kind == "attn" else mlp for name, kind in kinds.items() if kind}
    balance._apply()
    return balance


def _kind_of(role: str) -> str:
    return "attn" if role.startswith("attn") else "mlp" if role.startswith(("mlp", "expert", "shared")) else ""


def layerwise_weight_decay(
    model: nn.Module, optimizer: Optimizer, *, low: float = 2 / 3, high: float = 3.0, every: int = 500,
    options: BalanceOptions | None = None,
) -> Balance:  # fmt: skip
    """AlphaDecay: matrices with a high α get a stronger weight decay, those with a low α a weaker one.

    As `layerwise_learning_rates`, for the optimizer's `weight_decay`. A group whose decay is 0 keeps it. The bounds and
    the period are those of the paper's code for a Llama of 130 million parameters.

    Source: He et al. 2025, AlphaDecay: Module-wise Weight Decay for Heavy-Tailed Balancing in LLMs, arXiv:2506.14562.
    """
    return Balance(model, optimizer, "weight_decay", (low, high), every, options or BalanceOptions())
