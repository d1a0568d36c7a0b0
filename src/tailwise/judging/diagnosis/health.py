"""Broken weights: what needs no statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tailwise.audits.rows import LayerRow
from tailwise.judging.diagnosis.case import Case, has, value
from tailwise.judging.diagnosis.finding import Evidence, Severity
from tailwise.judging.diagnosis.rule import Cannot, Partly, RuleHit, Verdict, by_severity, rule
from tailwise.judging.diagnosis.wording import count, evals, named, quantized, verb
from tailwise.spectrum.metrics.norms_ranks import matrix_rank

_UNREAD = ("UNREADABLE", "FAILED")
_UNKNOWN = ("UNSUPPORTED",)


@rule(
    "TW601",
    title="not finite",
    says=("has NaN or infinite entries", "have NaN or infinite entries"),
    severity="error",
    strength="theory",
    causes=("training diverged", "an overflow in half precision, or a damaged file"),
    remedies=("go back to the last finite checkpoint, lower the learning rate, clip gradients", "check the file"),
    functions=("AdaptiveClip",),
    references=("IEEE 754",),
)
def not_finite(case: Case) -> Verdict:
    """A matrix has NaN or infinite entries."""
    hit = [row for row in case.rows if row.status == "NOT_FINITE"]
    return _by_status(case, hit, "has NaN or infinite entries", "have NaN or infinite entries")


@rule(
    "TW602",
    title="dead rows or columns",
    says=("has rows or columns of zeros", "have rows or columns of zeros"),
    severity="warning",
    strength="theory",
    needs=("rank_loss",),
    causes=("units that never fire and have decayed to zero", "structured pruning", "padding of a dimension"),
    remedies=("remove the dead units", "if they died in training: lower learning rate, less weight decay"),
    functions=("reinitialize_dead_layers",),
    references=("Lu et al. 2020, Dying ReLU and Initialization, arXiv:1903.06733",),
)
def dead_directions(case: Case) -> Verdict:
    """Rows or columns of zeros were seen, and take directions from the matrix (of one, it is only noted). On the long
    side of a matrix they do so
    only where fewer than its short side are left.

    Eigenvalues of zero without such rows are a loss of rank, which TW603 and TW301 report.
    """
    unseen = tuple(row.name for row in case.measured if case.spectra[row.name].zero_vectors is None)
    if case.measured and len(unseen) == len(case.measured):
        return Cannot("the audit is older than the count of zero rows, or of factors; audit again")
    dead = {row.name: case.spectra[row.name].zero_vectors or 0 for row in case.measured}
    # An adapter's change has few directions by design; only one of none at all is dead.
    rows = [row for row in case.measured if dead[row.name] >= (evals(row) if row.kind == "lora" else 1)]
    hit = sorted(rows, key=lambda row: dead[row.name], reverse=True)
    left = {"zero rows were not counted when it was measured": unseen}
    if not hit:
        return Partly(None, left)
    evidence = tuple(
        Evidence(row.name, "rank_loss", float(dead[row.name]), 0.0, _dead_in_words(row, dead[row.name])) for row in hit
    )
    few = [row for row in hit if dead[row.name] <= max(1.0, case.limit("dead_share") * evals(row))]
    few = [row for row in few if dead[row.name] < evals(row)]
    rare = {row.name for row in few}
    found = tuple(
        RuleHit(
            f"{named(rows)} {verb(len(rows), 'has', 'have')} rows or columns that are zero throughout.",
            tuple(item for item in evidence if (item.layer in rare) == (severity == "info")),
            severity,
        )
        for rows, severity in by_severity([row for row in hit if row.name not in rare], few)
    )
    return Partly(found, left)


def _dead(case: Case, row: LayerRow) -> int:
    """Zero rows that were seen."""
    return case.spectra[row.name].zero_vectors or 0


def _exactly_lost(case: Case, row: LayerRow) -> int:
    """Directions that are zero to float64's ε though no row or column is."""
    return evals(row) - int(matrix_rank(case.spectra[row.name])) - _dead(case, row)


def _dead_in_words(row: LayerRow, dead: int) -> str:
    if dead == evals(row):
        return f"all {dead} directions are zero: the matrix is zero"
    side = "rows" if row.rows < row.cols else "columns" if row.cols < row.rows else "rows or columns"
    return f"{dead} of {evals(row)} directions are taken by {side} of zeros"


@rule(
    "TW603",
    title="rank loss",
    says=("lacks full rank", "lack full rank"),
    severity="warning",
    strength="theory",
    needs=("rank_loss",),
    causes=(
        "rows that are copies or combinations of others, as in a collapsed head",
        "a fine-tune whose few directions drown all others: TW301 then names the layer too",
        "a low-rank factorisation: then it is meant",
    ),
    remedies=(
        "look for equal rows and heads; re-initialise and train them, or remove them",
        "where TW301 names the layer too, what TW301 says comes first",
        "if the layer was made of low rank, mute this rule for it",
    ),
    functions=("reinitialize_dead_layers",),
    references=("Golub & Van Loan 2013, §5.4",),
)
def rank_loss(case: Case) -> Verdict:
    """Directions carry nothing: their eigenvalues are zero to working precision, or many are below what rounding to
    the stored type leaves. What coarse codes hide, a single direction, and what rows or columns of next to nothing
    take in convolutions are noted.
    """
    rows = [row for row in case.measured if has(row, "rank_loss") and row.kind != "lora"]
    lost = {row.name: _lost(case, row) for row in rows}
    hit = sorted((row for row in rows if lost[row.name] > 0), key=lambda row: lost[row.name] / evals(row), reverse=True)
    if not hit:
        return None
    evidence = tuple(Evidence(row.name, "rank_loss", lost[row.name], 0, _lost_in_words(case, row, lost[row.name]))
                     for row in hit)  # fmt: skip
    noted = [row for row in hit if _lost_by_design(case, row, lost[row.name])]
    by_design = {row.name for row in noted}
    return tuple(
        _lacking(rows, lost, evidence, len(case.measured), severity)
        for rows, severity in by_severity([row for row in hit if row.name not in by_design], noted)
    )


