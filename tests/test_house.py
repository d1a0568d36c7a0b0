"""The house as docs/architecture.md promises it: rooms, sizes, names, no circle; imports in functions count."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tailwise

HOME = Path(tailwise.__file__).parent
FILES = sorted(HOME.rglob("*.py"))
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}


def name_of(file: Path) -> str:
    parts = file.relative_to(HOME.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in FILES}


def run_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but what only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from run_nodes(child)


def imported(file: Path) -> set[str]:
    found: set[str] = set()
    for node in run_nodes(TREES[file]):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{file}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys() or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & MODULES.keys()) - {name_of(file)}


def test_no_circle_of_imports():
    graph = {name_of(file): imported(file) for file in FILES}
    with pytest.raises(CycleError):  # one that is there is found
        TopologicalSorter({**graph, "a": {"b"}, "b": {"a"}}).prepare()
    TopologicalSorter(graph).prepare()


def test_thirteen_rooms_at_most():
    assert len({file.relative_to(HOME).parts[0] for file in FILES if file.parent != HOME}) <= 13


def test_a_file_reads_in_one_sitting():
    assert {str(file) for file in FILES if len(file.read_text(encoding="utf-8").splitlines()) > 500} == set()


@pytest.mark.parametrize(("what", "most"), [("classes", 20), ("files", 40)])
def test_one_name_has_one_meaning(what, most):
    if what == "classes":
        names = [node.name for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    else:
        names = [file.stem for file in FILES if file.stem not in ("__init__", "__main__")]
    counts = {name: count for name, count in Counter(names).items() if count > 1}
    assert sum(counts.values()) < most, counts
