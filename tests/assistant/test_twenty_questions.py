"""Twenty questions with their right answers, worked out from the audit by other means."""

from __future__ import annotations

import re
from html import unescape
from statistics import fmean, median

import pytest

from tailwise.app.assistant.answers import answer
from tailwise.audits.trusted import usable, value_of

_ROLES = ("mlp_up", "mlp_down", "attn_q")


def rows_of(audit, role: str = ""):
    return [layer.row for layer in audit if not role or layer.row.role == role]


def values(audit, metric: str, role: str = "") -> list[float]:
    pick = usable if metric == "alpha" else value_of
    return [value for row in rows_of(audit, role) if (value := pick(row, metric)) is not None]


def digits(number: float) -> str:
    return f"{number:.3g}"


def told(question: str):
    """Question → what a right answer begins with or holds."""
    return {
        "is it healthy?": lambda _: ["Mixed. 1 of 18 matrices looks like noise", "model.layers.4.mlp.up_proj"],
        "is this model ok": lambda _: ["Mixed."],
        "summarise this model": lambda _: ["Needs a look: 1 of 18 matrices"],
        "how many layers are there?": lambda _: ["18 matrices were measured in 6 blocks", "mlp_up: 6"],
        "how many matrices does it have": lambda _: ["18 matrices"],
        "how many blocks?": lambda _: ["6 blocks"],
        "how many parameters?": lambda a: [f"{sum(row.n_params for row in rows_of(a)):,}"],
        "how many mlp up matrices are there": lambda _: ["6 matrices of 18"],
        "how many warnings are there?": lambda _: ["0 errors, 1 warning"],
        "how many fits are trusted?": lambda a: [f"{len(values(a, 'alpha'))} of 18 fits"],
        "what is the mean stable rank?": lambda a: ["Mean stable_rank", digits(fmean(values(a, "stable_rank")))],
        "median stable rank": lambda a: ["Median stable_rank", digits(median(values(a, "stable_rank")))],
        "average alpha hill of mlp down": lambda a: ["mlp_down", digits(fmean(values(a, "alpha_hill", "mlp_down")))],
        "mean alpha": lambda a: [f"over {len(values(a, 'alpha'))} of 18", digits(fmean(values(a, "alpha")))],
        "median alpha_hill by role": lambda a: [
            f"{role}: {digits(median(values(a, 'alpha_hill', role)))}" for role in _ROLES
        ],
        "what is the average of log_spectral_norm in mlp up": lambda a: [
            digits(fmean(values(a, "log_spectral_norm", "mlp_up")))
        ],
        "highest stable rank": lambda a: [digits(max(values(a, "stable_rank")))],
        "which layers have stable rank below 1000": lambda _: ["18 of 18 layers have stable_rank < 1000"],
        "which layers are worst?": lambda _: ["model.layers.4.mlp.up_proj"],
        "what is its perplexity on my text?": lambda _: ["tailwise evaluate"],
    }[question]


QUESTIONS = [
    "is it healthy?", "is this model ok", "summarise this model", "how many layers are there?",
    "how many matrices does it have", "how many blocks?", "how many parameters?", "how many mlp up matrices are there",
    "how many warnings are there?", "how many fits are trusted?", "what is the mean stable rank?", "median stable rank",
    "average alpha hill of mlp down", "mean alpha", "median alpha_hill by role",
    "what is the average of log_spectral_norm in mlp up", "highest stable rank",
    "which layers have stable rank below 1000", "which layers are worst?", "what is its perplexity on my text?",
]  # fmt: skip


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_answer_is_right(made, question):
    audit = made.workspace.audit(made.ids["model"])
    found = answer(question, made.workspace, made.screen())
    shown = unescape(re.sub(r"[\\*`]|\]\([^)]*\)|\[", "", found.text))
    expected = told(question)(audit)
    assert [part for part in expected if part not in shown] == [], shown
    assert found.unverified == ()


@pytest.mark.parametrize(("title", "word"), [("model", "Mixed."), ("odd/<b>*x*", "No.")])
def test_whether_it_is_healthy_is_answered_first(made, title, word):
    assert answer("is it healthy?", made.workspace, made.screen(title)).text.startswith(word)