def _lost_by_design(case: Case, row: LayerRow, lost: int) -> bool:
    """Whether healthy models have it: coarse codes hide weak directions of every heavy-tailed matrix, weight decay
    before a normalisation leaves convolutions with rows of next to nothing, and one direction is centring."""
    if lost <= max(1.0, case.limit("dead_share") * evals(row)):
        return True
    exact, least = lost <= _exactly_lost(case, row), case.limit("rank_loss_share") * evals(row)
    if quantized(row) and not exact:
        return True
    if not (row.kind == "conv" or row.role == "conv"):
        return False
    weak = case.spectra[row.name].weak_vectors
    if weak is not None:
        return lost - max(0, weak - _dead(case, row)) < least
    return not exact or lost < least


def _lacking(
    rows: list[LayerRow], lost: Mapping[str, int], evidence: Sequence[Evidence], of: int, severity: Severity | None
) -> RuleHit:
    lacks, names = verb(len(rows), "lacks", "lack"), {row.name for row in rows}
    most = max(lost[name] for name in names)
    return RuleHit(
        f"{named(rows)} {lacks} full rank: up to {count(most, 'direction')} {verb(most, 'carries', 'carry')} nothing.",
        tuple(item for item in evidence if item.layer in names),
        severity,
        tested=of,
    )


def _lost_in_words(case: Case, row: LayerRow, lost: int) -> str:
    exact = lost <= _exactly_lost(case, row)
    where = "zero to working precision, though no row is zero" if exact else f"lost in the rounding of {row.dtype}"
    return f"{count(lost, 'direction')} of {evals(row)} are {where}"


def _lost(case: Case, row: LayerRow) -> int:
    """Directions that carry nothing, beside the rows of zeros that `dead_directions` reports."""
    zeros = _dead(case, row)
    exactly, rounded = _exactly_lost(case, row), int(value(row, "rank_loss")) - zeros
    # Noise and trained matrices have a few directions of that size.
    return max(exactly, rounded if rounded >= case.limit("rank_loss_share") * evals(row) else 0)


@rule(
    "TW604",
    title="duplicate layers",
    says=("is a copy of another", "are copies of another"),
    severity="warning",
    strength="theory",
    causes=("blocks copied to make a deeper model, and not trained since", "a mistake in a merge or a conversion"),
    remedies=("check that the copy is meant", "share one tensor, or train the copies apart"),
    references=("Kim et al. 2024, SOLAR 10.7B: depth up-scaling, arXiv:2312.15166",),
)
def duplicate_layers(case: Case) -> Verdict:
    """Two matrices have the same content to the byte, though they are stored twice; zero matrices do not count."""
    groups: dict[str, list[LayerRow]] = {}
    for row in case.measured:
        if row.digest and float(case.spectra[row.name].eigenvalues[-1]) > 0:
            groups.setdefault(row.digest, []).append(row)
    same = [group for group in groups.values() if len(group) > 1]
    if not same:
        return None
    evidence = tuple(
        Evidence(row.name, "digest", len(group), 1, f"the same bytes as {named([o for o in group if o is not row])}")
        for group in same
        for row in group
    )
    first = " = ".join(row.name for row in same[0])
    return RuleHit(f"{count(sum(map(len, same)), 'matrix')} are copies of another, e.g. {first}.", evidence)


@rule(
    "TW605",
    title="not measured",
    says=("could not be measured", "could not be measured"),
    severity="warning",
    strength="theory",
    causes=("a damaged or truncated file", "a format that is not supported yet", "too little memory"),
    remedies=("do what the reason says, and audit again: what was measured is kept",),
    references=("this audit",),
)
def not_measured(case: Case) -> Verdict:
    """A matrix could not be read or solved, so no rule has looked at it."""
    words = ("could not be measured", "could not be measured")
    # A packing that is not known is a limit of this tool, and says nothing of the model.
    unread, unknown = ([row for row in case.rows if row.status in statuses] for statuses in (_UNREAD, _UNKNOWN))
    return (*_by_status(case, unread, *words), *_by_status(case, unknown, *words, severity="info"))


def _by_status(
    case: Case, hit: Sequence[LayerRow], one: str, many: str, severity: Severity | None = None
) -> tuple[RuleHit, ...]:
    if not hit:
        return ()
    evidence = tuple(Evidence(row.name, "status", 1.0, 0.0, f"{row.status}: {row.reason}") for row in hit)
    message = f"{named(hit)} {one if len(hit) == 1 else many}."
    return (RuleHit(message, evidence, severity, tested=sum(bool(row.kind) for row in case.rows)),)
