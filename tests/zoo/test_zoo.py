"""Every checkpoint of the zoo: what is measured is what its layers apply, in files and in memory."""

from __future__ import annotations

import warnings

import pytest

from zoo.entry import Entry
from zoo.laws import examine
from zoo.table import entries, fallen, key_of, shares

ENTRIES = entries()


def _param(entry: Entry) -> object:
    marks = [pytest.mark.xfail(reason=entry.pending, strict=False)] if entry.pending else []
    return pytest.param(entry, id=f"{entry.kind}-{entry.name}".replace(" ", "_"), marks=marks)


@pytest.mark.parametrize("entry", [_param(entry) for entry in ENTRIES])
def test_is_read_as_its_layers_act(entry, tmp_path, record_property):
    if entry.needs:
        pytest.importorskip(entry.needs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that build models
        specimen = entry.build(tmp_path)
    findings = examine(entry, specimen)
    record_property("zoo", [entry.kind, entry.name, findings.measured, findings.named, findings.proved])
    assert not findings.faults, "\n".join(findings.faults)
    assert not fallen(entry, findings, shares())


def test_a_share_is_kept_of_every_entry_that_comes_right():
    assert {key_of(entry) for entry in ENTRIES if not entry.pending} <= set(shares())


def test_the_names_of_entries_are_unique():
    names = [(entry.kind, entry.name) for entry in ENTRIES]
    assert len(set(names)) == len(names) >= 120
