"""Plans that version 0.1 wrote are read, are made again, and give what they gave; a run that was killed goes on."""

from __future__ import annotations

import json
import math
import re
import zipfile

import plans_kept
import pytest
from plans_kept import APPLIED, EXACT, MADE, PLANS, audited, joined, made_by, options_of, planned_anew, write_model

from tailwise.compression.applying.apply import apply
from tailwise.compression.plans.plan import Plan

pytest.importorskip("transformers")

#: Of a norm: what other processors' arithmetic may change, a code of GPTQ that falls to the other side among it.
NEAR = 0.02
#: Made from α, of which fits that say nothing have counted as their role's median since.
REDEFINED = frozenset({
    "prune-alpha", "prune-alpha-mixed", "prune-blend", "quantize-alpha", "quantize-alphaq", "quantize-ratios",
    "both-magnitude-rtn",
})  # fmt: skip


@pytest.fixture(scope="module")
def kept() -> dict[str, str]:
    """Name → text of the file."""
    with zipfile.ZipFile(PLANS) as archive:
        return {info.filename.removesuffix(".json"): archive.read(info).decode() for info in archive.infolist()}


@pytest.fixture(scope="module")
def model(tmp_path_factory, _no_users_cache):
    return write_model(tmp_path_factory.mktemp("kept") / "model")


@pytest.fixture(scope="module")
def made() -> dict[str, dict]:
    return json.loads(MADE.read_text())


@pytest.fixture(scope="module")
def again(model) -> dict[str, Plan]:
    """The plans by today's code."""
    plans = dict(planned_anew(audited(model)))
    return plans | dict(joined(plans))


def named_anew(document: dict) -> dict:
    """With the budget's keys of today: what was asked and reached is what is requested and achieved."""
    names = {"asked": "requested", "reached": "achieved", "asked_bytes": "requested_bytes"}

    def renamed(budget: dict) -> dict:
        return {names.get(key, key): renamed(one) if isinstance(one, dict) else one for key, one in budget.items()}

    return document | {"budget": renamed(document["budget"])}


def of_0_1(plan: Plan) -> dict:
    """A plan made today, without the size of the whole model, which 0.1 did not count."""
    document = plan.to_json()
    for budget in (document["budget"], document["budget"].get("quantize", {})):
        whole = budget.pop("model_parameters", None)
        assert whole is None or whole > budget["parameters"]
    return document


def test_every_plan_is_read_checked_and_written_as_it_was(kept, tmp_path):
    assert len(kept) >= 25
    for name, text in kept.items():
        path = tmp_path / f"{name}.json"
        path.write_text(text)
        plan = Plan.load(path)
        assert plan.to_json() == named_anew(json.loads(text)), name
        if name in ("prune-alpha-mixed", "quantize-gptq", "both-wanda-gptq", "drop"):
            assert Plan.load(plan.save(tmp_path / f"{name}.yaml")) == plan, name


def test_the_same_requests_give_the_same_plans(kept, again):
    assert list(again) == list(kept)
    for name, plan in again.items():
        if name in REDEFINED:
            assert [item.tensor for item in plan] == list(json.loads(kept[name])["entries"]), name
            continue
        assert _alike(of_0_1(plan), named_anew(json.loads(kept[name]))), name


def _alike(one, other) -> bool:
    """Equal, but for numbers that arithmetic may move in the sixth digit, and words that hold such numbers."""
    if isinstance(other, dict):
        return list(one) == list(other) and all(
            key in ("notes", "reason") or _alike(one[key], other[key]) for key in other
        )
    if isinstance(other, list):
        return len(one) == len(other) and all(_alike(*pair) for pair in zip(one, other, strict=True))
    if isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-6)
    return one == other


def test_what_plans_say_is_said_again(kept, again):
    """Reasons and notes of those that read neither text nor fits, to the letter."""
    for name in (
        "prune-uniform", "prune-depth", "prune-2of4", "prune-low_rank", "prune-structured", "quantize-uniform",
        "quantize-cast", "quantize-blocks", "quantize-gptq-ordered", "drop",
    ):  # fmt: skip
        words = named_anew(json.loads(_in_words_of_now(kept[name])))
        words["notes"] = [note for note in words["notes"] if not note.endswith(_OF_NO_USE)]
        assert of_0_1(again[name]) == words, name


#: Which way α points is said of plans that look at α alone.
_OF_NO_USE = "; this allocator does not look at α"


def _in_words_of_now(text: str) -> str:
    """Version 0.1 said asked for and reached of what is requested and achieved."""
    return re.sub(r"\basked for (\S+(?: bits)?), reached ", r"requested \1, achieved ", text)


@pytest.mark.parametrize("name", list(APPLIED))
def test_applying_gives_what_it_gave(kept, model, made, tmp_path, name):
    plan = Plan.from_json(json.loads(kept[APPLIED[name][0]]))
    apply(plan, model, tmp_path / "out", options=options_of(name))
    _check(made_by(tmp_path / "out"), made[name], exact=name in EXACT)
    written = json.loads((tmp_path / "out" / "tailwise_plan.json").read_text())
    assert written == named_anew(json.loads(kept[APPLIED[name][0]]))


def _check(found: dict, wanted: dict, *, exact: bool) -> None:
    if found["digest"] == wanted["digest"]:
        return
    assert not exact
    assert list(found["projections"]) == list(wanted["projections"])
    for tensor, (norm, *others) in wanted["projections"].items():
        own = found["projections"][tensor]
        assert own == pytest.approx([norm, *others], abs=NEAR * norm), tensor


@pytest.mark.parametrize("name", ["prune-sparsegpt", "quantize-gptq", "both-wanda-gptq", "prune-structured calibrated"])
def test_a_run_that_is_killed_half_way_goes_on(kept, model, made, tmp_path, name):
    plan, options = Plan.from_json(json.loads(kept[APPLIED[name][0]])), options_of(name)
    blocks: list[tuple[str, int]] = []

    def killed(what: str, done: int, total: int) -> None:
        if what.endswith("blocks"):
            blocks.append((what, done))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(plan, model, tmp_path / "out", options=options, progress=killed)
    assert not (tmp_path / "out").exists()
    assert [done for _, done in blocks] == [1]
    apply(
        plan, model, tmp_path / "out", options=options, progress=lambda what, done, total: blocks.append((what, done))
    )
    _check(made_by(tmp_path / "out"), made[name], exact=False)


def test_the_files_are_written_by_the_program_beside_this_one():
    """The model has not changed since: what stands for it is that its plans fit it (`apply` compares fingerprints)."""
    assert set(json.loads(MADE.read_text())) == set(plans_kept.APPLIED)
