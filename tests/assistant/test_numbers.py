"""Which numbers of a text are marked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailwise.app.assistant.numbers import unverified

FACT = {
    "alpha": 2.3147, "share": 0.0862, "parameters": 7995392, "change": -0.51, "p": 1.2e-5, "median": 12.34, "block": 3,
    "layers": ["model.layers.3.mlp.up_proj", "model.layers.17.mlp.up_proj"], "says": "alpha 7.1 ± 0.4 > 6; 58 % of it",
    "links": [{"text": "x", "href": "/models/77"}],
}  # fmt: skip


@pytest.mark.parametrize("text", [
    "alpha is 2.31, 2.3, 2.315 and 2.3147",
    "9 %, 8.6 %, 8.62% and 0.086",
    "7,995,392 parameters, 8.0 million, 8.0M",
    "it fell by 0.51, a change of -0.51 or −0.5",
    "p = 1.2e-5, 1.2 × 10⁻⁵ or 1.2 × 10^-5",
    "12.3, about 12",
    "7.1 ± 0.4 > 6 and 58 percent",
    "1. the first\n2. the second\n 3) the third",
    "Martin, Peng & Mahoney 2021; Hill (1975).",
    "TW101, int4, fp8_e4m3, q4_0, Llama-3.1-8B, model.layers.12.mlp.up_proj",
    "layer 3, block 17, blocks 3 and 17",
    "[link](/models/12345?name=9.9)",
    "no number at all",
    "",
])  # fmt: skip
def test_passes(text):
    assert unverified(text, [FACT]) == ()


@pytest.mark.parametrize(("text", "marked"), [
    ("alpha is 2.32", ("2.32",)),
    ("alpha is 2", ()),  # two layers are listed
    ("alpha is 2.3148 or 2.41", ("2.3148", "2.41")),
    ("8 %", ("8 %",)),
    ("8,995,392", ("8,995,392",)),
    ("+0.51", ("+0.51",)),
    ("layer 99 and block 3", ("99",)),
    ("**9.25** and `9.26`", ("9.25", "9.26")),
    ("77 pages", ("77",)),
    ("2048 eigenvalues, 2024 matrices", ("2048", "2024")),
    ("alpha-9.99", ("9.99",)),
    ("9.9 twice, 9.9", ("9.9",)),
    ("1e99999 and 1e400", ("1e99999", "1e400")),
])  # fmt: skip
def test_marks(text, marked):
    assert unverified(text, [FACT]) == marked


def test_without_facts_every_number_is_marked():
    assert unverified("3 of 4 layers at 2.5", []) == ("3", "4", "2.5")


@given(st.floats(-1e9, 1e9, allow_nan=False).filter(lambda x: abs(x) > 1e-3), st.integers(0, 4))
def test_a_rounded_number_passes(value, digits):
    text = f"{value:.{digits}f}"
    if digits == 0 and abs(value) < 10:
        return  # a small whole number stands for itself alone
    assert unverified(f"it is {text} here", [{"x": value}]) == ()


@given(st.text(max_size=300))
def test_any_text_is_read(text):
    unverified(text, [{"text": text}])


@given(st.text(alphabet="0123456789.,eE+-−%×^ kMB⁻⁵", max_size=60))
def test_any_number_like_text_is_read(text):
    unverified(text, [{"text": text, "x": 1.0}])


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Found in a, b, c, d, e and 41 more.", ()),
        ("Found in a, b, c, d, e, and 41 others.", ()),
        ("Found in a and 45 more.", ()),
        ("Found in a, b and 41 more.", ("41",)),
        ("Found in a, b and 90 more.", ("90",)),
    ],
)
def test_what_a_list_leaves_out_is_counted(text, left):
    assert unverified(text, [{"layers": [f"layer-{i}" for i in "x" * 46]}]) == left
