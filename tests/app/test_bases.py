"""What a model is held against: the audits that fit, the nearest weights first, and that none fits."""

from __future__ import annotations

import re

import numpy as np
import pytest
from fastapi.testclient import TestClient

import tailwise as tw
from tailwise.app.server import create_app
from tailwise.app.settings import AppSettings
from tailwise.app.workspace.workspace import Workspace

NAMES = [f"layers.{block}.mlp.up_proj.weight" for block in range(4)]


@pytest.fixture
def browse(tmp_path):
    """Saves audits of weights by name, and gives the model page of one of them."""
    rng = np.random.default_rng(0)
    start = {name: rng.standard_normal((80, 64)) for name in NAMES}

    def made(page: str, **kinds: dict[str, np.ndarray]) -> str:
        for title, weights in {**kinds}.items():
            tw.audit(weights, use_cache=False).save(tmp_path / f"{title}.audit")
        workspace = Workspace([tmp_path])
        server = create_app(workspace, AppSettings(state=tmp_path / "state"))
        client = TestClient(server, base_url="http://127.0.0.1:8440")
        return client.get(f"/models/{next(one.id for one in workspace.entries('audit') if one.title == page)}").text

    made.start = start  # type: ignore[attr-defined]
    return made


def scaled(weights: dict[str, np.ndarray], by: float) -> dict[str, np.ndarray]:
    return {name: array * by for name, array in weights.items()}


def chosen(page: str) -> list[str]:
    return re.findall(r"<option value=\"[^\"]+\" selected>([^<]*)</option>", page)


def groups(page: str) -> dict[str, list[str]]:
    found = re.findall(r'<optgroup label="([^"]*)">(.*?)</optgroup>', page, re.DOTALL)
    return {label: re.findall(r">([^<]+)</option>", body) for label, body in found}


def test_of_audits_that_fit_the_nearest_weights_are_chosen(browse):
    start = browse.start
    wider = {name: np.ones((96, 64)) + np.eye(96, 64) for name in NAMES}
    page = browse("tuned", tuned=scaled(start, 1.05), base=start, early=scaled(start, 0.1), copy=scaled(start, 1.05),
                  part={**wider, NAMES[0]: start[NAMES[0]]}, other=wider)  # fmt: skip
    assert chosen(page) == ["base"]
    assert groups(page) == {
        "The same matrices, nearest weights first": ["base", "early"],
        "Some of the matrices": ["part"],
        "The same weights": ["copy"],
        "No matrix in common": ["other"],
    }
    assert "All matrices match, its weights are the nearest." in page


def test_where_none_fits_that_is_said_and_none_is_chosen(browse):
    narrow = {name: np.eye(96, 70) + 0.1 for name in NAMES}
    page = browse("mine", mine=browse.start, other=narrow)
    assert not chosen(page)
    assert "The other audit has none of these matrices." in page
    third = browse("mine", third=scaled(narrow, 2.0))
    assert "None of the 2 other audits has a matrix of the same name and shape." in third


def test_a_single_audit_is_held_against_nothing(browse):
    assert "Against base" not in browse("mine", mine=browse.start)


def test_a_part_that_matches_says_how_much(browse):
    narrow = {name: np.eye(96, 70) + 0.1 for name in NAMES}
    page = browse("mine", mine=browse.start, half={**narrow, **{name: browse.start[name] for name in NAMES[:2]}})
    assert chosen(page) == ["half"]
    assert re.search(r"\d+ % of the matrices match\.", page)


def test_a_matrix_of_zeros_has_no_norm_to_be_near_by(browse):
    zeros = {**browse.start, NAMES[0]: np.zeros((80, 64))}
    page = browse("mine", mine=zeros, base=browse.start, far=scaled(browse.start, 3.0))
    assert chosen(page) == ["base"]
