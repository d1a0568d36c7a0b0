"""Prints what share of the zoo is measured."""

from __future__ import annotations

from collections import defaultdict


def pytest_terminal_summary(terminalreporter):
    rows = defaultdict(list)
    for report in (r for reports in terminalreporter.stats.values() for r in reports):
        for name, value in getattr(report, "user_properties", ()):
            if name == "zoo" and report.when == "call":
                rows[value[0]].append(value[2:])
    if rows:
        terminalreporter.section("the zoo: shares of the parameters")
        for kind, values in rows.items():
            measured, named, proved = (sum(column) / len(values) for column in zip(*values, strict=True))
            terminalreporter.write_line(
                f"{kind}: {len(values)} entries, {measured:.1%} measured, of that {named:.1%} with a role, "
                f"{proved:.1%} held against a live layer"
            )
