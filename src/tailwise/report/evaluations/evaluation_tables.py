"""Evaluations as tables and in words: one a text, and the block of divergence that users of llama.cpp know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tailwise.models.evaluation.candidates import SameText, ScoredModel, Size, Standing
from tailwise.models.evaluation.intervals import P_FLOOR, RESAMPLES
from tailwise.models.evaluation.scores import Divergence, Interval, ScoreChange, ScoreComparison, Scores
from tailwise.report.columns import printable
from tailwise.report.evaluations.evaluation_view import names_in
from tailwise.report.grid import Grid

_DASH = "–"
_PERCENTS = ("0", "1", "5", "25", "50", "75", "95", "99", "100")


def plain(value: float | None, *, digits: int = 3) -> str:
    """A number that may be not finite."""
    return "not finite" if value is None else f"{value:.{digits}g}" if abs(value) >= 1e-12 else "0"


def percent(value: float | None, sign: str = "") -> str:
    """A share in percent."""
    return "not finite" if value is None else f"{100 * value:{sign}z.2f} %"


def interval_words(interval: Interval | None, form: str = ".4g", *, times: float = 1.0, unit: str = "") -> str:
    """`1.2 to 1.4`, or a dash."""
    return _DASH if interval is None else f"{times * interval[0]:{form}} to {times * interval[1]:{form}}{unit}"


def p_words(change: ScoreChange) -> str:
    """`0.03`; `≤ 0.0002` where no random flip of signs went as far as the data; a dash for none."""
    if change.p is None:
        return _DASH
    drawn = change.runs is not None and 2**change.runs > RESAMPLES
    return f"{'≤ ' if drawn and change.p <= P_FLOOR * (1 + 1e-9) else ''}{change.p:.2g}"


def p_equation(change: ScoreChange) -> str:
    """`p = 0.03`, `p ≤ 0.0002`."""
    words = p_words(change)
    return f"p {words}" if words.startswith("≤") else f"p = {words}"


def bytes_words(value: int | None) -> str:
    """Bytes as people read them."""
    from rich.filesize import decimal

    return _DASH if value is None else decimal(value)


def divergence_rows(one: Divergence, change: ScoreChange | None = None) -> Iterator[tuple[str, str, str]]:
    """Name, value and 95 % interval of everything that two models' predictions of the same tokens are compared by."""
    if change is not None and change.change is not None:
        yield "ln of the ratio of perplexities", f"{change.change:+z.4f}", interval_words(change.interval, "+z.4f")
    kl, moved = one.kl_quantiles, one.change_quantiles
    yield "mean KL divergence, nats", plain(one.kl), interval_words(one.kl_interval, ".3g")
    yield "  median, 90 %", f"{plain(kl['50'])} · {plain(kl['90'])}", ""
    yield "  99 %, 99.9 %", f"{plain(kl['99'])} · {plain(kl['99.9'])}", ""
    yield "  largest", plain(kl["100"]), ""
    yield "same top token", percent(one.same_top), interval_words(one.same_top_interval, ".2f", times=100, unit=" %")
    mean = interval_words(one.change_interval, "+z.2f", times=100, unit=" %")
    yield "token probability, mean change", percent(one.change, "+"), mean
    rms = interval_words(one.rms_change_interval, ".2f", times=100, unit=" %")
    yield "  root mean square", percent(one.rms_change), rms
    known = [name for name in _PERCENTS if name in moved]
    for name, other in zip(known, reversed(known), strict=True):
        if float(name) < 50:
            ends = "least, most" if name == "0" else f"{name} %, {other} %"
            yield f"  {ends}", f"{percent(moved[name], '+')} · {percent(moved[other], '+')}", ""
    if "50" in moved:
        yield "  median", percent(moved["50"], "+"), ""


def divergence_grid(one: Divergence, change: ScoreChange | None = None) -> Grid:
    """The same as a table."""
    return Grid((f"over {one.tokens:,} tokens", "value", "95 %"), list(divergence_rows(one, change)))


def models_grid(group: SameText, standings: tuple[Standing, ...], size: Size) -> Grid:
    """A line a model: size, quality with intervals, where it stands."""
    lines, kept = [], [column for column in _COLUMNS if any(_cell(one, column) for one in group.candidates)]
    for index, (one, name) in enumerate(zip(group.candidates, names_in(group), strict=True)):
        cells = [_cell(one, column) or _DASH for column in kept]
        standing = "the base" if one.is_base else standings[index]
        tasks = [_task(one, *task) for task in _tasks(group)]
        lines.append((str(index + 1), name, *cells, *tasks, standing))
    heads = ("", "model", *kept, *(f"{task} {metric}, ± 95 %" for task, metric in _tasks(group)), f"by {size.title}")
    return Grid(heads, lines, words=(0, 1, len(heads) - 1))


