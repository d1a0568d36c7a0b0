"""Whether a checkpoint holds the very weights that an audit measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from tailwise.audits.cache import Cache, key_of
from tailwise.audits.prepare import Selection, prepare
from tailwise.audits.work import HashedMatrix
from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.matrices import MatrixSource, load
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import UsageError
from tailwise.core.recipe import ConvMode, Recipe, RunOptions

_MODES: tuple[ConvMode, ...] = ("flatten", "slices", "pooled")


def check_own(plan: Plan, checkpoint: Checkpoint, *, force: bool) -> None:
    """`UsageError` where the plan was made from other weights than those of `checkpoint`; with `force`, nothing."""
    if not plan.fingerprint or force:
        return
    audited = plan.settings.get("audited")
    try:
        own = has_fingerprint(checkpoint, plan.fingerprint, audited)
    except (TypeError, AttributeError) as error:
        fix = "leave it as tailwise wrote it"
        raise UsageError(f"the setting audited is {audited!r}", where=checkpoint.uri, fix=fix) from error
    if not own:
        raise UsageError(
            "its weights are others than those that the plan was made from",
            where=checkpoint.uri,
            fix="audit and plan again, or apply it all the same with --force",
        )


def has_fingerprint(checkpoint: Checkpoint, wanted: str, audited: Mapping[str, Any] | None = None) -> bool:
    """Whether an audit of `checkpoint` would have the fingerprint `wanted`.

    `audited` is what a plan keeps of an audit of a part (`audited_part`): by default it was of all. Reads every
    matrix once, but for those that an earlier audit of the same unchanged files has hashed.
    """
    cache, part = Cache.of(RunOptions()), audited or {}
    left, least = set(part.get("not_measured", ())), part.get("min_evals", Recipe().min_evals)
    selection = Selection(part.get("layers"), tuple(part.get("roles", ())))
    for mode in _MODES:
        matrices = prepare(checkpoint, Recipe(conv=mode, min_evals=least), selection=selection).sources
        sources = tuple(source for source in matrices if source.name not in left)
        if _fingerprint(checkpoint, sources, cache) == wanted:
            return True
        if not any(source.kind == "conv" for source in sources):
            return False
    return False


def _fingerprint(checkpoint: Checkpoint, sources: tuple[MatrixSource, ...], cache: Cache) -> str:
    lines = (f"{source.name} {_digest(checkpoint, source, cache)}" for source in sorted(sources, key=lambda s: s.name))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _digest(checkpoint: Checkpoint, source: MatrixSource, cache: Cache) -> str:
    parts = [checkpoint.identity(name) for name in source.tensors]
    key = key_of("identity", parts, repr(source)) if parts and None not in parts else None
    known = cache.note("digests", key) if key else None
    if not isinstance(known, list):
        known = [HashedMatrix(matrix, hold=False).digest for matrix in load(source, checkpoint)]
        if key:
            cache.keep_note("digests", key, known)
    return str(known[0]) if len(known) == 1 else hashlib.sha256("".join(map(str, known)).encode()).hexdigest()
