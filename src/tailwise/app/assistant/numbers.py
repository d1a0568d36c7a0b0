"""Which numbers of a text are in no fact. Rounding counts as the same; names, codes, years and list numbers do not.

A number that passes is one that some fact holds, not one that is said of the right thing: this finds what was made up,
not what was mixed up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tailwise.app.assistant.answer import Fact
from tailwise.app.assistant.markdown import plain

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_RAISED = re.compile(r"(?<=10)(⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)")
_LIST = re.compile(r"(?m)^[ \t>]{0,40}(?:[#*+-]{1,9}[ \t]{1,9})?\d{1,3}[.)](?=\s)")
#: Codes, names of layers, models and formats: a letter first, and anything that hangs together with it.
_NAME = re.compile(r"(?<![\w.])[^\W\d]\w*(?:[./\-#:@]{1,9}\w+)*")
_DECIMAL_AFTER_DASH = re.compile(r"^[^\W\d_]+-(?=\d+\.\d+$)")
_PLACE = re.compile(r"(?i)\b((?:layer|block)s?\s{1,4}(?:no\.\s{0,4})?)(\d+(?:\s{0,4}(?:,|and|or|to|–|-)\s{0,4}\d+)*)")
#: Behind a word or a bracket, and before the end of a sentence or a bracket: not "2024 eigenvalues".
_YEAR = re.compile(r"(?m)(?:(?<=\()|(?<=al\. )|(?<=[a-z] )|(?<=[a-z], ))(?:19[5-9]\d|20[0-3]\d)(?=[).,;:]|[ \t]{0,9}$)")
#: What a list goes on with: how many are left out.
_MORE = re.compile(r",? (?:and|…) (\d[\d,]{0,30}) (?:more|others)\b")
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)])[-−+])?(?<![\w.])"
    r"(?P<digits>\d{1,3}(?:[, \u202f]\d{3}){1,30}(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?:[eE](?P<exponent>[-+−]?\d+)|\s{0,4}[×x·]\s{0,4}10\^(?P<power>[-−]?\d+))?"
    r"(?P<unit>\s{0,4}(?:%|percent\b|thousand\b|million\b|billion\b)|[kKMBG]\b)?"
)
_UNITS = {"k": 1e3, "K": 1e3, "thousand": 1e3, "M": 1e6, "million": 1e6, "B": 1e9, "G": 1e9, "billion": 1e9}
#: From here on a whole number may stand for one that is not: 12 for 12.3, but not 2 for 2.31.
_ROUNDED_FROM = 10.0


@dataclass(frozen=True)
class NumberInText:
    """A number as a text has it."""

    text: str
    value: float
    half: float  # of the last place that is written
    signed: bool
    whole: bool
    percent: bool


@dataclass
class Known:
    """The numbers of facts."""

    values: set[float] = field(default_factory=set)
    places: set[int] = field(default_factory=set)  # numbers inside names of layers

    def take(self, value: Any) -> None:
        """Everything in a fact: numbers, the numbers of its prose, and how long its lists are."""
        if isinstance(value, bool) or value is None:
            return
        if isinstance(value, int | float):
            self.values.add(float(value))
        elif isinstance(value, str):
            self.places |= {int(part) for part in re.findall(r"(?<![^.\s])\d{1,6}(?![^.\s])", value)}
            self.values |= {number.value / (100 if number.percent else 1) for number in numbers_in(value)}
        elif isinstance(value, dict):
            for key, item in value.items():
                if key != "links":
                    self.take(item)
        elif isinstance(value, list | tuple):
            self.values.add(float(len(value)))
            for item in value:
                self.take(item)

    def has(self, number: NumberInText) -> bool:
        """Whether a fact holds the number, as far as its digits go."""
        return math.isfinite(number.value) and any(_same(number, value) for value in self.values)


def unverified(text: str, answers: Iterable[Fact]) -> tuple[str, ...]:
    """The numbers of a Markdown text that are in none of the facts, each once, as they are written."""
    known = Known()
    for fact in answers:
        known.take(fact)
    shown = _PLACE.sub(lambda match: match[1] + _left(match[2], known), _without_rests(plain(text), known))
    return tuple(dict.fromkeys(number.text for number in numbers_in(shown) if not known.has(number)))


def _without_rests(text: str, known: Known) -> str:
    """The text without "a, b and 41 more", as far back as the sentence goes, where that is what is left of a list."""
    parts, at = [], 0
    for found in _MORE.finditer(text):
        begin = max(at, *(text.rfind(sign, at, found.start()) + 1 for sign in "\n;:"))
        rest = _is_rest(text[begin : found.start()], found[1], known)
        parts.append(text[at : begin if rest else found.end()])
        at = found.end()
    return "".join([*parts, text[at:]])


def _is_rest(named: str, more: str, known: Known) -> bool:
    """Whether "a, b and 41 more" leaves out as many as some list is longer than what is named of it."""
    left_out = int(more.replace(",", ""))
    return any(float(left_out + count) in known.values for count in range(1, named.count(",") + 2))


def _left(numbers: str, known: Known) -> str:
    """Of "3 and 99" behind the word "blocks", those that no name and no fact has."""
    numerals = [int(part) for part in re.findall(r"\d+", numbers)]
    return " ".join(
        str(number) for number in numerals if number not in known.places and float(number) not in known.values
    )


def numbers_in(text: str) -> Iterator[NumberInText]:
    """The numbers of a text, without names, codes, years and numbers of lists."""
    written = _RAISED.sub(lambda match: "^" + match[1].translate(_SUPERSCRIPTS), text)
    bare = _NAME.sub(_number_of, _YEAR.sub(" ", _LIST.sub(" ", written)))
    for match in _NUMBER.finditer(bare):
        yield _said(match)


def _number_of(match: re.Match[str]) -> str:
    """A word as it is, nothing of a name with digits; of "alpha-2.31", which is none, the number."""
    if not any(sign.isdigit() for sign in match[0]):
        return match[0]
    dash = _DECIMAL_AFTER_DASH.match(match[0])
    return f" {match[0][dash.end() :]}" if dash else " "


def _said(match: re.Match[str]) -> NumberInText:
    digits = re.sub(r"[, \u202f]", "", match["digits"])
    exponent = (match["exponent"] or match["power"] or "0").replace("−", "-")
    unit = (match["unit"] or "").strip()
    scale = _UNITS.get(unit, 1.0) * float(f"1e{exponent}")  # infinite, not an error, where there are too many digits
    places = len(digits.partition(".")[2])
    sign = -1.0 if match["sign"] in ("-", "−") else 1.0
    return NumberInText(
        text=match[0].strip(),
        value=sign * float(digits) * scale,
        half=0.5 * float(f"1e-{places}") * scale,
        signed=match["sign"] is not None,
        whole=places == 0 and scale == 1.0,
        percent=unit in ("%", "percent"),
    )


def _same(number: NumberInText, value: float) -> bool:
    candidates = [value, 100.0 * value] if number.percent else [value]
    return any(_near(number, one) for one in candidates if math.isfinite(one))


def _near(number: NumberInText, value: float) -> bool:
    if not number.signed:
        value = abs(value)  # "fell by 0.5" of a change of −0.5
    if number.whole and not number.percent and not value.is_integer() and abs(value) < _ROUNDED_FROM:
        return False
    room = number.half * (1 + 1e-6) + 1e-9 * abs(value)
    if number.whole and value.is_integer() and not number.percent:
        room = 1e-9 * abs(value)
    return abs(number.value - value) <= room
