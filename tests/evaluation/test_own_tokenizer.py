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

    def loaded(normalizer):
        file = place / "tokenizer.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "normalizer": normalizer}))
        return load_tokenizer(place)

    return loaded


@pytest.mark.parametrize("kind", USUAL)
def test_what_models_carry_is_used(load, kind):
    assert load(USUAL[kind])("a cat")["input_ids"]


@pytest.mark.parametrize("kind", GROWING)
def test_what_grows_without_measure_is_refused(load, kind):
    with pytest.raises(UnreadableError, match="times as long"):
        load(GROWING[kind])