_COLUMNS = (
    "bytes",
    "not zero",
    "perplexity [95 %]",
    "ln of the ratio to the base",
    "mean KLD",
    "same top token",
    "verdict",
)


def _cell(one: ScoredModel, column: str) -> str:
    return _cells(one).get(column, "")


def _cells(one: ScoredModel) -> dict[str, str]:
    found: dict[str, str] = {}
    facts, scores, change, away = one.scores.facts, one.scores, one.change, one.divergence
    if facts is not None:
        planned = "" if facts.planned_nbytes is None else " as planned"
        found |= {"bytes": bytes_words(one.nbytes) + planned, "not zero": f"{facts.nonzero:,}"}
    if scores.losses:
        found["perplexity [95 %]"] = plain(scores.perplexity, digits=4) + _within(scores.interval, ".4g")
    if change is not None:
        moved = "not finite" if change.change is None else f"{change.change:+z.4f}"
        found["ln of the ratio to the base"] = moved + _within(change.interval, "+z.4f")
        found["verdict"] = change.verdict + ("" if change.p is None else f" ({p_equation(change)})")
    if away is not None:
        found["mean KLD"] = plain(away.kl) + _within(away.kl_interval, ".3g")
        found["same top token"] = percent(away.same_top) + _within(away.same_top_interval, ".1f", times=100)
    return found


def _within(interval: Interval | None, form: str, *, times: float = 1.0) -> str:
    return "" if interval is None else f" [{times * interval[0]:{form}}, {times * interval[1]:{form}}]"


def _tasks(group: SameText) -> list[tuple[str, str]]:
    return list(dict.fromkeys((task.task, task.metric) for one in group.candidates for task in one.scores.tasks))


def _task(one: ScoredModel, task: str, metric: str) -> str:
    found = next((item for item in one.scores.tasks if (item.task, item.metric) == (task, metric)), None)
    if found is None:
        return _DASH
    return f"{found.value:.4f}" + ("" if found.stderr is None else f" ± {1.96 * found.stderr:.4f}")


def said_of(group: SameText, standings: tuple[Standing, ...], size: Size) -> Iterator[str]:
    """A text in words: how many models, which are on the front, which are not told from it."""
    names = names_in(group)
    sure = [names[i] for i, one in enumerate(standings) if one == "front"]
    near = [names[i] for i, one in enumerate(standings) if one == "not told apart"]
    models = "1 model" if len(names) == 1 else f"{len(names)} models"
    where = f" on {group.windows}" if group.windows else ""
    yield f"{models}{where} of {printable(group.text)}."
    if len(names) > 1 and sure:
        yield f"No other is better and no larger (by {size.title}) than {_list(sure)}."
    if near:
        yield f"Not told from a better one that is no larger: {_list(near)}."


def _list(names: list[str], most: int = 12) -> str:
    shown = names[:most]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def markdown(found: Scores | ScoreComparison) -> str:
    """An evaluation as a part of a model card."""
    parts = ["## Quality", "", *_card_lines(found)]
    return "\n".join(parts) + "\n"


def _card_lines(found: Scores | ScoreComparison) -> Iterator[str]:
    from importlib.metadata import version

    if isinstance(found, Scores):
        both = [ScoredModel(found)]
    else:
        both = [ScoredModel(found.base, is_base=True),
                ScoredModel(found.model, divergence=found.divergence, change=found.perplexity)]  # fmt: skip
    group = SameText(tuple(both))
    where = f" on {group.windows}" if group.windows else ""
    made = f"by tailwise {version('tailwise')}; intervals are 95 %, over windows"
    yield f"Measured{where} of {printable(group.text)}, {made}."
    yield ""
    grid = models_grid(group, tuple("–" for _ in both), group.sizes[0])
    yield grid.only(
        [index for index, head in enumerate(grid.heads) if head and not head.startswith("by ")]
    ).to_markdown()
    if isinstance(found, ScoreComparison) and found.conclusion:
        yield from ("", printable(found.conclusion))
    if isinstance(found, ScoreComparison) and found.divergence is not None:
        yield from ("", "Against the base, token by token:", "")
        yield divergence_grid(found.divergence, found.perplexity).to_markdown()
    notes: Iterable[str] = dict.fromkeys([*(note for one in both for note in one.scores.notes),
                                          *(() if isinstance(found, Scores) else found.notes)])  # fmt: skip
    yield from (line for note in notes for line in ("", f"- {printable(note)}"))
