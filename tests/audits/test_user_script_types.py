"""The package is typed: a user's script passes mypy --strict, and a wrong one does not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "src"


def checked(folder, *files):
    """What mypy says of files, with what it has found of this package kept between calls."""
    settings = folder / "mypy.ini"
    stubless = "[mypy-scipy.*,pandas.*,pyarrow.*,altair.*]\nignore_missing_imports = true\n"
    how = f"strict = true\nfollow_imports = silent\nmypy_path = {SOURCE}\ncache_dir = {folder}/cache\n"
    settings.write_text(f"[mypy]\n{how}{stubless}")
    done = subprocess.run([sys.executable, "-P", "-m", "mypy", "--config-file", str(settings), *map(str, files)],
                          capture_output=True, text=True, check=False, cwd=folder)  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    pytest.importorskip("mypy")
    folder = tmp_path_factory.mktemp("typed")
    wrong = folder / "wrong_script.py"
    wrong.write_text(
        "import tailwise as tw\n"
        "from tailwise.plans import Request\n"
        "tw.audit(3)\n"
        "tw.audit('m', estimatr='ks')\n"
        "tw.compare('a.audit', 'b.audit', level='high')\n"
        "Request(sparsity='half')\n"
        "tw.diagnose('a.audit').conclusion\n"
    )
    return checked(folder, HERE / "user_script.py", wrong)[1]


def test_the_package_says_that_it_is_typed():
    assert (SOURCE / "tailwise" / "py.typed").is_file()


def test_a_users_script_is_well_typed(said):
    assert [line for line in said.splitlines() if "user_script.py" in line] == []


def test_what_is_wrong_is_found(said):
    lines = {int(number) for number in re.findall(r"wrong_script\.py:(\d+): error", said)}
    assert lines == {3, 4, 5, 6, 7}
