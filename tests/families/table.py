"""What came of every family and operator, as it is kept; and the command that finds it out anew.

    PYTHONPATH=src:tests python tests/families/table.py [FAMILY …]

runs the whole product (some minutes), or that of the families named, and writes `outcomes.json` beside this file, from
which `docs/generate.py` makes the table of `docs/prune.md`. The tests run a part of it (`chosen`).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from families.contract import ALL, made, outcome
from families.kinds import FAMILIES

KEPT = Path(__file__).with_name("outcomes.json")
HOLDS = "holds"
#: Families without experts: nothing is refused, and nothing can be shown.
NONE = "cannot go: it has none"


def outcomes() -> dict[str, dict[str, str]]:
    """Family → operator → `holds`, or `refused: ` and why."""
    found: dict[str, dict[str, str]] = json.loads(KEPT.read_text(encoding="utf-8"))
    return found


def chosen() -> list[tuple[str, tuple[str, ...]]]:
    """Each family with two operators, so that each operator meets every fourth family; of mixtures experts too."""
    every = [operator for operator in ALL if operator != "experts"]
    count, kept = len(every), outcomes()
    found = {name: (every[place % count], every[(place + count // 2) % count]) for place, name in enumerate(FAMILIES)}
    more = {name: ("experts",) for name in FAMILIES if not kept[name]["experts"].endswith(NONE)}
    return [(name, (*operators, *more.get(name, ()))) for name, operators in found.items()]


def of_family(name: str, operators: tuple[str, ...], folder: Path) -> dict[str, str]:
    """The outcomes of one family."""
    found = made(name, folder / "model")
    return {operator: outcome(found, operator, folder / operator) for operator in operators}


def table() -> str:
    """For the documentation: a row for each family."""
    kept = outcomes()
    lines = [f"| family | {' | '.join(ALL)} |", "| --- |" + " --- |" * len(ALL)]
    for name in FAMILIES:
        cells = [_cell(kept[name][operator]) for operator in ALL]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(what: str) -> str:
    return "✓" if what == HOLDS else "–" if what.endswith(NONE) else "refused"


def reasons() -> str:
    """What is refused, and with which words."""
    by_words: dict[tuple[str, str], list[str]] = {}
    for name, found in outcomes().items():
        for operator, what in found.items():
            if what != HOLDS and not what.endswith(NONE):
                by_words.setdefault((operator, what.removeprefix("refused: ")), []).append(name)
    return "\n".join(
        f"- {operator}, {', '.join(names)}: {what}" for (operator, what), names in sorted(by_words.items())
    )


def main(names: list[str]) -> int:
    """Run, write, and say what broke."""
    kept = outcomes() if KEPT.is_file() else {}
    broken = 0
    for name in names or list(FAMILIES):
        with tempfile.TemporaryDirectory() as folder:
            try:
                kept[name] = of_family(name, ALL, Path(folder))
            except AssertionError as error:
                broken += 1
                print(f"{name}: the contract is broken: {error}", file=sys.stderr)
        print(f"{name}: {sum(what == HOLDS for what in kept.get(name, {}).values())} of {len(ALL)} hold")
    ordered = {name: kept[name] for name in FAMILIES if name in kept}
    KEPT.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
