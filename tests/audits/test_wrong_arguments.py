"""Whatever is thrown at a public function or an option is taken or refused by name, and never an error from within."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing

import numpy as np
import pytest

import tailwise as tw
from tailwise.core.validation import check, fits

ROOMS = ("auditing", "comparing", "diagnosing", "gates", "plans", "precision", "runs", "scoring")
WRONG = [None, True, -1, 0, 2.5, float("nan"), float("inf"), "nonsense", "", b"x", [], [3], {}, {"a": 1}, object(),
         np.ones((2, 2)), {1, 2}, lambda *_: None, slice(0, 1)]  # fmt: skip
#: What a caller may meet: refused, unreadable, or a file of that name that is not there.
TOLD = (tw.TailwiseError, FileExistsError)
#: What a function has to be given beside the wrong argument; functions that write are given nothing to write.
WEIGHTS = {f"layers.{i}.up.weight": np.random.default_rng(i).standard_normal((40, 30)) for i in range(3)}
FAST = {"use_cache": False, "baseline_replicas": 1}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Right arguments of each function."""
    folder = tmp_path_factory.mktemp("given")
    audit = tw.audit(WEIGHTS, **FAST)
    path = audit.save(folder / "a.audit")
    gate = folder / "gate.toml"
    gate.write_text('expect = ["alpha < 100"]\n')
    plan = tw.plans.plan_prune(audit, tw.plans.Request(sparsity=0.5, allocator="uniform"))
    return {
        "audit": {"model": WEIGHTS, **FAST},
        "alpha_hill": {"weights": WEIGHTS["layers.0.up.weight"]},
        "esd": {"weights": WEIGHTS["layers.0.up.weight"]},
        "singular_entropy": {"weights": WEIGHTS["layers.0.up.weight"]},
        "stable_rank": {"weights": WEIGHTS["layers.0.up.weight"]},
        "apply": {"plan": plan, "model": str(folder / "none"), "output": str(folder / "out")},
        "check": {"audit": audit, "expectations": gate},
        "compare": {"before": audit, "after": path},
        "diagnose": {"audit": audit},
        "diagnose_run": {"audits": [audit, path]},
        "difference": {"before": audit, "after": audit},
        "evaluate": {"model": str(folder / "none"), "text": "some text"},
        "export": {"plan": plan, "to": "llmcompressor", "path": folder / "recipe.txt"},
        "fit_tail": {"eigenvalues": audit[0].spectrum.eigenvalues},
        "format_names": {},
        "load_pruned": {"folder": str(folder / "none")},
        "metric": {"formula": "λ", "source": "a test"},
        "open_checkpoint": {"uri": WEIGHTS},
        "parse_expectations": {"text": 'expect = ["alpha < 100"]', "source": "here"},
        "parse_format": {"text": "int8"},
        "plan_prune": {"audit": audit, "request": tw.plans.Request(sparsity=0.5)},
        "plan_quantize": {"audit": audit, "request": tw.plans.QuantizeRequest(bits=6)},
        "plot": {"chart": "alpha_hist", "audits": audit},
        "prepare": {"checkpoint": tw.open_checkpoint(WEIGHTS)},
        "rank": {"audits": [audit, path]},
        "read_expectations": {"path": gate},
        "recover": {"model": str(folder / "none"), "text": "text", "output": str(folder / "out")},
        "study": {"model": WEIGHTS, "formats": ("bf16",), **FAST},
        "sweep": {"models": [], "to": tw.runs.Sweep("s", str(folder / "s"), str(folder / "s.db"))},
        "table": {"audits": [audit, path]},
        "bisect": {"steps": [1, 2], "probe": lambda step: None},
    }


def functions():
    found = {}
    for module in (tw, *(getattr(tw, room) for room in ROOMS)):
        for name in module.__all__:
            item = getattr(module, name)
            if inspect.isfunction(inspect.unwrap(item)):
                found[name] = item
    return found


FUNCTIONS = functions()


def parameters(function):
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [name for name, one in inspect.signature(function).parameters.items() if one.kind not in kinds]


def told(call):
    """What a call is refused with, or None where it is taken. Any other error is the test's."""
    try:
        call()
    except TOLD as error:
        return str(error)
    return None


@pytest.mark.parametrize(("name", "argument"), [(n, a) for n, f in FUNCTIONS.items() for a in parameters(f)])
def test_a_wrong_argument_is_taken_or_told(name, argument, given):
    if name == "plot":
        pytest.importorskip("altair")
    for wrong in WRONG:
        said = told(lambda wrong=wrong: FUNCTIONS[name](**{**given[name], argument: wrong}))
        assert said is None or said.strip(), (name, argument, wrong)
        assert "--" not in (said or "").partition("`tailwise")[0], (name, argument, wrong)


