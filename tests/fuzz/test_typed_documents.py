"""Studies and scores that were edited: one error at loading, and never a surprise where a number is used."""

import json
import random
from contextlib import suppress

import fuzz_mutations as mutations
import pytest

from tailwise.audits.precision.study import LayerStudy, PrecisionStudy, Reading
from tailwise.audits.precision.verdict import verdicts
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.typed import check_typed
from tailwise.models.evaluation.score_pairs import compare_scores
from tailwise.models.evaluation.scores import ModelSize, Scores, Speed, TaskScore

READINGS = {name: Reading(name, 8.0, alpha=2.5, k=9, relative_error=0.01, sqnr_db=30.0, metrics={"alpha": 2.0})
            for name in ("int8", "fp8_e4m3")}  # fmt: skip
STUDY = PrecisionStudy(
    "m", tuple(READINGS), {"int8": "ours"}, (LayerStudy("l.0", "mlp_up", 0, 8, 8, 64, "F32", readings=READINGS),),
    {"k_frac": 0.1},
)  # fmt: skip
SCORES = Scores(
    "m", 12.5, (12.0, 13.0), (2.5, 2.6, None), 16, "d", ModelSize(10, 9, 8, 7, 40),
    Speed(1.0, None, 4, 4, 2, 1, "cpu", "F32"),
    (TaskScore("t", "acc", 0.5, None, 2, True, (1.0, 0.0)),), {"window": 16}, {"tailwise": "0"}, ("a note",),
)  # fmt: skip


@pytest.mark.parametrize(("honest", "kind"), [(STUDY, PrecisionStudy), (SCORES, Scores)])
def test_an_edited_document_is_told_or_used(tmp_path, honest, kind):
    path = tmp_path / "x.json"
    assert kind.load(honest.save(path)) == honest
    document, told = json.loads(path.read_text()), 0
    for seed in range(600):
        path.write_bytes(mutations.text_of(mutations.of_document(document, random.Random(seed))))
        try:
            found = kind.load(path)
        except UnreadableError:
            told += 1
            continue
        json.dumps(found.to_json(), allow_nan=False)
        if kind is Scores:
            _ = found.tokens, found.log_perplexity
            with suppress(UsageError):  # of other windows
                compare_scores(found, SCORES)
        else:
            _ = found.failed, [found.values("relative_error", name) for name in found.formats], verdicts(found)
    assert 100 < told < 600


@pytest.mark.parametrize(
    "change", [{"alpha": "2.5"}, {"k": 1.5}, {"k": True}, {"status": None}, {"metrics": []}, {"alpha": float("nan")}]
)
def test_values_of_another_kind(change):
    check_typed(Reading, {"format": "int8", "bits_per_weight": 8, "alpha": None, "unknown": object()})
    with pytest.raises(TypeError, match=next(iter(change))):
        check_typed(Reading, change)
