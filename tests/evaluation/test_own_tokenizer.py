"""A tokenizer that came with a model does not make a text grow without measure."""

import json
import shutil
from types import SimpleNamespace

import pytest

from tailwise.core.errors import UnreadableError
from tailwise.models.evaluation import own_tokenizer
from tailwise.models.evaluation.loading import load_tokenizer
from tailwise.models.evaluation.sources import Documents
from tailwise.models.evaluation.tokens import tokens_of

pytest.importorskip("transformers")


def replacing(content, **pattern):
    return {"type": "Replace", "pattern": pattern, "content": content}


USUAL = {
    "none": None,
    "of sentences' pieces": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                                                                 replacing("▁", String=" ")]},
    "of spaces": {"type": "Sequence", "normalizers": [{"type": "NFC"}, replacing(" ", Regex=r"\s+"),
                                                      {"type": "Lowercase"}]},
    "of tabs": replacing("        ", String="\t"),
}  # fmt: skip
GROWING = {
    "doubling": {"type": "Sequence", "normalizers": [replacing("aa", String="a")] * 28},
    "doubling within": {"type": "Sequence", "normalizers": [
        {"type": "Sequence", "normalizers": [replacing("aa", String="a")] * 14}] * 2},
    "at once": replacing("a" * 10**6, String="a"),
    "any": replacing("a" * 10**6, Regex="."),
    "nothing": {"type": "Sequence", "normalizers": [replacing("abc", String="")] * 9},
    "many": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 5000},
}  # fmt: skip


@pytest.fixture
def load(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "model")

    def loaded(normalizer, **more):
        file = place / "tokenizer.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "normalizer": normalizer, **more}))
        return load_tokenizer(place)

    return loaded


@pytest.mark.parametrize("kind", USUAL)
def test_what_models_carry_is_used(load, kind):
    assert load(USUAL[kind])("a cat")["input_ids"]


@pytest.mark.parametrize("kind", GROWING)
def test_what_grows_without_measure_is_refused(load, kind):
    with pytest.raises(UnreadableError, match="times as long"):
        load(GROWING[kind])


def test_a_table_that_is_only_claimed_is_not_made_room_for(load):
    with pytest.raises(UnreadableError, match="not as long as it says"):
        load({"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": "AAAA/////w=="}]})


def template(pieces, ids):
    special = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    known = {"<s>": {"id": "<s>", "ids": [1] * ids, "tokens": ["a"] * ids}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {"type": "TemplateProcessing", "single": [special] * pieces + [text], "pair": [text, {"Sequence": {
        "id": "B", "type_id": 0}}], "special_tokens": known}  # fmt: skip


def test_tokens_around_a_text_are_bounded(load):
    assert load(None, post_processor=template(1, 1))("a")["input_ids"][0] == 1
    with pytest.raises(UnreadableError, match="to every text"):
        load(None, post_processor={"type": "Sequence", "processors": [template(500, 500)]})


class Slow:
    """A tokenizer that takes so many seconds of a clock for a letter, or for the square of a text's length."""

    def __init__(self, monkeypatch, pace):
        self.now, self.pace, self.given = 0.0, pace, []
        monkeypatch.setattr(own_tokenizer, "time", SimpleNamespace(thread_time=lambda: self.now))

    def __call__(self, text):
        self.given.append(text)
        self.now += self.pace(text)
        return {"input_ids": [0] * len(text)}


@pytest.mark.parametrize(
    "pace", [lambda text: 0.07 * len(text), lambda text: 1e-5 * len(text) ** 2, lambda text: 0.2 * text.count("b")],
    ids=["each place", "the square", "some letters"],
)  # fmt: skip
def test_a_tokenizer_without_pace_is_told_before_it_is_given_the_text(monkeypatch, pace):
    slow = Slow(monkeypatch, pace)
    with pytest.raises(UnreadableError, match=r"takes \d+ seconds for \d+ letters"):
        tokens_of(Documents(("abc" * 100_000,), "text"), slow)
    assert sum(map(len, slow.given)) < 10_000
    assert slow.now < 60


@pytest.mark.parametrize("letters", [1, 64, 100, 300_000])
def test_a_slow_tokenizer_of_a_model_is_used(monkeypatch, letters):
    slow = Slow(monkeypatch, lambda text: 1e-3 * len(text))
    assert len(tokens_of(Documents(("a" * letters,), "text"), slow).ids) == letters


def test_pieces_are_of_the_longest_text_and_twice_as_long_each_time(monkeypatch):
    slow = Slow(monkeypatch, lambda text: 0.0)
    long = "".join(chr(0x4E00 + n % 20_000) for n in range(50_000))
    own_tokenizer.check_pace(slow, ["a", long, "b" * 100], "text")
    pieces = slow.given[1:]
    assert [len(piece) for piece in pieces] == [64, 128, 256, 512, 1024, 2048, 4096]
    assert all(piece in long for piece in pieces)
    assert len({piece[0] for piece in pieces}) == 7


def test_tokens_of_a_gguf_file_that_would_be_taken_apart_without_end_are_refused(tmp_path):
    file = tmp_path / "x.gguf"
    own_tokenizer.check_tokens(["a" * 200] * 1000, file)
    own_tokenizer.check_tokens(None, file)
    for tokens in (["a", "b" * 5000], ["a" * 2000] * 100):
        with pytest.raises(UnreadableError, match=r"a piece of 5000 letters|far more and longer tokens"):
            own_tokenizer.check_tokens(tokens, file)
