"""Every checkpoint of the zoo: what is measured is what its layers apply, in files and in memory."""

from __future__ import annotations

import warnings

import pytest

from zoo.entry import Entry
from zoo.laws import examine
from zoo.table import entries, shares

ENTRIES = entries()


def _param(entry: Entry) -> object:
    marks = [pytest.mark.xfail(reason=entry.pending, strict=False)] if entry.pending else []
    return pytest.param(entry, id=f"{entry.kind}-{entry.name}".replace(" ", "_"), marks=marks)


@pytest.mark.parametrize("entry", [_param(entry) for entry in ENTRIES])
def test_is_read_as_its_layers_act(entry, tmp_path, record_property):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that build models
        specimen = entry.build(tmp_path)
    findings = examine(entry, specimen)
    record_property("zoo", [entry.kind, entry.name, findings.measured, findings.named, findings.proved])
    assert not findings.faults, "\n".join(findings.faults)
    measured, named = shares().get(f"{entry.kind}: {entry.name}", (1.0, 1.0))
    assert findings.measured >= measured - 1e-4, f"{findings.measured:.4f} of it is measured, and was {measured}"
    assert findings.named >= named - 1e-4, f"{findings.named:.4f} of what is measured has a role, and was {named}"


def test_the_names_of_entries_are_unique():
    names = [(entry.kind, entry.name) for entry in ENTRIES]
    assert len(set(names)) == len(names) >= 120
