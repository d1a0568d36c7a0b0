"""Tasks of the lm-evaluation-harness (EleutherAI), zero-shot unless a task says otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tailwise.core.errors import TailwiseError, UnreadableError, UsageError, unknown_name
from tailwise.core.optional import how_to_get
from tailwise.core.typed import is_finite
from tailwise.models.evaluation.loading import Loaded
from tailwise.models.evaluation.quiet import quiet
from tailwise.models.evaluation.scores import TaskScore

#: Tasks that a paper reports together, by one name; the mean of their accuracies is reported too.
SUITES: Mapping[str, tuple[str, ...]] = {
    # Lu et al. 2024, AlphaPruning: BoolQ, RTE, HellaSwag, WinoGrande, ARC-e, ARC-c, OBQA.
    "alphapruning": ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"),
}
#: Resamples of the harness for the standard errors that have no formula.
_RESAMPLES = 1000


def task_scores(
    loaded: Loaded,
    tasks: Sequence[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch: int = 1,
) -> tuple[TaskScore, ...]:
    """The model's scores on `tasks`, in their order, with standard errors and the scores of the single documents.

    `include_path` is a folder with task files in YAML, as the harness takes them; `limit` the number of documents
    of each task; `batch` the number of requests at once. Only where a name is not found there are the harness's own
    tasks read, which mostly need the Hub.
    """
    named, tasks = tasks, expanded(tasks)
    harness = _harness()
    if loaded.tokenizer is None:
        raise UsageError("tasks take a tokenizer", where=loaded.name, fix="put one beside the model, or give one")
    if include_path is not None and not Path(include_path).is_dir():
        raise UsageError("there is no such folder of tasks", where=include_path)
    try:
        with quiet(streams=True):
            manager = _manager(harness["tasks"].TaskManager, tasks, include_path)
            results = _run(harness, loaded, tasks, manager, (limit, seed, batch))
    except TailwiseError:
        raise
    except Exception as error:  # a task brings its own data and code
        lines = str(error).strip().splitlines()
        detail = f"{type(error).__name__}: {lines[0] if lines else ''}"
        fix = "their data is read from the Hub or its cache: run once with a network, or give files by --include-path"
        raise UnreadableError(f"the harness failed ({detail})", where=", ".join(tasks), fix=fix) from error
    scores = tuple(score for task in results["results"] for score in _scores(task, results))
    return (*scores, *(mean for name in named if name in SUITES and (mean := mean_of(name, scores)) is not None))


def expanded(tasks: Sequence[str]) -> tuple[str, ...]:
    """The tasks, with the name of a suite replaced by its own, each once."""
    return tuple(dict.fromkeys(inner for task in tasks for inner in SUITES.get(task, (task,))))


def mean_of(suite: str, scores: Sequence[TaskScore]) -> TaskScore | None:
    """The plain mean of a suite's accuracies, as its paper reports it; None where one is missing."""
    by_task = {score.task: score for score in scores if score.metric == "acc"}
    members = [by_task.get(task) for task in SUITES[suite]]
    known = [score for score in members if score is not None]
    if len(known) < len(members):
        return None
    value = sum(score.value for score in known) / len(known)
    errors = [score.stderr for score in known]
    whole = [error for error in errors if error is not None]
    stderr = math.sqrt(sum(error**2 for error in whole)) / len(known) if len(whole) == len(known) else None
    return TaskScore(suite, "acc, mean", value, stderr, sum(score.n for score in known), True)


def _harness() -> dict[str, Any]:
    try:
        with quiet(streams=True):
            return {name: import_module(f"lm_eval.{name}") for name in ("evaluator", "models.huggingface", "tasks")}
    except ImportError as error:
        raise UsageError("tasks take `lm-eval`", fix=how_to_get("eval")) from error


def _manager(manager: Any, tasks: Sequence[str], include_path: str | Path | None) -> Any:
    folder = None if include_path is None else str(include_path)
    if folder is not None:
        own = manager(include_path=folder, include_defaults=False)
        if set(tasks) <= set(own.all_tasks):
            return own
    made = manager(include_path=folder)
    for task in tasks:
        if task not in made.all_tasks:
            raise unknown_name("task", task, made.all_tasks)
    return made


def _run(
    harness: Mapping[str, Any], loaded: Loaded, tasks: Sequence[str], manager: Any, how: tuple[int | None, int, int]
) -> Any:
    limit, seed, batch = how
    model = harness["models.huggingface"].HFLM(
        pretrained=loaded.module, tokenizer=loaded.tokenizer, batch_size=batch, trust_remote_code=False
    )
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed)
    return harness["evaluator"].simple_evaluate(
        model=model, tasks=list(tasks), task_manager=manager, limit=limit, bootstrap_iters=_RESAMPLES, **seeds
    )


def _scores(task: str, results: Mapping[str, Any]) -> list[TaskScore]:
    values, documents = results["results"][task], results.get("samples", {}).get(task, [])
    counted = results["n-samples"].get(task, {}).get("effective", values.get("sample_len", len(documents)))
    scores = []
    for key, value in values.items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or not _is_number(value):
            continue
        error = values.get(f"{metric}_stderr,{filtered}")
        scores.append(
            TaskScore(
                task=task,
                metric=metric if filtered == "none" else key,
                value=float(value),
                stderr=float(error) if _is_number(error) else None,
                n=int(counted),
                higher_is_better=results["higher_is_better"].get(task, {}).get(metric) is not False,
                samples=_samples(documents, metric, filtered, float(value)),
            )
        )
    return scores


def _is_number(value: Any) -> bool:
    return is_finite(value)


def _samples(documents: Sequence[Mapping[str, Any]], metric: str, filtered: str, value: float) -> tuple[float, ...]:
    """The metric of each document, by their numbers; empty where the task's value is not the mean of them."""
    chosen = [one for one in documents if one.get("filter", "none") == filtered and _is_number(one.get(metric))]
    samples = tuple(float(one[metric]) for one in sorted(chosen, key=lambda one: one["doc_id"]))
    if not samples or not math.isclose(math.fsum(samples) / len(samples), value, rel_tol=1e-6, abs_tol=1e-9):
        return ()
    return samples
