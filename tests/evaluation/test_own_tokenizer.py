"""A tokenizer that came with a model does not make a text grow without measure."""

import json
import shutil

import pytest

from tailwise.core.errors import UnreadableError
from tailwise.models.evaluation.loading import load_tokenizer

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
