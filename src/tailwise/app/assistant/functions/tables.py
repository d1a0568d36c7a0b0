"""The table of layers, filtered and sorted, as the app has it."""

from __future__ import annotations

import re

from tailwise.app.assistant.answer import Fact
from tailwise.app.assistant.charts import chart_of
from tailwise.app.assistant.functions.audits import AUDIT
from tailwise.app.assistant.functions.function import Place, function
from tailwise.app.workspace import links
from tailwise.app.workspace.layers import CONDITION, FACTS, Query, records, select
from tailwise.app.workspace.layers import columns as columns_of
from tailwise.core.errors import UsageError, unknown_name
from tailwise.spectrum.metrics.metric import METRICS

_MOST = 50
_MOST_LINKS = 5
_DEFAULT = "name,role,block,alpha,alpha_hill,stable_rank"
_HOW = "conditions and words that must all hold: alpha > 6 role:mlp_up block <= 3 findings:TW203 (: contains)"
_AND = re.compile(r" and | ?[,;] ?", re.IGNORECASE)
_TILDE = re.compile(r" ?~ ?")


@function(
    audit=AUDIT,
    columns=f"comma list of facts ({', '.join(FACTS)}) and metrics; {_DEFAULT} where it is left out",
    where=_HOW,
    sort="column to sort by",
    descending="true: the largest first",
    limit=f"rows, at most {_MOST}",
)
def query(  # noqa: PLR0913, PLR0917 - a table has as many
    place: Place, audit: str = "", columns: str = "", where: str = "", sort: str = "", descending: bool = False,
    limit: int = 20,
) -> Fact:  # fmt: skip
    """Look into the table of an audit's measured layers, with any columns, a filter and an order."""
    name = place.audit(audit)
    wanted = [part.strip() for part in (columns or _DEFAULT).split(",") if part.strip()]
    wanted = list(dict.fromkeys(["name", *wanted, *([sort] if sort else [])]))
    rows = records(place.workspace.audit(name), place.workspace.diagnosis(name))
    if "status" not in f"{where} {wanted}":
        rows = [row for row in rows if any(key not in FACTS for key in row)]
    _check(wanted, rows)
    text = filter_of(where)
    page = select(rows, Query(text, sort, descending, size=max(1, min(limit, _MOST))))
    shown = {
        key: value for key, value in {"q": text, "sort": sort, "down": "true" if descending else ""}.items() if value
    }
    return {
        "audit": name,
        "columns": wanted,
        "layers": [{column: row.get(column) for column in wanted} for row in page.records],
        "matching": page.total,
        "of": page.of,
        "links": [place.link("its layers", links.layers(name, **shown))]
        + [chart_of(name, column).to_json() for column in wanted if column in METRICS][:_MOST_LINKS]
        + [place.link(row["name"], links.layer(name, row["name"])) for row in page.records[:_MOST_LINKS]],
    }


def _check(wanted: list[str], rows: list[dict[str, object]]) -> None:
    known = columns_of(rows)
    for column in wanted:
        if column not in known:
            raise unknown_name("column in this audit", column, known)


def filter_of(where: str) -> str:
    """The filter as the table takes it; "and", commas and ~ are taken too, as models write them."""
    text = _TILDE.sub(":", _AND.sub(" ", " ".join(where.split()))).replace('"', "").replace("'", "").strip()
    if re.search(r"[<>=:]", CONDITION.sub(" ", " ".join(text.split()))):
        raise UsageError(f"{where[:60]!r} is not a filter", fix=_HOW)
    return text
