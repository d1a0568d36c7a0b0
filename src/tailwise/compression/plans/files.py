"""Plans on disk: JSON or YAML, entries keyed by the tensor's name, made to be read and edited."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tailwise.compression.operators.registered import OPERATORS
from tailwise.compression.plans.checks import validate
from tailwise.compression.plans.decision import Decision, entry
from tailwise.compression.plans.documents import from_json, from_yaml
from tailwise.compression.plans.entries import Entries
from tailwise.compression.plans.patterns import EXPERTS, UNSTRUCTURED
from tailwise.core.atomic import write_whole
from tailwise.core.errors import UnreadableError, UsageError, unknown_name
from tailwise.core.harmless import LONGEST_TEXT
from tailwise.core.storage import get, is_text, is_url, read_text
from tailwise.core.uncollected import without_collections
from tailwise.core.yaml_text import yaml_package

P = TypeVar("P", bound=Entries)

FORMAT = 1
SUFFIXES = (".json", ".yaml", ".yml")
_VERSION = "tailwise_plan"
_HEAD = ("kind", "operator", "allocator", "settings", "model", "fingerprint", "budget", "notes", "tried")
_ENTRY = ("matrix", "role", "block", "shape", "parameters", "sparsity", "pattern", "experts", "rank", "format",
          "metrics",           "reason")  # fmt: skip


def save(plan: Entries, path: str | Path) -> Path | str:
    """Write what the suffix of `path` says; the file appears whole or not at all."""
    check_suffix(path)
    text = to_yaml(plan) if Path(path).suffix != ".json" else to_text(plan)
    return write_whole(path, text.encode())


def check_suffix(path: str | Path) -> None:
    """`UsageError` where the suffix names no format of plans."""
    if Path(path).suffix not in SUFFIXES:
        raise UsageError("the suffix is not known", where=path, fix=f"choose one of {', '.join(SUFFIXES)}")


def to_text(plan: Entries) -> str:
    """The plan as JSON."""
    return json.dumps(to_document(plan), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_yaml(plan: Entries) -> str:
    """The plan as YAML."""
    text: str = yaml_package().safe_dump(
        to_document(plan), sort_keys=False, allow_unicode=True, width=120, default_flow_style=None
    )
    return text


def to_document(plan: Entries) -> dict[str, Any]:
    """Plain JSON types."""
    head = {name: getattr(plan, name) for name in _HEAD}
    head |= {name: dict(head[name]) for name in ("settings", "budget")}
    head |= {"notes": list(plan.notes), "tried": [dict(item) for item in plan.tried]}
    entries = {decision.tensor: _entry(decision) for decision in plan}
    return {_VERSION: FORMAT, **{name: value for name, value in head.items() if value != []}, "entries": entries}


def _entry(decision: Decision) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "matrix": decision.matrix,
        "role": decision.role,
        "block": decision.block,
        "shape": list(decision.shape),
        "parameters": decision.n_params,
        "sparsity": decision.sparsity,
        "pattern": decision.pattern,
        "experts": list(decision.experts),
        "rank": decision.rank,
        "format": decision.format,
        "metrics": dict(decision.metrics),
        "reason": decision.reason,
    }
    if decision.sparsity is None:  # a quantization plan
        del entry["pattern"]
    optional = ("shape", "sparsity", "experts", "rank", "format", "metrics")
    return {name: value for name, value in entry.items() if name not in optional or value not in (None, [], {})}


def load(path: str | Path, of: type[P]) -> P:
    """Read a plan and check it; `of` is `Plan`.

    A plan made without clamping is shown as it is: `Plan.validate` says that it cannot be applied.
    """
    source = Path(path)
    try:
        # Editors on Windows begin a file with a mark.
        text = get(str(path)).decode("utf-8-sig") if is_url(path) else read_text(source, "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        detail = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UnreadableError(f"is not a readable plan ({detail})", where=source) from error
    check_suffix(source)
    with without_collections():
        document = from_json(text, source) if source.suffix == ".json" else from_yaml(text, source)
        del text
        plan = from_document(document, of, source)
        if plan.settings.get("clamp") is not False:
            try:
                validate(plan)
            except UsageError as error:
                raise UsageError(error.what, where=source, fix=error.fix) from None
        return plan


def from_document(document: Any, of: type[P], where: object = None) -> P:
    """The plan that a JSON or YAML document holds."""
    _check_text(document, where)
    if not isinstance(document, Mapping) or _VERSION not in document:
        raise UsageError("is no plan", where=where, fix=f"a plan begins with {_VERSION}; see `tailwise plan prune`")
    if document[_VERSION] != FORMAT:
        raise UnreadableError(
            f"is a plan of format {str(document[_VERSION])[:40]}; this tailwise reads {FORMAT}",
            where=where,
            fix="update tailwise",
        )
    _known(document, (_VERSION, *_HEAD, "entries"), where)
    entries = document.get("entries")
    if not isinstance(entries, Mapping) or not entries:
        raise UsageError("has no entries", where=where, fix="entries: {tensor name: {sparsity: …}}")
    types: Mapping[str, type | tuple[type, ...]] = {
        "kind": str, "operator": str, "allocator": str, "model": str, "fingerprint": str,
        "settings": Mapping, "budget": Mapping, "notes": Sequence, "tried": Sequence,
    }  # fmt: skip
    for name, kind in types.items():
        if name in document and not isinstance(document[name], kind):
            raise UsageError(f"{name} is {document[name]!r}", where=where, fix="leave it as tailwise wrote it")
    _check_plain(document, where)
    _check_lengths({name: document.get(name) for name, kind in types.items() if kind is str}, where)
    for name in ("kind", "operator"):
        if name not in document:
            raise UsageError(f"has no {name}", where=where, fix=f"{name}: {'prune' if name == 'kind' else 'wanda'}")
    units = _takes_units(document["operator"])
    return of(
        kind=document["kind"],
        operator=document["operator"],
        allocator=document.get("allocator", ""),
        model=document.get("model", ""),
        fingerprint=document.get("fingerprint", ""),
        budget=_named_anew(document.get("budget", {})),
        decisions=tuple(_decision(str(tensor), fields, where, units) for tensor, fields in entries.items()),
        settings=dict(document.get("settings", {})),
        tried=tuple(document.get("tried", ())),
        notes=tuple(document.get("notes", ())),
    )


#: Keys of a budget as version 0.1 wrote them.
_OF_0_1 = {
    "asked": "requested",
    "reached": "achieved",
    "asked_bytes": "requested_bytes",
    "asked_rise": "requested_rise",
}


def _named_anew(budget: Mapping[str, Any]) -> dict[str, Any]:
    """A budget, or those of pruning and quantizing, by the names of today."""
    return {
        _OF_0_1.get(name, name): _named_anew(value) if isinstance(value, Mapping) else value
        for name, value in budget.items()
    }


def _check_text(document: Any, where: object) -> None:
    try:
        whole = is_text(document)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"is no plan ({str(error)[:100]})", where=where) from error
    if not whole:
        raise UsageError(
            "has half a character in a text, such as \\ud800", where=where, fix="write it out, or leave it out"
        )


def _check_plain(document: Mapping[str, Any], where: object) -> None:
    """`UsageError` where what only people read would not go into a file again."""
    for name, item in (("notes", str), ("tried", Mapping)):
        items = document.get(name, ())
        if isinstance(items, str) or not all(isinstance(value, item) for value in items):
            raise UsageError(f"{name} is {items!r}", where=where, fix="leave it as tailwise wrote it")
    for name in ("settings", "budget", "tried"):
        try:
            json.dumps(document.get(name), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(
                f"{name} holds other things than text and finite numbers ({error})",
                where=where,
                fix="leave it as tailwise wrote it",
            ) from error


def _check_lengths(fields: Mapping[str, Any], where: object) -> None:
    for name, value in fields.items():
        if isinstance(value, str) and len(value) > LONGEST_TEXT:
            raise UsageError(
                f"{name} is a text of {len(value)} signs", where=where, fix="leave it as tailwise wrote it"
            )


def _takes_units(operator: str) -> bool:
    """Whether an operator takes heads and neurons out, and not single entries."""
    return operator in OPERATORS and OPERATORS[operator].work is None


def _decision(tensor: str, fields: Any, where: object, units: bool) -> Decision:
    _check_lengths({"the name of a tensor": tensor}, where)
    place = tensor if where is None else f"{where}: {tensor}"
    if not isinstance(fields, Mapping):
        raise UsageError(f"is {fields!r}", where=place, fix="give the fields of an entry, such as sparsity: 0.7")
    _known(fields, _ENTRY, place)
    _check_lengths(fields, place)
    if "parameters" not in fields:
        raise UsageError("has no parameters", where=place, fix="parameters: the number of entries of the tensor")
    shape = fields.get("shape", ())
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise UsageError(f"shape is {shape!r}", where=place, fix="shape: [rows, cols]")
    metrics = fields.get("metrics", {})
    if not isinstance(metrics, Mapping):
        raise UsageError(f"metrics is {metrics!r}", where=place, fix="metrics: {name: number}")
    pattern = fields.get("pattern", UNSTRUCTURED)
    if "experts" in fields and pattern != EXPERTS:
        raise UsageError(f"lists experts that go, and its pattern is {pattern}", where=place, fix=f"pattern: {EXPERTS}")
    return entry(
        tensor,
        fields.get("matrix", tensor.removesuffix(".weight")),
        fields.get("role", "other"),
        fields.get("block"),
        fields["parameters"],
        units=units,
        shape=shape,
        sparsity=fields.get("sparsity"),
        pattern=pattern,
        experts=fields.get("experts", ()),
        rank=fields.get("rank"),
        format=fields.get("format"),
        metrics=dict(metrics),
        reason=fields.get("reason", ""),
    )


def _known(given: Mapping[Any, Any], known: Sequence[str], where: object) -> None:
    for name in given:
        if name not in known:
            error = unknown_name("field", str(name), known)
            raise UsageError(error.what, where=where, fix=error.fix)
