"""Which matrices words mean: "layer 12", "block 3 mlp up", or a name nearly right."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tailwise.audits.audit import Audit
from tailwise.audits.rows import LayerRow
from tailwise.core.errors import near_names

_BLOCK = re.compile(r"\b(?:layers?|blocks?|blk|h)[\s._#]{0,4}(?:no\.?|number)?\s{0,4}(\d{1,5})\b", re.IGNORECASE)
_MOST_NAMED = 5  # words of a question that near names are looked for
_WORD = re.compile(r"[a-z0-9_]+")
#: Words that people use → a part of the role's name. Order does not matter: every match narrows.
_WORDS = {
    "q": ("attn_q", "attn_qkv"), "query": ("attn_q", "attn_qkv"), "queries": ("attn_q", "attn_qkv"),
    "q_proj": ("attn_q",), "k": ("attn_k", "attn_qkv", "attn_kv"), "key": ("attn_k", "attn_qkv", "attn_kv"),
    "keys": ("attn_k", "attn_qkv", "attn_kv"), "k_proj": ("attn_k",), "v": ("attn_v", "attn_qkv", "attn_kv"),
    "value": ("attn_v", "attn_qkv", "attn_kv"), "values": ("attn_v", "attn_qkv", "attn_kv"), "v_proj": ("attn_v",),
    "o": ("attn_o",), "o_proj": ("attn_o",), "qkv": ("attn_qkv",), "gate": ("mlp_gate", "expert_gate", "mlp_gate_up"),
    "gate_proj": ("mlp_gate",), "up": ("mlp_up", "expert_up", "mlp_gate_up"), "up_proj": ("mlp_up",),
    "down": ("mlp_down", "expert_down"), "down_proj": ("mlp_down",), "embedding": ("embed",), "embeddings": ("embed",),
    "embed": ("embed",), "head": ("lm_head",), "lm_head": ("lm_head",), "unembedding": ("lm_head",),
    "router": ("router",), "routers": ("router",),
}  # fmt: skip
_FAMILIES = {"attention": "attn_", "attn": "attn_", "mlp": "mlp_", "ffn": "mlp_", "feedforward": "mlp_",
             "expert": "expert_", "experts": "expert_", "conv": "conv", "convolution": "conv"}  # fmt: skip


@dataclass(frozen=True)
class Meant:
    """The matrices that were meant, and in which words."""

    rows: tuple[LayerRow, ...] = ()
    words: str = ""  # "block 3, mlp_up"
    trouble: str = ""  # why there are none, where some were asked for


def meant_in(question: str, audit: Audit) -> Meant:
    """What a question means; without rows and without trouble it names no layer."""
    exact = _named(question, audit)
    if exact is not None:
        return Meant((exact,), exact.name)
    block, roles = _block_in(question), _roles_in(question, audit)
    if block is None and not roles:
        return _nearly(question, audit)
    rows = [row for row in audit.rows if block is None or row.block == block]
    if block is not None and not rows:
        return Meant(trouble=_no_block(block, audit))
    rows = [row for row in rows if not roles or row.role in roles]
    words = ", ".join(filter(None, ["" if block is None else f"block {block}", " and ".join(sorted(roles))]))
    if not rows:
        return Meant(trouble=f"Block {block} has no {' or '.join(sorted(roles))}.")
    return Meant(tuple(rows), words)


def _named(question: str, audit: Audit) -> LayerRow | None:
    """The longest full name that the question holds."""
    named_rows = [row for row in audit.rows if len(row.name) > 2 and _holds(question, row.name)]
    return max(named_rows, key=lambda row: len(row.name), default=None)


def _holds(text: str, name: str) -> bool:
    start = text.find(name)
    if start < 0:
        return False
    before, after = text[:start][-1:], text[start + len(name) :][:1]
    return not (before.isalnum() or before in "._-") and not (after.isalnum() or after == "_")


def _block_in(question: str) -> int | None:
    match = _BLOCK.search(question)
    return int(match[1]) if match else None


def _roles_in(question: str, audit: Audit) -> set[str]:
    present = {row.role for row in audit.rows}
    words = set(_WORD.findall(question.lower()))
    exact = words & present
    if exact:
        return exact
    # Single letters and "up" are words of their own; without a block or a family beside them they mean nothing.
    family = {part for word, part in _FAMILIES.items() if word in words}
    anchored = bool(family) or _block_in(question) is not None
    parts = {
        role for word, roles in _WORDS.items() if word in words and (anchored or len(word) > 4 or "_" in word)
        for role in roles
    }  # fmt: skip
    if "output" in words and "attn_" in family:
        parts.add("attn_o")
    narrow = {role for role in present if role in parts and (not family or role.startswith(tuple(family)))}
    return narrow or {role for role in present if family and role.startswith(tuple(family))}


def _no_block(block: int, audit: Audit) -> str:
    blocks = sorted({row.block for row in audit.rows if row.block is not None})
    have = f"its blocks are {blocks[0]} to {blocks[-1]}" if blocks else "none of its matrices has a block number"
    return f"This model has no block {block}; {have}."


def _nearly(question: str, audit: Audit) -> Meant:
    """A dotted name that is nearly one of the audit's."""
    dotted = dict.fromkeys(word for word in re.split(r"[^\w/#.-]+", question) if "." in word.strip("."))
    names = [row.name for row in audit.rows]
    for word in [word.strip(".") for word in dotted][:_MOST_NAMED]:
        ending = [
            row for row in audit.rows if row.name.endswith("." + word) or row.name == word.removesuffix(".weight")
        ]
        if len(ending) == 1:
            return Meant((ending[0],), ending[0].name)
        near = near_names(word, names, 3, 0.75)
        if near:
            return Meant(trouble=f"There is no layer named {word}; near names: {', '.join(near)}.")
    return Meant()


def names_of(rows: Iterable[LayerRow]) -> set[str]:
    """Their names."""
    return {row.name for row in rows}
