"""The documentation agrees with the code, its links lead somewhere, and its Python runs."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ("commands.md", "metrics.md", "rules.md", "charts.md", "api.md", "formats.md", "plans.md", "checkpoints.md",
             "prune.md")  # fmt: skip
TEXTS = sorted(
    path
    for folder, pattern in (
        (ROOT, "*.md"),
        (ROOT / "docs", "**/*.md"),
        (ROOT / "examples", "**/*.md"),
        (ROOT / "benchmarks", "**/*.md"),
        (ROOT / "skills", "**/*.md"),
    )
    for path in folder.glob(pattern)
)
EXAMPLE = ROOT / "examples" / "pycode-8m"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_pages_are_these(generate):
    assert tuple(generate.pages()) == GENERATED


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_page_is_what_the_code_gives(generate, name):
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == generate.pages()[name], f"docs/{name} is stale: run python docs/generate.py"


def test_every_command_of_a_group_is_on_the_page_of_commands(generate):
    from tailwise.cli.main import app

    names = [name for name, _ in generate.commands_of(app)]
    assert {"audit", "plan prune", "plan show", "plan diff", "plan validate"} <= set(names)
    assert len(names) == len(set(names))


def test_every_option_of_the_command_line_is_on_its_page(generate):
    from typer.testing import CliRunner

    from tailwise.cli.main import app

    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for name, _ in generate.commands_of(app):
        result = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
        assert result.exit_code == 0
        shown = result.output
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        missing = set(re.findall(r"--[a-z][a-z-]+", shown)) - set(re.findall(r"--[a-z][a-z-]+", section)) - {"--help"}
        # What ends in a hyphen is a name that a narrow console has broken into two lines.
        assert not {name for name in missing if not name.endswith("-")}


def anchors(path: Path) -> set[str]:
    """Anchors of the headings, as GitHub and mkdocs make them for plain titles."""
    titles = re.findall(r"(?m)^#+ (.+)$", path.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_images_lead_somewhere(path):
    text = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def test_the_metric_of_a_page_measures(tmp_path):
    # A process of its own: the metric must not stay registered, and must work before the built-ins are loaded.
    use = """
import numpy as np
(layer,) = tw.audit({"w": np.diag(np.arange(1.0, 65.0))}, use_cache=False)
print(layer.spread)
"""
    script = tmp_path / "notebook.py"
    script.write_text(python_blocks(ROOT / "docs" / "extending.md")[0] + use, encoding="utf-8")
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) == pytest.approx((64 / 33) ** 2)


def test_the_readme_shows_lines_that_the_audit_prints(tmp_path):
    import tailwise as tw

    audit = tw.audit(
        str(EXAMPLE), cache_dir=tmp_path, layers=r"layers\.1\.(mlp\.gate|self_attn\.q)|layers\.0\.mlp\.down"
    )
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    for layer in audit:
        (line,) = [line for line in shown.splitlines() if line.startswith(layer.row.name + " ")]
        numbers = (layer.alpha, layer.alpha_sigma, layer.alpha_hill)
        assert all(f"{number:.2f}" in line for number in numbers)


def test_the_readme_has_each_command_on_one_line():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("audit", "test"):
        (block,) = re.findall(rf"<!-- {name} command -->\n```bash\n(.*?)\n```\n<!-- end -->", text, re.DOTALL)
        assert "\n" not in block
        assert block.startswith("python3 -m venv .venv && ")


@pytest.mark.parametrize("path", [*TEXTS, ROOT / "mkdocs.yml"], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_names_a_path_of_one_machine(path):
    assert not re.search(r"(?<![\w.])/(?:work|root|home|tmp)/", path.read_text(encoding="utf-8"))
