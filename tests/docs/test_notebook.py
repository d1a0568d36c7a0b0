"""The notebook that is shipped runs from its first cell to its last, and says what the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("default")
ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = json.loads((ROOT / "examples" / "checkpoints.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("altair")
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(CODE):
        exec(compile(cell, f"checkpoints.ipynb, cell {number}", "exec"), names)
    assert capsys.readouterr().out.startswith("20 checkpoints, 2 matrices each")
    assert len(names["audits"]) == 20
    assert names["chart"].to_dict()["encoding"]["x"]["field"] == "step"
    # Trained on a teacher of rank 4, both matrices end with fewer directions than they began with.
    ranks = names["wide"]["stable_rank"]
    assert (ranks.loc[200] < ranks.loc[10]).all()


def test_the_notebook_is_kept_without_outputs():
    assert NOTEBOOK["nbformat"] == 4
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in NOTEBOOK["cells"]
               if cell["cell_type"] == "code")  # fmt: skip
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])


def test_the_notebook_has_the_code_of_its_page():
    page = (ROOT / "docs" / "notebook.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == len(CODE)
    for block, cell in zip(blocks, CODE, strict=True):
        assert block.strip().splitlines()[:-1] == cell.strip().splitlines()[:-1]
