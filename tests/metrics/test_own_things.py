"""Things of one's own: a cell that is run again replaces, what is built in stays, and what was added goes again."""

from __future__ import annotations

import numpy as np
import pytest

import tailwise as tw
from tailwise.core.registry import Registry
from tailwise.extend import Integer, ScaledFormat, Symmetric, estimator, fixed_tail, number_format, rule, unregister

FAST = {"use_cache": False, "baseline_replicas": 1}
W = {"up.weight": np.random.default_rng(0).standard_normal((96, 64))}


def made(name, function):
    """A function as a notebook cell has it."""
    function.__name__, function.__module__ = name, "__main__"
    return function


def constant(value):
    """A metric that is the same of every spectrum."""
    return lambda spectrum: value


def five_bits(group):
    """What makes a format of integers of five bits."""
    return lambda: ScaledFormat("int5", "a cell", Integer(5), Symmetric(5), group)


@pytest.fixture
def taken_out():
    """Names that are taken out again, whatever a test leaves."""
    names = []
    yield names
    for name, kind in names:
        try:
            unregister(name, kind)
        except tw.UsageError:
            continue


def test_a_cell_that_is_run_again_replaces(taken_out):
    taken_out.append(("constant", "metric"))
    for value in (1.0, 2.0):
        tw.metric("c", source="a cell")(made("constant", constant(value)))
        assert tw.audit(W, metrics="constant", **FAST)[0].constant == value
    unregister("constant")
    with pytest.raises(tw.UsageError, match="no metric named 'constant'"):
        tw.audit(W, metrics="constant", **FAST)


@pytest.mark.parametrize("name", ["alpha", "stable_rank"])
def test_what_is_built_in_is_neither_replaced_nor_taken_out(name):
    before = tw.METRICS[name]
    with pytest.raises(tw.UsageError, match=f"'{name}' is registered twice, by tailwise"):
        tw.metric("c", source="a cell")(made(name, lambda spectrum: 1.0))
    with pytest.raises(tw.UsageError, match="is built in"):
        unregister(name, "metric")
    assert tw.METRICS[name] is before


def test_two_modules_cannot_have_one_name(taken_out):
    taken_out.append(("shared", "metric"))
    tw.metric("c", source="one")(made("shared", lambda spectrum: 1.0))
    other = made("shared", lambda spectrum: 2.0)
    other.__module__ = "another"
    with pytest.raises(tw.UsageError, match="'shared' is registered twice, by __main__"):
        tw.metric("c", source="another")(other)


def test_a_built_in_name_is_refused_before_the_built_ins_were_looked_up():
    registry = Registry("fruit", "tailwise.none", lambda: registry.add("pear", 1, by="tailwise.fruit"))
    with pytest.raises(tw.UsageError, match="registered twice"):
        registry.add("pear", 2, by="__main__")
    assert registry["pear"] == 1
    assert registry.get("plum") is None


def test_an_estimator_is_used_everywhere(taken_out):
    taken_out.append(("fifth", "estimator"))
    estimator("fifth")(made("fifth", lambda values, options: fixed_tail("fifth", values, 4 * len(values) // 5)))
    values = tw.esd(W["up.weight"]).eigenvalues
    tail = values[4 * len(values) // 5 :]
    expected = 1 + len(tail) / np.log(tail / tail[0]).sum()
    assert tw.fit_tail(values, "fifth").alpha == pytest.approx(expected)
    assert tw.audit(W, estimator="fifth", **FAST)[0].alpha == pytest.approx(expected)
    with pytest.raises(tw.UsageError, match="did you mean fifth"):
        tw.audit(W, estimator="fift", **FAST)


def test_an_estimator_that_gives_no_fit_is_told(taken_out):
    taken_out.append(("bare", "estimator"))
    estimator("bare")(made("bare", lambda values, options: 3.0))
    with pytest.raises(tw.UsageError, match="the estimator bare gave a float"):
        tw.fit_tail([1.0, 2.0, 3.0] * 30, "bare")


def test_a_number_format_is_studied_and_planned(taken_out):
    taken_out.append(("int5", "number format"))
    for group in (32, 64):
        number_format("int5")(made("int5", five_bits(group)))
        assert tw.precision.parse_format("int5").group_size == group
    study = tw.precision.study(W, ("int4", "int5", "int8"), **FAST)
    errors = [study["up"].readings[name].relative_error for name in ("int4", "int5", "int8")]
    assert errors == sorted(errors, reverse=True)
    audit = tw.audit({"model.layers.0.mlp.up_proj.weight": W["up.weight"]}, **FAST)
    plan = tw.plans.plan_quantize(audit, tw.plans.QuantizeRequest(formats="int5"))
    assert [one.format for one in plan] == ["int5"]
    unregister("int5")
    with pytest.raises(tw.UsageError, match="no number format named 'int5'"):
        tw.precision.parse_format("int5")


@pytest.mark.parametrize(
    ("name", "make"),
    [("int8", None), ("Int 5", None), ("int5", lambda: 3), ("int5", lambda: tw.precision.parse_format("int4"))],
)
def test_what_is_no_number_format_is_told(name, make):
    with pytest.raises(tw.UsageError):
        number_format(name)(made("x", make or (lambda: None)))


def test_a_rule_goes_again(taken_out):
    facts = {"severity": "info", "strength": "heuristic", "causes": (), "remedies": (), "references": ()}
    rule("XT998", title="a cell", **facts)(made("cell", lambda case: None))
    assert "XT998" in tw.diagnosing.RULES
    unregister("XT998")
    assert "XT998" not in tw.diagnosing.RULES


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: tw.precision.parse_format("Q4_K_M"), "llama-quantize"),
        (lambda: tw.precision.parse_format("w4a16"), "int4-g128"),
        (lambda: tw.plans.EXPORTERS["vllm"], "compressed-tensors"),
        (lambda: tw.plans.EXPORTERS["gguf"], "llamacpp"),
        (lambda: tw.plans.Request(sparsity=0.5, operator="svd"), "low_rank"),
        (lambda: tw.audit(W, metrics="entropy", **FAST), "matrix_entropy .*or singular_entropy"),
        (lambda: tw.plans, ""),
    ],
)
def test_what_people_type_is_answered(ask, said):
    if not said:
        assert ask()
        return
    with pytest.raises(tw.UsageError, match=said):
        ask()


@pytest.mark.parametrize(
    ("typed", "name"),
    [("alpha-hat", "alpha_weighted"), ("alpha_hat", "alpha_weighted"), ("Alpha", "alpha"),
     ("stable rank", "stable_rank"), ("D", "ks_distance"), ("xmin", "lambda_min"), ("detx_num", "detX_num")],
)  # fmt: skip
def test_what_people_type_is_taken(typed, name):
    audit = tw.audit(W, metrics=(typed,), **FAST)
    assert list(audit[0].row.metrics) == [name]
    assert audit.table()[typed] == audit.table()[name]


@pytest.mark.parametrize(("typed", "name"), [("fp8", "fp8_e4m3"), ("FP8-tensor", "fp8_e4m3-tensor"), ("half", "fp16"),
                                             ("bfloat16", "bf16"), ("float32", "fp32")])  # fmt: skip
def test_formats_by_their_other_names(typed, name):
    assert tw.precision.parse_format(typed).name == name
