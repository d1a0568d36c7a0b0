"""What there is."""

from __future__ import annotations

from tailwise.app.assistant.answer import Fact
from tailwise.app.assistant.functions.function import Place, function
from tailwise.app.workspace import links
from tailwise.core.errors import TailwiseError

_MOST = 60


@function(kind="audits, plans or runs; all of them where it is left out")
def list_(place: Place, kind: str = "") -> Fact:
    """List the audits, compression plans and training runs that can be asked about, the newest first."""
    listed: Fact = {"on_screen": {key: value for key, value in vars(place.screen).items() if value}}
    pages = []
    if kind in ("", "audits", "audit"):
        entries = place.workspace.entries("audit")
        listed["audits"] = [{"audit": item.id, "title": item.title} for item in entries[:_MOST]]
        listed["audits_in_all"] = len(entries)
        pages.append(place.link("all models", links.models()))
    if kind in ("", "plans", "plan"):
        entries = place.workspace.entries("plan")
        listed["plans"] = [{"plan": item.id, "title": item.title} for item in entries[:_MOST]]
        listed["plans_in_all"] = len(entries)
        pages.append(place.link("all plans", links.plans()))
    if kind in ("", "runs", "run"):
        listed |= _runs(place)
        pages.append(place.link("all runs", links.training()))
    return {**listed, "links": pages}


def _runs(place: Place) -> Fact:
    if place.workspace.store is None:
        return {"runs": [], "runs_note": "no store of training runs was given"}
    try:
        runs = place.workspace.history.runs()
    except TailwiseError as error:
        return {"runs": [], "runs_note": error.what}
    return {"runs": [run.to_json() for run in runs[:_MOST]], "runs_in_all": len(runs)}
