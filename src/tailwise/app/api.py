"""The same facts as JSON, described by OpenAPI at `/api/openapi.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel

from tailwise.app import chart_json as figures
from tailwise.app.before_the_body import CheckedRoute, check_first
from tailwise.app.chart_json import encoded
from tailwise.app.help_texts import topic, topics
from tailwise.app.jobs.start import Wish, start
from tailwise.app.layer_tables import Columns, chosen_columns
from tailwise.app.page_context import PageContext, context_of
from tailwise.app.pages.evaluations import chart_of
from tailwise.app.pages.models import layer_rows
from tailwise.app.pages.training import summary_of
from tailwise.app.workspace import layers as table
from tailwise.compression.plans.files import to_document
from tailwise.history.doubted import trusted_alone
from tailwise.history.store import History
from tailwise.judging.compare.summary import model_numbers
from tailwise.report.charts.plan_chart import plan_chart
from tailwise.report.charts.timeline import Look, Marks, scalars_chart, series_chart
from tailwise.report.history import alarm_line, audit_line, plain
from tailwise.report.theme import TOKENS


class Problem(BaseModel):
    """What went wrong, where, and what to do."""

    error: str
    where: str | None = None
    fix: str | None = None


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request cannot be carried out"},
    401: {"model": Problem, "description": "A token is needed"},
    403: {"model": Problem, "description": "A write without proof that it comes from this server's pages"},
    404: {"model": Problem, "description": "Nothing has that name"},
}
router = APIRouter(prefix="/api", responses=_PROBLEMS, route_class=CheckedRoute)
Given = Annotated[PageContext, Depends(context_of)]
Id = Annotated[str, Query(max_length=200)]
_JSON = "application/json"


def _json(data: bytes) -> Response:
    return Response(data, media_type=_JSON)


@router.get("/models", tags=["models"])
def models(context: Given) -> list[dict[str, Any]]:
    """Every audit at a glance."""
    tags = context.tags.all()
    return [{**context.overviews.of(entry).to_json(), "tags": list(tags.get(str(entry.path), ()))}
            for entry in context.workspace.entries("audit")]  # fmt: skip


@router.get("/models/{audit}", tags=["models"])
def model(context: Given, audit: str) -> dict[str, Any]:
    """One audit: provenance, means, numbers of the model."""
    measured = context.workspace.audit(audit)
    overview = context.overviews.of(context.workspace.entry(audit)).to_json()
    return {**overview, "provenance": measured.provenance.to_json(), "means": measured.summary(),
            "numbers": model_numbers(measured)}  # fmt: skip


@router.get("/models/{audit}/diagnosis", tags=["models"])
def diagnosis(context: Given, audit: str) -> dict[str, Any]:
    """What the rules found."""
    return context.workspace.diagnosis(audit).to_json()


@router.get("/models/{audit}/layers", tags=["models"])
def layers(context: Given, audit: str, asked: Annotated[Columns, Query()]) -> dict[str, Any]:
    """One page of the table of layers."""
    rows = layer_rows(context, audit)
    page = table.select(rows, asked.query())
    names = chosen_columns(rows, asked) if asked.columns else table.columns(rows)
    records = [{name: record.get(name) for name in names} for record in page.records]
    return {"layers": records, "total": page.total, "of": page.of, "page": page.page, "pages": page.pages}


@router.get("/models/{audit}/charts/{name}", tags=["charts"])
def chart(
    context: Given, audit: str, name: str, metric: Annotated[str | None, Query(max_length=80)] = None
) -> Response:
    """A chart of one audit as a Vega-Lite spec; colours are names (`@ink`) that `/api/themes` gives."""
    return _json(figures.of_audit(context.workspace, audit, name, metric))


@router.get("/models/{audit}/layer/charts/{chart}", tags=["charts"])
def layer_chart(context: Given, audit: str, chart: str, name: Annotated[str, Query(max_length=1000)]) -> Response:
    """A chart of one layer."""
    return _json(figures.of_layer(context.workspace, audit, name, chart))


@router.get("/compare", tags=["compare"])
def compare(context: Given, model: Id, base: Id, level: Annotated[float, Query(gt=0, lt=1)] = 0.05) -> dict[str, Any]:
    """What changed from `base` to `model`."""
    return context.workspace.comparison(base, model, level).to_json()


@router.get("/compare/charts/{name}", tags=["charts"])
def several_chart(
    context: Given, name: str, model: Annotated[list[Id], Query(min_length=1, max_length=8)]
) -> Response:  # fmt: skip
    """A chart of several audits."""
    return _json(figures.of_several(context.workspace, list(dict.fromkeys(model)), name))


@router.get("/base/charts/{name}", tags=["charts"])
def base_chart(context: Given, name: str, model: Id, base: Id) -> Response:
    """A chart of an audit against its base."""
    return _json(figures.against_base(context.workspace, model, base, name))


@router.get("/training", tags=["training"])
def training(context: Given) -> list[dict[str, Any]]:
    """Every run of the store."""
    return [run.to_json() for run in context.workspace.history.runs()] if context.workspace.store else []


@router.get("/training/run", tags=["training"])
def run(context: Given, name: Id) -> dict[str, Any]:
    """One run: points, audits, alarms, metrics."""
    history, name = context.workspace.history, summary_of(context, name).name
    audits, alarms = history.audits(name), history.kept_alarms(name)
    return {"points": plain(history.scalars(name)), "audits": [audit_line(one) for one in audits],
            "alarms": [alarm_line(one) for one in alarms], "metrics": history.metrics(name)}  # fmt: skip


@router.get("/training/series", tags=["training"])
def series(
    context: Given, name: Id, metric: Annotated[str, Query(max_length=80)],
    role: Annotated[str, Query(max_length=80)] = "",
) -> list[dict[str, Any]]:  # fmt: skip
    """A metric of every layer over time."""
    return plain(
        context.workspace.history.series(summary_of(context, name).name, [metric], roles=[role] if role else None)
    )


@router.get("/training/chart", tags=["charts"])
def training_chart(context: Given, name: Id, metric: Annotated[str, Query(max_length=80)]) -> Response:
    """A metric over time: the median and the middle half of every role."""
    return _json(series_spec(context.workspace.history, summary_of(context, name).name, metric))


@router.get("/training/scalars", tags=["charts"])
def training_scalars(
    context: Given, name: Id, log: bool = False, smooth: Annotated[float, Query(ge=0, lt=1)] = 0.0,
    beside: Annotated[list[str] | None, Query(max_length=3)] = None,
) -> Response:  # fmt: skip
    """Loss and learning rate over time, with the alarms; smoothed, on a logarithmic axis, with three other runs."""
    others = [summary_of(context, one).name for one in beside or ()]
    look = Look(log, smooth)
    return _json(scalars_spec(context.workspace.history, summary_of(context, name).name, look, others))


@router.get("/plans", tags=["plans"])
def plans(context: Given) -> list[dict[str, Any]]:
    """Every plan."""
    return [entry.to_json() for entry in context.workspace.entries("plan")]


@router.get("/plans/{name}", tags=["plans"])
def plan(context: Given, name: str) -> dict[str, Any]:
    """One plan, as it is on disk."""
    return to_document(context.workspace.plan(name))


@router.get("/plans/{name}/chart", tags=["charts"])
def plan_figure(context: Given, name: str) -> Response:
    """The allocation along depth."""
    plan = context.workspace.plan(name)
    return _json(figures.encoded(lambda: plan_chart(plan, TOKENS)))


@router.get("/evaluations/chart", tags=["charts"])
def evaluation_figure(
    context: Given, text: Annotated[int, Query(ge=0)], measure: Annotated[str, Query(max_length=200)],
    size: Annotated[str, Query(max_length=40)],
) -> Response:  # fmt: skip
    """Quality against size of the models that were scored on one text."""
    return _json(chart_of(context, text, measure, size))


@router.get("/jobs", tags=["audits"])
def jobs(context: Given) -> list[dict[str, Any]]:
    """The queue of audits, the newest first."""
    return [job.to_json() for job in context.queue.jobs()]


@router.post("/jobs", tags=["audits"], status_code=201)
@check_first(PageContext.check_starts)
def begin(context: Given, wish: Wish) -> dict[str, Any]:
    """Start an audit of a path below the folders served, or of a Hugging Face id."""
    return start(context, wish).to_json()


@router.get("/topics", tags=["help"])
def all_topics() -> list[dict[str, str]]:
    """Everything that is explained."""
    return [{"name": one.name, "kind": one.kind, "title": one.title} for one in topics().values()]


@router.get("/topics/{name}", tags=["help"])
def one_topic(name: str) -> dict[str, Any]:
    """What a chart, a metric, a rule or an alarm means."""
    explained = topic(name)
    return {"name": explained.name, "kind": explained.kind, "title": explained.title, "summary": explained.summary,
            "parts": {heading: list(lines) for heading, lines in explained.parts}}  # fmt: skip


@router.get("/themes", tags=["charts"])
def themes() -> Response:
    """Colours by meaning, light and dark, and the Vega-Lite config of every chart."""
    return _json(figures.themes())


class Health(BaseModel):
    """That the server is there."""

    status: str = "ok"


@router.get("/health", tags=["health"])
def health() -> Health:
    """Whether the server answers."""
    return Health()


def _marks(history: History, run: str) -> Marks:
    return [(one.alarm.step, one.alarm.rule, one.alarm.severity) for one in history.kept_alarms(run)]


def series_spec(history: History, run: str, metric: str) -> bytes:
    """A metric over time, by role."""
    lines, lost, fits = trusted_alone(history, run, history.series(run, [metric]))
    marks = _marks(history, run)
    return encoded(lambda: series_chart(lines, metric, marks, TOKENS, (lost, fits)), titled=True)


def scalars_spec(history: History, run: str, look: Look, beside: Sequence[str] = ()) -> bytes:
    """Scalars of the whole model over time, other runs beside."""
    lines, marks = history.scalars(run), _marks(history, run)
    others = {name: history.scalars(name) for name in beside if name != run}
    return encoded(lambda: scalars_chart(lines, marks, TOKENS, look, others))
