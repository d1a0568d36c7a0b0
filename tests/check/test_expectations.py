"""The grammar of expectations, and its messages."""

from __future__ import annotations

import pytest

import tailwise as tw
from tailwise.judging.gates.expectation import Bounds
from tailwise.judging.gates.parse import parse_expectations, read_expectations


def one(text: str):
    return parse_expectations(f"expect = [{text!r}]".replace("'", '"')).items[0]


@pytest.mark.parametrize(
    ("text", "kind", "subject", "bounds"),
    [
        ("alpha in [2, 6]", "metric", "alpha", Bounds(2, 6)),
        ("alpha_hill in (2,6.5)", "metric", "alpha_hill", Bounds(2, 6.5, True, True)),
        ("stable_rank >= 1e1", "metric", "stable_rank", Bounds(low=10)),
        ("log_norm<-1", "metric", "log_norm", Bounds(high=-1, high_open=True)),
        ("delta.alpha < 0.5 against baseline", "delta", "alpha", Bounds(high=0.5, high_open=True)),
        ("|delta.alpha| <= .5", "delta", "alpha", Bounds(high=0.5)),
        ("summary.mean_alpha in [2, 5)", "summary", "mean_alpha", Bounds(2, 5, high_open=True)),
    ],
)
def test_short_forms(text, kind, subject, bounds):
    found = one(text)
    assert (found.kind, found.subject, found.bounds) == (kind, subject, bounds)
    assert found.absolute == text.startswith("|")
    assert found.baseline is None


def test_what_is_written_back_reads_as_it_was():
    for text in ("alpha in [2, 6]", "|delta.alpha| < 0.5", "summary.share_2_4 > 0.5", "no finding above warning",
                 "no finding", "alpha in (2, 6]", "the layers of the baseline"):  # fmt: skip
        assert one(text).text == text


def test_names_of_metrics_that_begin_like_a_prefix_are_whole():
    with pytest.raises(tw.UsageError, match="delta_alpha"):
        one("delta_alpha < 1")


def test_tables():
    found = parse_expectations(
        """
        baseline = "base.audit"
        [[expect]]
        metric = "alpha"
        roles = ["attn_q"]
        layers = "layers\\\\.3"
        min = 2
        max = 6
        allow = 0.1
        name = "queries"
        [[expect]]
        delta = "alpha"
        max_abs = 0.5
        baseline = "other.audit"
        [[expect]]
        finding = "warning"
        mute = ["TW101"]
        [[expect]]
        that = "delta.alpha_hill < 9 against third.audit"
        roles = ["mlp_up"]
        """
    )
    first, second, third, fourth = found.items
    assert found.baseline == "base.audit"
    assert first.text == "alpha in [2, 6] for attn_q in layers like 'layers\\\\.3', 10% may fail"
    assert (first.name, first.line) == ("queries", 3)
    assert first.takes("model.layers.3.q", "attn_q")
    assert not first.takes("model.layers.3.k", "attn_k")
    assert (second.absolute, second.bounds, second.baseline) == (True, Bounds(high=0.5), "other.audit")
    assert (third.severity, third.mute) == ("warning", ("TW101",))
    assert (fourth.roles, fourth.baseline) == (("mlp_up",), "third.audit")
    assert [item.line for item in found.items] == [3, 11, 15, 18]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("expect = [", "not valid TOML"),
        ("", "expects nothing"),
        ("expect = [\n'alpha > 1',\nalpha]", "not valid TOML.*line 3"),
        ("expext = ['alpha > 1']", "no key 'expext'"),
        ("expect = ['alpha is 3']", "line 1: 'alpha is 3' is not understood"),
        ("expect = ['alpa > 3']", "did you mean alpha"),
        ("expect = ['alpha in [6, 2]']", "smaller bound first"),
        ("expect = ['|alpha| < 2']", "only a change has a size"),
        ("expect = [3]", "neither a table nor a string"),
        ("\n\n[[expect]]\nmetric='alpha'", "line 3: there is no bound"),
        ("[[expect]]\nmin=2", "has one of"),
        ("[[expect]]\nmetric='alpha'\nfinding='info'", "has one of"),
        ("[[expect]]\nmetric='alpha'\nmin='2'", "min is '2'"),
        ("[[expect]]\nmetric='alpha'\nmin=nan", "min is nan"),
        ("[[expect]]\nmetric='alpha'\nmin=true", "min is True"),
        ("[[expect]]\nmetric='alpha'\nmn=2", "did you mean min"),
        ("[[expect]]\nmetric='alpha'\nmin=2\nroles=['attn']", "did you mean attn"),
        ("[[expect]]\nmetric='alpha'\nmin=2\nroles='attn_q'", "list of texts"),
        ("[[expect]]\nmetric='alpha'\nmin=2\nlayers='(('", "regular expression"),
        ("[[expect]]\nmetric='alpha'\nmin=2\nlayers='(a+)+$'", "may run without end"),
        ("[[expect]]\nmetric='alpha'\nmin=2\nlayers='a{99999999999999999999}'", "regular expression"),
        (f"[[expect]]\nmetric='alpha'\nmin=2\nlayers='{'(' * 5000}{')' * 5000}'", "regular expression"),
        (f"[[expect]]\nmetric='alpha'\nmin=1{'0' * 400}", r"min is 10{99}… \(401 signs\)"),
        ("[[expect]]\nmetric='alpha'\nmax=inf", "max is inf"),
        ("[[expect]]\ndelta='alpha'\nmax_abs=inf", "max_abs is inf"),
        ("expect = ['alpha in [1e999, 2e999]']", "a bound is inf"),
        ("expect = ['alpha < 1e999']", "a bound is inf"),
        ("expect = ['alpha > -1e999']", "a bound is -inf"),
        (f"expect = ['alpha < {'1' * 200_000}x']", "is not understood"),
        ("[[expect]]\nmetric='alpha'\nmin=2\nallow=1.5", "share of layers"),
        ("[[expect]]\ndelta='alpha'\nmax_abs=2\nmin=1", "max_abs stands alone"),
        ("[[expect]]\nfinding='warn'", "did you mean warning"),
        ("[[expect]]\nfinding='none'\nmute=['TW101:(a+)+$']", "may run without end"),
        ("[[expect]]\nsummary='mean_alfa'\nmin=2", "did you mean mean_alpha"),
        ("[[expect]]\nstructure='equal'", "named 'equal'"),
        ("baseline = 3\nexpect = ['alpha > 1']", "baseline is no path"),
        ("expect = [['alpha > 1']]", "neither"),
    ],
)
def test_every_mistake_is_a_usage_error_that_says_where(text, message):
    with pytest.raises(tw.UsageError, match=f"(?s){message}"):
        parse_expectations(text)


def test_a_file_that_is_not_there_is_unreadable(tmp_path):
    with pytest.raises(tw.UnreadableError, match="--init"):
        read_expectations(tmp_path / "none.toml")
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(tw.UnreadableError):
        read_expectations(tmp_path / "x.toml")
