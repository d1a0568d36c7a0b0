"""What other tools read: the GitHub Action, the pre-commit hook, the MCP registry, agents, the Hub's command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
SERVER = json.loads((ROOT / "server.json").read_text(encoding="utf-8"))


def options_of(name):
    import typer

    from tailwise.cli.main import app

    return {
        flag
        for item in typer.main.get_command(app).commands[name].params
        for flag in (*item.opts, *item.secondary_opts)
    }


def test_the_hubs_command_line_finds_its_script():
    # An extension `hf NAME` is the console script hf-NAME of a package.
    assert PROJECT["scripts"]["hf-tailwise"] == PROJECT["scripts"]["tailwise"]


def test_every_step_of_the_action_has_a_shell_and_no_input_is_text_of_a_script():
    assert ACTION["runs"]["using"] == "composite"
    for step in ACTION["runs"]["steps"]:
        assert ("uses" in step) != ("run" in step)
        if "run" in step:
            assert step["shell"] == "bash"
            assert "${{" not in step["run"]
    used = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text(encoding="utf-8")))
    assert used == set(ACTION["inputs"])
    assert all("description" in item for item in (*ACTION["inputs"].values(), *ACTION["outputs"].values()))


@pytest.fixture
def programs(tmp_path):
    """A folder with a `tailwise` that is this one."""
    folder = tmp_path / "programs"
    folder.mkdir()
    script = folder / "tailwise"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m tailwise "$@"\n')
    script.chmod(0o755)
    return folder


@pytest.fixture
def gate(tmp_path, programs, monkeypatch):
    """A folder with a small model, its audit, and expectations that it meets."""
    import numpy as np

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    rng = np.random.default_rng(0)
    np.savez("model.npz", **{f"layers.{index}.up_proj.weight": rng.normal(size=(96, 64)) for index in range(3)})
    for line in ("audit model.npz -o model.audit", "check --init model.audit -o gates.toml"):
        subprocess.run(["tailwise", *line.split()], check=True, capture_output=True)
    return tmp_path


def test_the_scripts_of_the_action_run(gate):
    audit, check = ACTION["runs"]["steps"][2:]
    values = {"MODEL": "model.npz", "AUDIT": "again.audit", "EXPECTATIONS": "gates.toml", "MARKDOWN": "comment.md",
              "SARIF": "x.sarif", "BASELINE": "", "JUNIT": "", "BADGE": ""}  # fmt: skip
    for step in (audit, check):
        env = os.environ | {name: values[name] for name in step["env"] if name in values}
        subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], env=env, check=True, capture_output=True)
    assert Path("comment.md").stat().st_size
    assert Path("x.sarif").stat().st_size
    assert set(re.findall(r"--[a-z-]+", check["run"])) <= options_of("check")


def test_the_hook_passes_and_fails_as_the_gate_does(gate):
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert hook["language"] == "script"
    script = ROOT / hook["entry"]
    assert os.access(script, os.X_OK)
    assert re.search(hook["files"], "models/a.audit")
    subprocess.run([script, "gates.toml", "model.audit", "model.audit"], check=True, capture_output=True)
    Path("strict.toml").write_text('expect = ["alpha < 0"]\n')
    failed = subprocess.run([script, "strict.toml", "model.audit"], check=False, capture_output=True)
    assert failed.returncode == 1


def test_a_repository_with_the_hook_is_taken_by_pre_commit(gate):
    pytest.importorskip("pre_commit", reason="needs pre-commit")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
    hooks, user = gate / "hooks", gate / "user"
    for folder in (hooks, user):
        folder.mkdir()
        subprocess.run([*git, "init", "-q", folder], check=True)
    shutil.copy(ROOT / ".pre-commit-hooks.yaml", hooks)
    shutil.copytree(ROOT / "scripts", hooks / "scripts")
    subprocess.run([*git, "-C", hooks, "add", "-A"], check=True)
    subprocess.run([*git, "-C", hooks, "commit", "-qm", "hooks"], check=True)
    (user / "gate").mkdir()
    shutil.copy("gates.toml", user / "gate" / "expectations.toml")
    shutil.copy("model.audit", user / "gate")  # the baseline lies beside the expectations
    subprocess.run([*git, "-C", user, "add", "-Af"], check=True)
    command = [sys.executable, "-m", "pre_commit", "try-repo", str(hooks), "tailwise-check", "--all-files"]
    done = subprocess.run(command, cwd=user, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Passed" in done.stdout


def test_the_entry_of_the_registry_has_what_its_schema_asks_for():
    # By hand: the schema itself is at an address. A package takes no other fields than these.
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", SERVER["name"])
    assert 1 <= len(SERVER["description"]) <= 100
    (package,) = SERVER["packages"]
    needed = {"registryType", "identifier", "version", "transport"}
    more = {
        "registryBaseUrl",
        "fileSha256",
        "runtimeHint",
        "runtimeArguments",
        "packageArguments",
        "environmentVariables",
    }
    assert needed <= set(package) <= needed | more
    assert not any(sign in package["version"] for sign in "^~<>*")
    assert package["transport"] == {"type": "stdio"}
    for item in (*package["runtimeArguments"], *package["packageArguments"]):
        assert "name" in item if item["type"] == "named" else {"value", "valueHint"} & set(item)
        assert item.get("format", "string") in ("string", "number", "boolean", "filepath")


def test_the_entry_of_the_registry_is_this_package_and_its_command():
    package = SERVER["packages"][0]
    assert SERVER["version"] == package["version"] == PROJECT["version"]
    assert package["identifier"] == PROJECT["name"]
    assert package["runtimeArguments"][0]["value"] == f"tailwise[mcp]=={PROJECT['version']}"
    assert package["packageArguments"][0]["value"] == "mcp"
    named = {item["name"] for item in package["packageArguments"] if item["type"] == "named"}
    assert named <= options_of("mcp")


def test_the_version_that_is_cited_is_the_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(cited)
    assert str(cited["version"]) == PROJECT["version"]
    assert cited["license"] == PROJECT["license"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"version = {{{PROJECT['version']}}}" in readme
    assert cited["title"] in readme


def test_what_agents_read_names_commands_and_pages_that_are_there():
    skill = (ROOT / "skills" / "tailwise" / "SKILL.md").read_text(encoding="utf-8")
    head = yaml.safe_load(skill.split("---")[1])
    assert head["name"] == "tailwise"
    assert len(head["description"]) <= 1024
    for name, line in re.findall(r"`tailwise (\w+)([^`]*)`", skill):
        if name not in ("COMMAND", "plan"):
            assert set(re.findall(r"--[a-z][a-z-]+", line)) <= options_of(name)
    index = (ROOT / "docs" / "llms.txt").read_text(encoding="utf-8")
    assert index.startswith("# tailwise\n\n> ")
    pages = re.findall(r"\]\(([\w-]+\.md)\)", index)
    assert len(pages) > 15
    assert all((ROOT / "docs" / page).is_file() for page in pages)
