"""The report is one file that loads nothing, holds every layer, and stays small."""

from __future__ import annotations

import base64
import gzip
import html as text_of
import json
import re

import pytest

from tailwise.core.errors import UsageError
from tailwise.report.html import report, write_report
from tailwise.report.page_data import MOST_PAGES
from tailwise.report.shell import bundle


def data_of(page: str, name: str):
    kind, text = re.search(
        rf'<script type="application/(json|gzip)" id="{name}">(.*?)</script>', page, re.DOTALL
    ).groups()
    return json.loads(gzip.decompress(base64.b64decode(text)) if kind == "gzip" else text)


def names_in(page: str) -> list[str]:
    layers = data_of(page, "layers")
    return [row[layers["columns"].index("name")] for row in layers["rows"]]


@pytest.fixture(scope="module")
def page(audit) -> str:
    return report([audit])


def test_the_page_loads_nothing_from_anywhere(page):
    own = page.replace(bundle(), "")
    assert not re.findall(r"<(?:script|link|img|iframe|object)\b[^>]*\b(?:src|href)=[^>]*>", own)
    assert "@import" not in own
    assert "url(" not in own
    assert not re.findall(r"fetch\(|XMLHttpRequest|\bimport\(", own)
    assert re.search(r"Content-Security-Policy\" content=\"default-src 'none'", page)
    assert "unsafe-eval" not in page


def test_the_page_is_whole_and_its_scripts_end_where_they_should(page):
    assert page.startswith("<!doctype html>")
    assert page.endswith("</html>")
    assert page.count("<script") == page.count("</script>") == 6


def test_findings_come_first_and_every_layer_is_there(page, audit):
    assert page.index('id="findings"') < page.index('id="alpha"') < page.index('id="table"')
    assert set(names_in(page)) == {row.name for row in audit.rows}
    assert "model.norm.weight" in page
    from tailwise.judging.diagnosis.diagnose import diagnose

    for finding in diagnose(audit).findings:
        assert finding.code in page
        assert text_of.escape(finding.title) in page


def test_every_figure_has_its_figure_and_says_in_words_what_it_shows(page):
    places = re.findall(r'data-chart="([^"]+)"[^>]* role="img" aria-label="([^"]+)"', page)
    specs = data_of(page, "specs")
    assert {name for name, _ in places} == set(specs)
    assert all("Good:" in label and "Bad:" in label for _, label in places)
    assert len(specs) >= 22


def test_the_layers_are_embedded_once(page):
    assert "layers" not in {name for spec in data_of(page, "specs").values() for name in spec["datasets"]}


def test_what_the_audit_lacks_is_said_quietly(plain):
    page = report([plain])
    assert "needs --randomize" in page
    assert 'data-chart="traps_hist"' not in page


def test_several_audits_stand_side_by_side_and_against_their_base(audit, base):
    page = report([audit, base], base=base)
    specs = data_of(page, "specs")
    assert {"models_alpha_by_layer", "models_rank", "base_alpha-0", "delta_rank-0"} <= set(specs)
    assert "Identical to the base" in page


def test_a_name_cannot_break_out_of_the_page(audit):
    from dataclasses import replace

    from tailwise.audits.audit import Audit

    evil = "</script><img src=x onerror=alert(1)>"
    layers = {}
    for layer in audit:
        name = evil if not layers else layer.row.name
        layers[name] = replace(layer, row=replace(layer.row, name=name))
    facts = replace(audit.provenance, model=f"models/{evil}", notes=(evil,))
    page = report([Audit([layer.row for layer in layers.values()], layers, facts)])
    assert "<img" not in page.replace(bundle(), "")
    assert page.count("<script") == page.count("</script>") == 6
    assert evil in names_in(page)


def test_three_hundred_layers_are_under_three_megabytes(large, tmp_path):
    path = write_report([large(300)], tmp_path / "report.html")
    assert path.stat().st_size < 3_000_000
    assert len(data_of(path.read_text(encoding="utf-8"), "pages")) == 300


def test_thousands_of_layers_are_written_with_the_pages_that_matter(large):
    page = report([large(3_000)])
    assert len(page.encode()) < 6_000_000
    assert len(names_in(page)) == 3_000
    assert len(data_of(page, "pages")) == MOST_PAGES


def test_another_suffix_is_refused_before_the_work(audit, tmp_path):
    with pytest.raises(UsageError, match="suffix"):
        write_report([audit], tmp_path / "report.docx")


def test_the_verdict_and_the_map_come_before_everything(page, audit):
    """What a newcomer sees first: one line, then a picture."""
    order = [page.index(part) for part in ('class="health', 'id="map"', 'id="findings"', 'id="alpha"')]
    assert order == sorted(order)
    from tailwise.judging.diagnosis.diagnose import diagnose

    assert diagnose(audit).health.why[:20] in page
