"""Budgets of bits: what each choice takes, what is asked for, and what can be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tailwise.audits.audit import Audit
from tailwise.checkpoints.bytesource import LocalFile
from tailwise.checkpoints.formats.gguf_header import read_gguf_header
from tailwise.checkpoints.within import stays_within
from tailwise.compression.choosing.bit_formats import FormatGroup
from tailwise.compression.choosing.knapsack import Matrix
from tailwise.compression.plans.bits import bits_per_weight, kept_bytes, kept_parameters, mean_bits
from tailwise.compression.plans.budget import Budget
from tailwise.compression.plans.candidates import Candidate
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import MALFORMED, TailwiseError, UsageError
from tailwise.core.storage import json_of, read_text
from tailwise.number_formats.ggml_blocks import BlockFormat
from tailwise.number_formats.ggml_types import GgmlFormat
from tailwise.number_formats.number_format import NumberFormat

_LINE, _PARTS = 90, 3  # characters about a tensor beside its name, and tensors that a packed weight becomes
NEAR = 1e-3  # how far below the budget, relative, is not worth a word


class OutOfReachError(UsageError):
    """A budget that no choice of the formats meets."""


def bits_table(
    groups: Sequence[FormatGroup], shapes: Mapping[str, tuple[int, ...]], formats: Sequence[NumberFormat]
) -> Matrix:
    """Stored bits, (groups, formats)."""
    return np.array(
        [
            [sum(item.n_params * bits_per_weight(chosen, shapes[item.tensor]) for item in group.members)
             for chosen in formats]
            for group in groups
        ]
    )  # fmt: skip


def budget_of(
    audit: Audit, budget: Budget | None, eligible: Sequence[Candidate], formats: Sequence[NumberFormat]
) -> float | None:
    """Bits of the planned tensors in all; None where the budget does not say them."""
    if budget is None or budget.unit == "rise":
        return None
    if budget.unit == "bits":
        return budget.amount * sum(item.n_params for item in eligible)
    names = [item.tensor for item in eligible]
    fixed = kept_bytes(audit, names) + header_bytes(audit, names, formats)
    if budget.amount <= fixed:
        raise OutOfReachError(
            f"{budget.amount:,} bytes cannot be met: what the plan leaves as it is takes {fixed:,}, headers counted",
            fix="give more, or also plan for the embeddings and the head: --also embed,lm_head",
        )
    return 8.0 * (budget.amount - fixed)


def spent(audit: Audit, plan: Plan, nbytes: int | None, budget: float | None) -> dict[str, Any]:
    """What a plan says of its budget: bits asked and reached, and bytes."""
    reached = mean_bits(plan)
    fixed = kept_bytes(audit, [decision.tensor for decision in plan])
    spending = {
        "requested": round(reached if budget is None else budget / plan.n_params, 9),
        "achieved": round(reached, 9),
        "unit": "bits per weight",
        "parameters": plan.n_params,
        "bytes": round(reached * plan.n_params / 8),
        "kept_bytes": fixed,
        "model_parameters": plan.n_params + kept_parameters(audit, [decision.tensor for decision in plan]),
    }
    if nbytes is None:
        return spending
    formats = [item.treatment.cast.number_format for item in plan if item.treatment.cast is not None]
    headers = header_bytes(audit, [decision.tensor for decision in plan], formats)
    return spending | {"requested_bytes": nbytes, "header_bytes": headers}


def header_bytes(audit: Audit, planned: Sequence[str], formats: Sequence[NumberFormat] = ()) -> int:
    """What a packed file says of its tensors, at most: a line for each, and for codes, scales and shape of a planned
    one; an estimate, since names and numbers differ between layouts. Of a GGUF file that is at hand, its own header:
    the tokenizer is in it, and a file that is made of it says hardly more. Formats of llama.cpp make a GGUF file, which
    has the tokenizer of the folder in it.
    """
    own = _gguf_header(audit)
    if own is not None:
        return own
    if any(isinstance(item, GgmlFormat | BlockFormat) for item in formats):
        tokenizer = Path(audit.model).expanduser() / "tokenizer.json"
        return len(planned) * (_LINE + _ALIGNED) + 4 * _MORE + _vocabulary_bytes(tokenizer)
    named = set(planned)
    stored = {name for row in audit.rows for name in row.tensors or (row.name,)} | named
    return sum((len(name) + _LINE) * (_PARTS if name in named else 1) for name in stored)


_MOST_VOCABULARY = 1 << 28  # bytes of a tokenizer.json
_MORE = 2048  # characters of what a file that is made of another says beside it
_ALIGNED = 32  # bytes, on which every tensor begins


def _vocabulary_bytes(file: Path) -> int:
    """Of a tokenizer.json and the template beside it, in a GGUF file; 0 where there is none."""
    template = file.with_name("chat_template.jinja")
    if not (file.is_file() and stays_within(file.parent, file)):
        return 0
    return _texts_of(file, file.stat().st_mtime_ns) + (template.stat().st_size if template.is_file() else 0)


@lru_cache(maxsize=8)
def _texts_of(file: Path, _changed: int) -> int:
    """Tokens and merges with their lengths, a score and a type each token; a search asks for it with every plan."""
    try:
        model = json_of(read_text(file, most=_MOST_VOCABULARY))["model"]
        tokens = [item if isinstance(item, str) else item[0] for item in model["vocab"]]
        merges = [item if isinstance(item, str) else " ".join(item) for item in model.get("merges") or ()]
        texts = sum(len(item.encode("utf-8", "surrogatepass")) + 8 for item in (*tokens, *merges))
    except (*MALFORMED, OSError, TailwiseError):  # another kind of tokenizer, or none
        return 0
    return texts + 8 * len(tokens)


def _gguf_header(audit: Audit) -> int | None:
    """Bytes of a GGUF file, of one part, that are no tensor, with room between them; None where it is not at hand."""
    if audit.provenance.format != "gguf":
        return None
    path = Path(audit.model).expanduser()
    files = [path] if path.is_file() else sorted(path.glob("*.gguf")) if path.is_dir() else []
    if len(files) != 1:
        return None
    with closing(LocalFile(files[0])) as source:
        tensors = read_gguf_header(source).tensors
    first = min((tensor.offset for tensor in tensors), default=0)
    return first + _MORE + _ALIGNED * len(tensors)
