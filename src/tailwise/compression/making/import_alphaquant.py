"""A plan from AlphaQuant's files: its configuration of layers, or the plan that it expands to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tailwise.audits.audit import Audit
from tailwise.compression.plans.bits import kept_bytes, kept_parameters, mean_bits, shape_of
from tailwise.compression.plans.candidates import Candidate, TensorChoice, candidates
from tailwise.compression.plans.casting import Cast
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.phrasing import listed
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.storage import is_text, json_of, read_text
from tailwise.core.typed import is_finite

_MX_GROUP = 32
_INTEGERS = ("int2", "int3", "int4", "int8")
_TAKES = "mxfp4, mxfp6, mxfp8, int2, int3, int4, int8 and bf16"


@dataclass(frozen=True)
class _Scheme:
    fields: Mapping[str, Any]
    origin: str  # where it comes from, in words


def alphaquant_plan(path: str | Path, audit: Audit) -> Plan:
    """The plan that a file of AlphaQuant asks for on the model of `audit`.

    A configuration has globs, of which the last that matches a name wins, field by field. `UsageError` for a glob or
    a name that no linear layer has, and for a scheme that tailwise has not. What is skipped gets no entry.
    """
    document = _read(path)
    layers = {item.tensor.removesuffix(".weight"): item for item in _linear_layers(audit)}
    expanded = not ({"default", "overrides"} & set(document))
    schemes = _listed(document, path, layers) if expanded else _resolved(document, path, layers)
    wrong: dict[str, list[str]] = {}
    decisions = []
    for layer, scheme in schemes.items():
        if scheme.fields.get("skip"):
            continue
        chosen = _format(scheme.fields)
        if chosen is None:
            wrong.setdefault(str(scheme.fields.get("wq")), []).append(layer)
        else:
            decisions.append(_decision(layers[layer], chosen, scheme, audit))
    if wrong:
        told = "; ".join(f"{name} of {listed(names)}" for name, names in wrong.items())
        raise UsageError(f"asks for schemes that tailwise has not: {told}", where=path, fix=f"use {_TAKES}")
    if not decisions:
        raise UsageError("quantizes nothing", where=path, fix="take `skip` out of the layers that are to be quantized")
    return _plan(audit, tuple(decisions), _notes(schemes.values()))


def _read(path: str | Path) -> Mapping[str, Any]:
    try:
        document = json_of(read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        detail = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UnreadableError(f"is not readable ({detail})", where=path) from error
    except json.JSONDecodeError as error:
        raise UsageError(f"is no JSON: {error.msg}", where=f"{path}, line {error.lineno}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"is no file of AlphaQuant ({str(error)[:100]})", where=path) from error
    if not isinstance(document, dict) or not document:
        raise UsageError("is no file of AlphaQuant", where=path, fix='give {"default": …, "overrides": […]}')
    if not is_text(document):
        raise UsageError("has half a character in a text, such as \\ud800", where=path, fix="leave it out")
    if "tailwise_plan" in document:
        raise UsageError("is a plan of tailwise already", where=path, fix="use it as it is")
    return document


def _linear_layers(audit: Audit) -> tuple[Candidate, ...]:
    """AlphaQuant looks at every linear layer, the head and the routers among them."""
    roles = {row.role for row in audit.rows if row.measured and row.kind == "dense"}
    eligible, _ = candidates(audit, TensorChoice(also=tuple(sorted(roles))), None)
    return tuple(
        item
        for item in eligible
        if item.tensor.endswith(".weight")
        and (item.kind == "dense" or (item.kind == "expert" and len(item.parts) == 1))
        and shape_of(item, audit.provenance.config)
    )


def _resolved(document: Mapping[str, Any], path: object, layers: Mapping[str, Candidate]) -> dict[str, _Scheme]:
    default, overrides = document.get("default", {}), document.get("overrides", [])
    if not isinstance(default, dict):
        raise UsageError("default is no object", where=path, fix='"default": {"wq": "mxfp8", …}')
    if not isinstance(overrides, list) or not all(
        isinstance(item, dict) and isinstance(item.get("pattern"), str) for item in overrides
    ):
        raise UsageError("overrides is no list of objects with a pattern", where=path)
    schemes = {layer: _Scheme(default, "the default") for layer in layers}
    unmatched = []
    for override in overrides:
        pattern = override["pattern"]
        matched = [layer for layer in layers if fnmatchcase(layer, pattern)]
        if not matched:
            unmatched.append(pattern)
        fields = {name: value for name, value in override.items() if name != "pattern"}
        for layer in matched:
            schemes[layer] = _Scheme({**schemes[layer].fields, **fields}, f"the override {pattern}")
    if unmatched:
        raise UsageError(
            f"no linear layer matches {listed(unmatched)}",
            where=path,
            fix=_names_are(layers),
        )
    return schemes


def _listed(document: Mapping[str, Any], path: object, layers: Mapping[str, Candidate]) -> dict[str, _Scheme]:
    strange = [name for name, fields in document.items() if not isinstance(fields, dict)]
    if strange:
        raise UsageError(f"is no file of AlphaQuant: {listed(strange)} holds no scheme", where=path)
    unknown = [name for name in document if name not in layers]
    if unknown:
        raise UsageError(
            f"the model has no linear layer {listed(unknown)}",
            where=path,
            fix=_names_are(layers),
        )
    return {name: _Scheme(fields, "AlphaQuant's plan") for name, fields in document.items()}


def _names_are(layers: Mapping[str, Candidate]) -> str:
    example = next((layer for layer, item in layers.items() if item.block is not None), next(iter(layers)))
    return f"names are such as {example}; was it made for another model?"


def _format(fields: Mapping[str, Any]) -> str | None:
    wanted = str(fields.get("wq", "bf16"))
    if wanted in ("bf16", "mxfp4", "mxfp8"):
        return wanted
    if wanted == "mxfp6":
        extra = fields.get("extra")
        return "mxfp6" if isinstance(extra, Mapping) and extra.get("format") == "e2m3" else "mxfp6-e3m2"
    if wanted in _INTEGERS:
        group = fields.get("group_size", _MX_GROUP)
        return f"{wanted}-g{group}" if isinstance(group, int) and group > 0 else f"{wanted}-channel"
    return None


def _decision(item: Candidate, chosen: str, scheme: _Scheme, audit: Audit) -> Decision:
    alpha = scheme.fields.get("alpha_hill")
    return Decision(
        replace(item.site, shape=shape_of(item, audit.provenance.config)),
        Cast(chosen),
        metrics={"alpha_hill": float(alpha)} if is_finite(alpha) else {},
        reason=scheme.origin,
    )


def _plan(audit: Audit, decisions: tuple[Decision, ...], notes: tuple[str, ...]) -> Plan:
    reached = mean_bits(decisions)
    parameters = sum(decision.n_params for decision in decisions)
    plan = Plan(
        kind="quantize",
        operator="rtn",
        allocator="alphaquant",
        model=audit.model,
        fingerprint=audit.provenance.fingerprint,
        budget={
            "requested": round(reached, 9),
            "achieved": round(reached, 9),
            "unit": "bits per weight",
            "parameters": parameters,
            "bytes": round(reached * parameters / 8),
            "kept_bytes": kept_bytes(audit, [decision.tensor for decision in decisions]),
            "model_parameters": parameters + kept_parameters(audit, [decision.tensor for decision in decisions]),
        },
        decisions=decisions,
    )
    return plan.replace(notes=(*notes, *plan.validate()))


def _notes(schemes: Iterable[_Scheme]) -> tuple[str, ...]:
    used = [scheme.fields for scheme in schemes if not scheme.fields.get("skip")]
    notes = []
    if activations := sorted({str(fields.get("aq")) for fields in used} - {"bf16", "None"}):
        notes.append(f"activations in {', '.join(activations)} are no part of a plan")
    groups = {str(fields.get("group_size", _MX_GROUP)) for fields in used if str(fields.get("wq")).startswith("mxfp")}
    if others := sorted(groups - {str(_MX_GROUP)}):
        notes.append(f"MX formats have groups of {_MX_GROUP}; group_size {', '.join(others)} is not kept")
    return tuple(notes)
