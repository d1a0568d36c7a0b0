"""What an evaluation found: scores as plain values, in JSON and back. Imports no torch."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from tailwise.core.atomic import write_whole
from tailwise.core.errors import UnreadableError
from tailwise.core.shown import Brief, Shown, brief
from tailwise.core.storage import is_text, json_of, read_bytes
from tailwise.core.typed import check_typed
from tailwise.core.validation import checked

FORMAT = 1

Interval = tuple[float, float]

#: Windows below which intervals of correlated losses hold too seldom: see docs/finetune.md.
ENOUGH = 100
_LITTLE = math.log(1.01)
BETTER, WORSE, NONE, UNKNOWN = "better", "worse", "no difference seen", "not measured"

#: Quantiles of KL(base ‖ model) over tokens, and of the change of the next token's probability, that are kept.
DIVERGENCE_QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)
PROBABILITY_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class ModelSize:
    """Size of a model, from its stored tensors. Tied tensors count once; tensors of integers do not count."""

    parameters: int
    nonzero: int
    block_parameters: int  # of the matrices inside the blocks, which is what pruning papers count
    block_nonzero: int
    nbytes: int  # of all tensors as stored
    planned_nbytes: int | None = None  # the same where its plan's formats were packed; None where they are, or no plan

    @property
    def sparsity(self) -> float:
        """Share of all parameters that are exactly zero."""
        return 1 - self.nonzero / self.parameters if self.parameters else 0.0

    @property
    def block_sparsity(self) -> float:
        """Share of the entries of the blocks' matrices that are exactly zero."""
        return 1 - self.block_nonzero / self.block_parameters if self.block_parameters else 0.0


@dataclass(frozen=True)
class Speed:
    """Tokens a second for one sequence: the median of the repeats, after a warm-up."""

    prefill: float  # tokens/s of one pass over `prompt` tokens
    decode: float | None  # tokens/s of greedy decoding one token at a time; None without a key-value cache
    prompt: int
    decoded: int
    repeats: int
    threads: int
    device: str
    dtype: str


@dataclass(frozen=True, repr=False)
class TaskScore(Brief):
    """One metric of one task."""

    task: str
    metric: str  # with its filter, where it has one: `exact_match,strict`
    value: float
    stderr: float | None
    n: int  # documents
    higher_is_better: bool
    samples: tuple[float, ...] = ()  # the metric of every document, where it is a mean of them


