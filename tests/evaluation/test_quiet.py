"""Bars of other libraries while a model is loaded."""

from __future__ import annotations

from tqdm import tqdm

from tailwise.models.evaluation.quiet import quiet


def test_bars_that_nothing_switches_off_are_not_drawn_for_a_while(capsys) -> None:
    with quiet():
        assert list(tqdm(range(3), desc="Decompressing model")) == [0, 1, 2]
        for _ in tqdm(range(3), desc="our own", disable=False):
            pass
    for _ in tqdm(range(3), desc="afterwards"):
        pass
    err = capsys.readouterr().err
    assert "Decompressing" not in err
    assert "our own" in err
    assert "afterwards" in err
