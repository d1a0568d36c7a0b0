"""A text divided in three: to train on, to choose by, and to judge by."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tailwise.core.errors import UsageError
from tailwise.models.evaluation.intervals import MIN_VALUES
from tailwise.models.evaluation.sources import Documents, documents_of
from tailwise.models.evaluation.tokens import TOKEN_SUFFIXES, Tokens, tokens_of, windows_of

#: Of the text: what quality before and after is measured on, and what the best state is chosen by.
HELD_OUT_SHARE, GUARD_SHARE = 0.10, 0.05
#: Fewest windows of each, and most: more of them cost time and say little more.
HELD_OUT = (MIN_VALUES, 48)
GUARD = (4, 16)
LEAST_TRAINING = 16  # heuristic: on fewer windows a model learns them by heart
_CHARACTERS = 5  # of a token, at most, in common text: bounds how much text is set apart


@dataclass(frozen=True)
class Split:
    """What is trained on and what is kept out of it."""

    train: torch.Tensor  # (tokens,)
    guard: torch.Tensor  # (n, window)
    held_out: torch.Tensor  # (n, window)
    name: str
    notes: tuple[str, ...] = ()


def split_text(source: Any, tokenizer: Any, window: int, seed: int = 0) -> Split:
    """Divide what `tokens_of` takes.

    Of many documents, whole ones are drawn for each part, so that no document is in two. Of one document or a run
    of token ids, the last tokens are kept out. `UsageError` where the text is too short for the three parts.
    """
    parts = list(source) if isinstance(source, list | tuple) else [source]
    documents = _documents(parts)
    if documents is not None:
        split = _by_document(documents, tokenizer, window, seed)
        if split is not None:
            return split
    return _by_place(tokens_of(source, tokenizer), window, seed)


def _documents(parts: Sequence[Any]) -> Documents | None:
    """All documents, or None for token ids, which have none."""
    if not all(isinstance(part, str | os.PathLike | Documents) for part in parts):
        return None
    if any(not isinstance(part, Documents) and Path(part).suffix in TOKEN_SUFFIXES for part in parts):
        return None
    documents = [documents_of(part) for part in parts]
    texts = tuple(text for item in documents for text in item.texts)
    notes = tuple(note for item in documents for note in item.notes)
    name = documents[0].name if len(documents) == 1 else f"{documents[0].name} and {len(documents) - 1} more"
    return Documents(texts, name, notes)


def _by_document(documents: Documents, tokenizer: Any, window: int, seed: int) -> Split | None:
    """None where the documents are too few or too uneven to give each part enough."""
    order = np.random.default_rng(seed).permutation(len(documents.texts))
    shuffled = [documents.texts[index] for index in order]
    total = sum(len(text) for text in shuffled)
    held_out, rest = _drawn(shuffled, HELD_OUT_SHARE * total, HELD_OUT[1] * window * _CHARACTERS)
    guard, train = _drawn(rest, GUARD_SHARE * total, GUARD[1] * window * _CHARACTERS)
    runs = [_ids(texts, tokenizer, documents.name) for texts in (train, guard, held_out)]
    least = (LEAST_TRAINING, GUARD[0], HELD_OUT[0])
    if any(len(run) < count * window for run, count in zip(runs, least, strict=True)):
        return None
    notes = (
        f"{len(held_out)} of {len(shuffled)} documents are kept out of the training to measure quality, and "
        f"{len(guard)} others to choose the best state"
    )
    return Split(
        runs[0],
        windows_of(runs[1], window, GUARD[1], seed),
        windows_of(runs[2], window, HELD_OUT[1], seed),
        documents.name,
        (notes, *documents.notes),
    )


def _drawn(texts: Sequence[str], share: float, most: float) -> tuple[list[str], list[str]]:
    """Texts of `share` characters, `most` at most, and the others. A text that would be too much stays with those."""
    wanted, taken = min(share, most), 0
    chosen, others = list[str](), list[str]()
    for text in texts:
        take = taken < wanted and len(text) <= 2 * (wanted - taken)
        (chosen if take else others).append(text)
        taken += len(text) if take else 0
    return chosen, others


def _ids(texts: Sequence[str], tokenizer: Any, name: str) -> torch.Tensor:
    ids = tokens_of(Documents(tuple(texts), name), tokenizer).ids if texts else np.empty(0, dtype=np.int64)
    return torch.from_numpy(ids)


def _by_place(tokens: Tokens, window: int, seed: int) -> Split:
    count = len(tokens.ids) // window
    held_out = min(max(round(HELD_OUT_SHARE * count), HELD_OUT[0]), HELD_OUT[1])
    guard = min(max(round(GUARD_SHARE * count), GUARD[0]), GUARD[1])
    least = LEAST_TRAINING + GUARD[0] + HELD_OUT[0]
    if count < least:
        raise UsageError(
            f"the text fills {count} windows of {window} tokens; recovery takes {least} or more",
            where=tokens.name,
            fix="give more text, or a smaller --window",
        )
    ids = torch.from_numpy(tokens.ids)
    end = count - held_out
    middle = end - guard
    notes = (
        f"the last {held_out} of {count} windows are kept out of the training to measure quality, and the {guard} "
        "before them to choose the best state"
    )
    return Split(
        ids[: middle * window],
        windows_of(ids[middle * window : end * window], window, None, seed),
        windows_of(ids[end * window : count * window], window, None, seed),
        tokens.name,
        (notes, *tokens.notes),
    )
