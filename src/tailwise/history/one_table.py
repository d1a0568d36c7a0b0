"""`table()`: the layers of several audits as one table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral

import pyarrow as pa

from tailwise.audits.audit import Audit, AuditLike
from tailwise.audits.table import Table
from tailwise.core.errors import UsageError
from tailwise.core.validation import checked
from tailwise.history.runs.found import step_of


@checked
def table(
    audits: AuditLike | Sequence[AuditLike] | Mapping[str, AuditLike] | Mapping[int, AuditLike],
    *,
    steps: Sequence[int | None] | None = None,
    unmeasured: bool = False,
) -> Table:
    """The layers of several audits as one table, with the columns `model` and `step` before those of an audit.

    Parameters
    ----------
    audits
        Audits or their paths, in a list; or by the names that `model` is to have.
    steps
        One for each audit. Without it, the step that the name of the model's folder or file says (`checkpoint-500`,
        `step_100`, `epoch-3`), or the whole number that is its name in a mapping; nothing where there is none.
    unmeasured
        Also what was not measured, as for `Audit.table`.

    A metric that one audit lacks is empty there.

    >>> import numpy as np, tailwise as tw
    >>> noise = np.random.default_rng(0)
    >>> given = {
    ...     name: tw.audit({"up.weight": noise.standard_normal((64, 48))}, use_cache=False)
    ...     for name in ("run/step-10", "run/step-20")
    ... }
    >>> joined = tw.table(given)
    >>> list(zip(joined["model"], joined["step"], joined["rows"]))
    [('run/step-10', 10, 64), ('run/step-20', 20, 64)]
    """
    parts = []
    for name, step, audit in listed(audits, steps):
        rows = audit.table(unmeasured=unmeasured).arrow
        model = pa.array([name] * rows.num_rows, pa.string())
        rows = rows.add_column(0, "step", pa.array([step] * rows.num_rows, pa.int64()))
        parts.append(rows.add_column(0, "model", model))
    return Table(pa.concat_tables(parts, promote_options="permissive"))


def listed(
    audits: AuditLike | Sequence[AuditLike] | Mapping[str, AuditLike] | Mapping[int, AuditLike],
    steps: Sequence[int | None] | None,
) -> list[tuple[str, int | None, Audit]]:
    """Names, steps and audits, as they are given."""
    if isinstance(audits, Mapping):
        found = [Audit.of(one) for one in audits.values()]
    elif isinstance(audits, Audit | str | os.PathLike) or not isinstance(audits, Iterable):
        found = [Audit.of(audits)]
    else:
        found = [Audit.of(one) for one in audits]
    names = [str(name) for name in audits] if isinstance(audits, Mapping) else [audit.model for audit in found]
    if not found:
        raise UsageError("there is no audit", fix="give one, or a list of them")
    if steps is not None and len(steps) != len(found):
        raise UsageError(f"{len(steps)} steps for {len(found)} audits", fix="give one for each audit, or None")
    keys = audits if isinstance(audits, Mapping) else names
    return list(zip(names, steps or [_step_of(key) for key in keys], found, strict=True))


def _step_of(name: object) -> int | None:
    """The step that a name says; a whole number is one."""
    if isinstance(name, Integral) and not isinstance(name, bool):
        return int(name)
    return step_of(str(name).rstrip("/").rpartition("/")[2])
