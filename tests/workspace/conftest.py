"""A folder with an audit, one in a folder, and two files that are none."""

import numpy as np
import pytest

import tailwise as tw


@pytest.fixture
def audit():
    rng = np.random.default_rng(0)
    return tw.audit(
        {f"layers.{i}.mlp.up_proj.weight": rng.standard_normal((32, 64)) for i in range(2)}, use_cache=False
    )


@pytest.fixture
def folder(tmp_path, audit):
    audit.save(tmp_path / "one.audit")
    (tmp_path / "runs").mkdir()
    audit.save(f"{tmp_path}/runs/two/")
    (tmp_path / "notes.json").write_text("{}")
    (tmp_path / "broken.audit").write_text("no zip")
    return tmp_path
