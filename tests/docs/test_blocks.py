"""Every command and every Python block of README and documentation, run in order from a folder with the examples only.

A block that cannot be run here has the reason in a comment above it, `<!-- not run: … -->`; its options are still
looked up, and its Python compiled. A text block that directly follows is what is printed: each of its lines must be
among the output's (`…` stands for lines left out).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from doc_blocks import Block, blocks_of, commands_in

pytestmark = pytest.mark.filterwarnings("default")

ROOT = Path(__file__).resolve().parents[2]
#: Written from code, or whose blocks have a test of their own: signatures, usage lines, and the
#: modules that `tests/test_extending.py` installs as a package.
OTHERWISE = {"docs/api.md", "docs/commands.md", "docs/charts.md", "docs/extending.md"}
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "README.md")
         if str(path.relative_to(ROOT)) not in OTHERWISE]  # fmt: skip
RUN = ("bash", "python")
#: What the README's own install does not bring: its commands must do without.
NOT_IN_README = ("gguf", "onnx", "h5py", "compressed_tensors", "torch_pruning", "sqlalchemy", "ruptures", "lm_eval",
                 "fastapi", "openai", "mcp", "distributed", "ray")  # fmt: skip
BLOCKS = {path: [block for block in blocks_of(path, ROOT) if block.kind in RUN] for path in PAGES}
WITH_BLOCKS = [path for path, blocks in BLOCKS.items() if any(block.not_run is None for block in blocks)]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Spectra that pages share: a page is right by itself, and the same spectra are not computed twenty times."""
    return tmp_path_factory.mktemp("pages-cache")


@pytest.mark.parametrize("path", WITH_BLOCKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_runs_from_top_to_bottom(path, tmp_path, monkeypatch, capsys, command_line, cache):
    folder = tmp_path / "clean"
    folder.mkdir()
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TAILWISE_CACHE", str(cache))
    monkeypatch.setenv("COLUMNS", "130")
    monkeypatch.setenv("NO_COLOR", "1")
    for name in NOT_IN_README if path.name == "README.md" and path.parent == ROOT else ():
        monkeypatch.setitem(sys.modules, name, None)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in BLOCKS[path]:
        if block.not_run is not None:
            continue
        printed = (
            run_shell(block, monkeypatch, command_line) if block.kind == "bash" else run_python(block, names, capsys)
        )
        if block.printed is not None:
            missing = [line for line in shown(block.printed) if line not in shown(printed)]
            assert not missing, f"{block.page}:{block.line} prints\n{printed}"


def shown(text: str) -> list[str]:
    """Lines as they are compared: runs of blanks are one, and lines that stand for left-out ones are not compared."""
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.splitlines())
    return [line for line in lines if line and line != "…"]


def run_python(block: Block, names: dict[str, object], capsys) -> str:
    exec(compile(block.body, f"{block.page}:{block.line}", "exec"), names)
    return capsys.readouterr().out


def run_shell(block: Block, monkeypatch, command_line) -> str:
    printed = ""
    for line in commands_in(block.body):
        words = shlex.split(line)
        expected = 0
        if words[-2:-1] == ["||"]:  # `tailwise check … || true`: a gate that is meant to fail
            words, expected = words[:-2], 1
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            monkeypatch.setenv(name, value)
        elif words[0] == "tailwise" and not set(words) & {"|", ">", "&&"}:
            code, out, err = command_line(*words[1:])
            said = out + err
            printed += said
            assert code == expected, f"{block.page}:{block.line}: {line} ends with {code}\n{said}"
        else:
            printed += run_other(block, line)
    return printed


def run_other(block: Block, line: str) -> str:
    """A line of any other program, in a shell whose `python` and `tailwise` are this one's."""
    programs = Path.cwd().parent / "programs"
    programs.mkdir(exist_ok=True)
    for name, arguments in (("python", ""), ("tailwise", "-P -m tailwise ")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        (programs / name).chmod(0o755)
    place = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(["bash", "-ec", line], capture_output=True, text=True, env=os.environ | place, check=False)
    assert done.returncode == 0, f"{block.page}:{block.line}: {line} ends with {done.returncode}\n{done.stderr}"
    return done.stdout + done.stderr


LEFT = [block for blocks in BLOCKS.values() for block in blocks if block.not_run is not None]


@pytest.mark.parametrize("block", LEFT, ids=lambda block: f"{block.page}:{block.line}")
def test_a_block_that_is_not_run_has_commands_that_are_there(block):
    assert len(block.not_run) > 8, "say why"
    if block.kind == "python":
        compile(block.body, block.page, "exec")
        return
    for line in commands_in(block.body):
        if line.startswith("tailwise "):
            known = known_options(line)
            given = {word.partition("=")[0] for word in shlex.split(line) if word.startswith("--")}
            assert given <= known, f"{block.page}:{block.line}: {line}"


def known_options(line: str) -> set[str]:
    """The options of the command that a line calls, and of tailwise itself."""
    import typer

    from tailwise.cli.main import app

    command = typer.main.get_command(app)
    found = {"--version", "--help"}
    for word in shlex.split(line)[1:]:
        inner = getattr(command, "commands", {})
        if word not in inner:
            break
        command = inner[word]
    else:
        word = ""
    assert not getattr(command, "commands", {}) or word.startswith("-") or not word, f"no such command: {line}"
    return found | {name for item in command.params for name in (*item.opts, *item.secondary_opts)}


#: Files that a page names in code font as lying in the repository.
_PROMISED = re.compile(r"`((?:examples|benchmarks|scripts|tests|src|docs)/[\w./*-]+)`")


@pytest.mark.parametrize("path", [*PAGES, ROOT / "docs" / "extending.md"], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_that_a_page_names_is_there(path):
    named = set(_PROMISED.findall(path.read_text(encoding="utf-8")))
    assert not [name for name in sorted(named) if not list(ROOT.glob(name.rstrip("/")))]