OPTIONS = [
    tw.auditing.Recipe, tw.auditing.RunOptions, tw.auditing.Selection, tw.auditing.TailOptions,
    tw.comparing.DifferenceOptions, tw.plans.AllocatorSettings, tw.plans.ApplyOptions, tw.plans.Budget,
    tw.plans.FormatSettings, tw.plans.QuantizeRequest, tw.plans.RecoverOptions, tw.plans.Request,
    tw.plans.TensorChoice, tw.precision.StudyOptions, tw.runs.Options, tw.runs.Sweep, tw.scoring.EvaluateOptions,
]  # fmt: skip
NEEDED = {tw.plans.Budget: {"amount": 0.5}, tw.plans.Request: {"sparsity": 0.5}, tw.plans.QuantizeRequest: {"bits": 6},
          tw.runs.Sweep: {"name": "s", "folder": "f", "catalogue": "c"}}  # fmt: skip


@pytest.mark.parametrize(("options", "field"), [(o, f.name) for o in OPTIONS for f in dataclasses.fields(o)])
def test_a_wrong_option_is_taken_or_told_by_its_name(options, field):
    refused = 0
    kind = typing.get_type_hints(options, localns={"PointSink": typing.Any}).get(field)
    for wrong in WRONG:
        said = told(lambda wrong=wrong: options(**{**NEEDED.get(options, {}), field: wrong}))
        assert said is None or said.strip()
        refused += said is not None
    anything = kind is typing.Any or (isinstance(kind, types.UnionType) and typing.Any in typing.get_args(kind))
    assert refused or anything, f"{options.__name__}.{field} takes everything"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda audit: audit[None], lambda audit: audit[3], lambda audit: audit[True], lambda audit: audit["l.0.dow"],
        lambda audit: audit.table()["alhpa"], lambda audit: audit.table()[0], lambda audit: audit.plot("alpha_hits"),
        lambda audit: tw.Monitor("x"), lambda audit: tw.Monitor(None), lambda audit: tw.Alarms(rules=3),
        lambda audit: tw.Alarms(mute="TW999"), lambda audit: tw.Alarms(on_alarm="log"),
        lambda audit: tw.diagnose(audit, mute="TW999"), lambda audit: tw.diagnose(audit, mute=["TW1", 3]),
        lambda audit: tw.diagnose(audit, thresholds={"noise_z": "high"}), lambda audit: tw.diagnose(audit, history="a"),
        tw.rank, lambda audit: tw.rank([audit]), lambda audit: tw.compare(audit, None),
        lambda audit: tw.audit(WEIGHTS, randomize="yes"), lambda audit: tw.audit(WEIGHTS, k_frac="0.1"),
        lambda audit: tw.audit(WEIGHTS, workers=0), lambda audit: tw.audit(WEIGHTS, layers="("),
        lambda audit: tw.audit(WEIGHTS, roles="mlp_upp"), lambda audit: tw.audit(WEIGHTS, wokers=2),
        lambda audit: tw.audit(WEIGHTS, device="gpu"), lambda audit: tw.audit(3), lambda audit: tw.audit(None),
        lambda audit: tw.audit([]), lambda audit: tw.Audit.load(3), lambda audit: tw.runs.History(3),
        lambda audit: tw.plans.Plan.load(None), lambda audit: tw.plans.plan_prune(audit, 0.5),
        lambda audit: tw.plans.plan_prune(audit, {"sparsity": 0.5}), lambda audit: tw.extend.unregister("alpha"),
        lambda audit: tw.extend.unregister("nothing"), lambda audit: tw.METRICS["alhpa"], lambda audit: tw.METRICS[3],
        lambda audit: audit.save(3), lambda audit: tw.plans.QuantizeRequest(bits=4, formats="int4,int9"),
        lambda audit: tw.Spectrum([1, 2], 2, 3, slices="one"), lambda audit: tw.Spectrum("x", 2, 3),
    ],
)  # fmt: skip
def test_what_is_typed_wrong_is_told(wrong, given):
    with pytest.raises(TOLD) as caught:
        wrong(given["check"]["audit"])
    assert len(str(caught.value)) < 1500


def test_one_name_is_a_list_of_one():
    audit = tw.audit(WEIGHTS, metrics="alpha,stable_rank", roles="other", **FAST)
    assert set(audit[0].row.metrics) == {"alpha", "stable_rank"}
    assert set(tw.compare(audit, audit, metrics="alpha").layers[0].deltas) == {"alpha"}
    assert tw.plans.QuantizeRequest(bits=6, formats="int4,int8").formats == ("int4", "int8")


@pytest.mark.parametrize(
    ("value", "kind", "holds"),
    [(1, int, True), (True, int, False), (2.0, int, True), (2.5, int, False), (np.float32(2.5), float, True),
     (float("nan"), float, False), ("a", typing.Sequence[str], False), (("a",), tuple[str, ...], True),
     ((1,), tuple[str, ...], False), ({"a": 1}, typing.Mapping[str, float], True),
     ({"a": "b"}, typing.Mapping[str, float], False), (None, int | None, True)],
)  # fmt: skip
def test_what_fits_an_annotation(value, kind, holds):
    assert fits(value, kind) is holds
    if not holds:
        with pytest.raises(tw.UsageError, match="x is"):
            check("x", value, kind)