@dataclass(frozen=True, repr=False)
class Scores(Brief):
    """Everything measured of one model."""

    model: str
    perplexity: float | None = None  # exp of the mean loss; None where nothing was scored or it is not finite
    interval: Interval | None = None  # 95 %, of the perplexity
    losses: tuple[float | None, ...] = ()  # mean nats a token of every window; None where not finite
    tokens_per_window: int = 0  # predictions in each window: all windows weigh the same
    digest: str = ""  # SHA-256 of the windows' token ids
    facts: ModelSize | None = None
    speed: Speed | None = None
    tasks: tuple[TaskScore, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens that were predicted, in all windows."""
        return self.tokens_per_window * len(self.losses)

    @property
    def log_perplexity(self) -> float | None:
        """Mean loss in nats a token."""
        return None if self.perplexity is None else math.log(self.perplexity)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, without NaN."""
        document = {"format": FORMAT, "kind": "scores", **asdict(self)}
        if self.facts is not None:
            document["facts"] |= {"sparsity": self.facts.sparsity, "block_sparsity": self.facts.block_sparsity}
        return document

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        check_typed(cls, data)
        if any(
            number is not None and number <= 0 for number in (data.get("perplexity"), *(data.get("interval") or ()))
        ):
            raise ValueError("a perplexity that is not above 0")
        known = _known(cls, data)
        known["interval"] = _pair(data.get("interval"))
        known["losses"] = tuple(data.get("losses", ()))
        known["notes"] = tuple(data.get("notes", ()))
        known["facts"] = _one(ModelSize, data.get("facts"))
        known["speed"] = _one(Speed, data.get("speed"))
        tasks = [_known(TaskScore, item) for item in data.get("tasks", ())]
        known["tasks"] = tuple(TaskScore(**{**item, "samples": tuple(item.get("samples", ()))}) for item in tasks)
        return cls(**known)

    @checked
    def save(self, path: str | Path) -> Path | str:
        """Write as JSON; the file appears whole or not at all."""
        return write_whole(path, as_text(self.to_json()).encode())

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. `UnreadableError` for anything else."""
        return cls.of_json(_document(path, "scores", cls.of_json))

    def __repr__(self) -> str:
        return f"Scores({brief(self.model)}: {'; '.join(self._said()) or 'nothing scored'})"

    def _said(self) -> list[str]:
        said = []
        if self.perplexity is not None:
            within = "" if self.interval is None else f" ({self.interval[0]:.4g} to {self.interval[1]:.4g})"
            said.append(f"perplexity {self.perplexity:.4g}{within} on {self.tokens:,} tokens")
        return said + [f"{one.task} {one.metric} {one.value:.4g}" for one in self.tasks[:3]]

    def _shown(self) -> Shown:
        rows: list[tuple[object, ...]] = []
        if self.perplexity is not None:
            low, high = self.interval or (None, None)
            rows.append(("perplexity", self.perplexity, low, high, self.tokens))
        rows += [(f"{one.task} {one.metric}", one.value, None, one.stderr, one.n) for one in self.tasks]
        heads = ("", "value", "low", "high / s.e.", "tokens / documents")
        return Shown(repr(self), heads, rows, "`to_json()`", self.notes)


@dataclass(frozen=True, repr=False)
class ScoreChange(Brief):
    """One number of the model against the same number of the base, over the same windows or documents."""

    name: str  # `log perplexity`, or task and metric
    before: float | None  # of the base
    after: float | None
    change: float | None  # after − before
    interval: Interval | None  # 95 %, of the change
    p: float | None  # two-sided; None where there is nothing to test
    n: int  # pairs
    verdict: str  # better, worse, no difference seen, too few windows, not measured
    runs: int | None = None  # of pairs, long enough to be independent: what was resampled


@dataclass(frozen=True, repr=False)
class Divergence(Brief):
    """What a model says of the next token against what its base says, over all predicted tokens of all windows.

    Intervals are 95 %, over windows, as those of the perplexity. A value is None where a logit is not finite.
    """

    kl: float | None  # mean of KL(base ‖ model), in nats a token
    kl_interval: Interval | None
    kl_quantiles: Mapping[str, float | None]  # by percent: "50" is the median, "100" the largest
    same_top: float | None  # share of tokens where both find the same token most likely
    same_top_interval: Interval | None
    change: float | None  # mean of p(model) − p(base) of the token that comes next
    change_interval: Interval | None
    rms_change: float | None  # root of the mean square of that change
    rms_change_interval: Interval | None
    change_quantiles: Mapping[str, float | None]
    tokens: int = 0
    kl_by_window: tuple[float | None, ...] = ()  # mean of each window, in their order

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `asdict`."""
        pairs = ("kl_interval", "same_top_interval", "change_interval", "rms_change_interval")
        quantiles = {name: dict(data[name]) for name in ("kl_quantiles", "change_quantiles")}
        windows = {"kl_by_window": tuple(data.get("kl_by_window", ()))}
        return cls(**{**_known(cls, data), **{name: _pair(data.get(name)) for name in pairs}, **quantiles, **windows})


@dataclass(frozen=True, repr=False)
class ScoreComparison(Brief):
    """A model against a base."""

    model: Scores
    base: Scores
    perplexity: ScoreChange | None = None  # of the log perplexity, in nats a token
    tasks: tuple[ScoreChange, ...] = ()
    notes: tuple[str, ...] = ()
    divergence: Divergence | None = None  # where both models were at hand

    @property
    def ratio(self) -> float | None:
        """Perplexity of the model over that of the base."""
        change = self.perplexity
        return None if change is None or change.change is None else math.exp(min(change.change, 700.0))

    @property
    def conclusion(self) -> str:
        """What it comes to, in one sentence; "" where nothing was compared.

        `tuned is worse than base on this text: perplexity × 1.084 (95 %: 1.065 to 1.101).`
        """
        return _in_one_sentence(self)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, without NaN."""
        return {
            "format": FORMAT,
            "kind": "score comparison",
            "perplexity": None if self.perplexity is None else {**asdict(self.perplexity), "ratio": self.ratio},
            "tasks": [asdict(change) for change in self.tasks],
            "notes": list(self.notes),
            "divergence": None if self.divergence is None else asdict(self.divergence),
            "model": self.model.to_json(),
            "base": self.base.to_json(),
        }

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        for change in (data.get("perplexity"), *data.get("tasks", ())):
            if change is not None:
                check_typed(ScoreChange, change)
        first = data.get("perplexity")
        return cls(
            model=Scores.of_json(data["model"]),
            base=Scores.of_json(data["base"]),
            perplexity=None if first is None else _change(first),
            tasks=tuple(_change(item) for item in data.get("tasks", ())),
            notes=tuple(data.get("notes", ())),
            divergence=None if data.get("divergence") is None else Divergence.of_json(data["divergence"]),
        )

    @checked
    def save(self, path: str | Path) -> Path | str:
        """Write as JSON; the file appears whole or not at all."""
        return write_whole(path, as_text(self.to_json()).encode())

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. `UnreadableError` for anything else."""
        return cls.of_json(_document(path, "score comparison", cls.of_json))

    def __repr__(self) -> str:
        first = self.perplexity
        said = [] if first is None or self.ratio is None else [f"perplexity × {self.ratio:.4g}, {first.verdict}"]
        said += [f"{one.name} {one.verdict}" for one in self.tasks[:3]]
        who = f"{brief(self.model.model)} against {brief(self.base.model)}"
        return f"ScoreComparison({who}: {'; '.join(said) or 'nothing compared'})"

    def _shown(self) -> Shown:
        changes = ([self.perplexity] if self.perplexity else []) + list(self.tasks)
        rows = [(one.name, one.before, one.after, one.change, one.p, one.verdict) for one in changes]
        return Shown(repr(self), ("", "base", "model", "change", "p", "verdict"), rows, "`to_json()`", self.notes)


def as_text(document: Mapping[str, Any]) -> str:
    """JSON text of a document."""
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _document(path: str | Path, kind: str, of_json: Callable[[Mapping[str, Any]], object]) -> dict[str, Any]:
    """The JSON document of this kind in a file, once `of_json` takes it."""
    source = Path(path)
    try:
        data: dict[str, Any] = json_of(read_bytes(source))
        if data["kind"] != kind:
            raise UnreadableError(f"holds {data['kind']!r}, not {kind}", where=source)
        if data["format"] > FORMAT:
            raise UnreadableError("was written by a newer tailwise", where=source, fix="pip install -U tailwise")
        if not is_text(data):
            raise ValueError("half a character in a text")
        of_json(data)
    except OSError as error:
        raise UnreadableError(f"could not be read ({error.strerror or error})", where=source) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        detail = f"{type(error).__name__}: {error}"
        fix = "write it with `tailwise evaluate MODEL -o scores.json`"
        raise UnreadableError(f"is no {kind} in JSON ({detail})", where=source, fix=fix) from error
    return data


def _known(kind: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    names = {item.name for item in fields(kind)}
    return {key: value for key, value in data.items() if key in names}


def _one(kind: Any, data: Mapping[str, Any] | None) -> Any:
    return None if data is None else kind(**_known(kind, data))


def _pair(value: Any) -> Interval | None:
    return None if value is None else (float(value[0]), float(value[1]))


def _change(data: Mapping[str, Any]) -> ScoreChange:
    return ScoreChange(**{**_known(ScoreChange, data), "interval": _pair(data.get("interval"))})


def _in_one_sentence(found: ScoreComparison) -> str:
    """`tuned is worse than base on this text: perplexity × 1.084 (95 %: 1.065 to 1.101).`; "" of nothing compared."""
    who, base, change = found.model.model, found.base.model, found.perplexity
    if change is None:
        counts = Counter(one.verdict for one in found.tasks)
        counted = ", ".join(f"{counts[word]} {word}" for word in (BETTER, WORSE, NONE, UNKNOWN) if counts[word])
        return f"{who} against {base}, of what was measured: {counted}." if counted else ""
    size = _times(found.ratio, change)
    if change.verdict == WORSE:
        little = ", by less than one percent" if change.interval is not None and change.interval[1] < _LITTLE else ""
        return f"{who} is worse than {base} on this text{little}{size}."
    if change.verdict == BETTER:
        return f"{who} is not hurt but better than {base} on this text{size}. Of other text this says nothing."
    if change.verdict == NONE:
        return f"No difference between {who} and {base} was seen on this text{size}; {_not_excluded(change)}."
    return f"No verdict on {who} against {base}: {change.verdict}."


def _not_excluded(change: ScoreChange) -> str:
    """How large a difference may be there all the same: a test that finds none is not evidence of none."""
    if change.interval is None:
        return "how large a one may be there is not known"
    rise, fall = (100 * math.expm1(min(end, 700.0)) for end in reversed(change.interval))
    told = [f"a rise of up to {rise:.2g} %"] if rise > 0 else []
    told += [f"a fall of up to {-fall:.2g} %"] if fall < 0 else []
    return f"{' or '.join(told)} cannot be excluded" if told else "nor is there room for one"


def _times(ratio: float | None, change: ScoreChange) -> str:
    if ratio is None:
        return ": its loss is not finite"
    if change.interval is None:
        return f": perplexity × {ratio:.4g}"
    low, high = (math.exp(min(end, 700.0)) for end in change.interval)
    form = _form((ratio, low, high))
    return f": perplexity × {ratio:{form}} (95 %: {low:{form}} to {high:{form}})"


def _form(factors: tuple[float, ...]) -> str:
    """Four digits; near 1 as many as tell the factors apart: `1.0033 (95 %: 1.0029 to 1.0037)`."""
    farthest = max(abs(factor - 1) for factor in factors)
    return f".{1 - math.floor(math.log10(farthest))}f" if 1e-6 < farthest < 0.01 else ".4g"
