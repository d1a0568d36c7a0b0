"""Audits and spectra in an object store: an S3 on loopback, and fsspec's memory where S3 adds nothing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest

import tailwise as tw
from tailwise.audits.cache import Cache
from tailwise.audits.installation import check, clear
from tailwise.core.errors import UnreachableError
from tailwise.spectrum.spectrum import Spectrum

RNG = np.random.default_rng(3)
MODEL = {f"layers.{i}.mlp.up_proj.weight": RNG.standard_normal((40, 30)) for i in range(2)}


@pytest.fixture(scope="module")
def audit():
    return tw.audit(MODEL, use_cache=False)


def same(one: tw.Audit, other: tw.Audit) -> bool:
    equal = all(
        a.spectrum.eigenvalues.tobytes() == b.spectrum.eigenvalues.tobytes() for a, b in zip(one, other, strict=True)
    )
    return equal and one.rows == other.rows and one.provenance == other.provenance


@pytest.mark.parametrize("url", ["s3://bucket/audits/a.audit", "s3://bucket/audits/folder/"])
def test_an_audit_on_s3_is_the_audit(s3, audit, url):
    assert audit.save(url) == url
    assert same(tw.Audit.load(url), audit)
    assert same(tw.Audit.load(url.rstrip("/")), audit)
    audit.save(url)  # an older one is replaced


def test_what_is_no_audit_is_not_overwritten_on_s3(s3, audit):
    s3.pipe_file("bucket/notes.audit", b"mine")
    with pytest.raises(tw.UsageError, match="is not an audit"):
        audit.save("s3://bucket/notes.audit")
    assert s3.cat_file("bucket/notes.audit") == b"mine"
    with pytest.raises(tw.UnreadableError, match="is not a readable audit"):
        tw.Audit.load("s3://bucket/notes.audit")


def test_an_exclusive_save_on_s3_replaces_nothing(s3, audit):
    audit.save("s3://bucket/once.audit", exclusive=True)
    with pytest.raises(FileExistsError):
        audit.save("s3://bucket/once.audit", exclusive=True)


def test_what_is_not_there_on_s3(s3, audit):
    with pytest.raises(tw.UnreadableError, match="no such file or folder"):
        tw.Audit.load("s3://bucket/nothing.audit")
    with pytest.raises(tw.UnreadableError, match="could not be written"):
        audit.save("s3://no-such-bucket/x.audit")


def test_the_command_line_writes_and_shows_on_s3(s3, call, pycode):
    url = "s3://bucket/cli/pycode.audit"
    code, out, err = call("audit", pycode, "--layers", r"layers\.0\.mlp", "-o", url, "-o", "s3://bucket/cli/t.csv")
    assert code == 0, err
    assert url in out
    code, out, err = call("show", url)
    assert code == 0, err
    assert "model.layers.0.mlp.up_proj" in out
    assert s3.cat_file("bucket/cli/t.csv").startswith(b"name,role")
    code, out, err = call("rank", url, url, "-o", "s3://bucket/cli/board.md")
    assert code == 0, err
    assert b"Ranking" in s3.cat_file("bucket/cli/board.md")


def test_what_other_commands_write_on_s3_they_read_there(s3, call, audit):
    url = "s3://bucket/other/a.audit"
    audit.save(url)
    code, _, err = call("plan", "prune", url, "--sparsity", "0.5", "-o", "s3://bucket/other/plan.json")
    assert code == 0, err
    assert call("plan", "show", "s3://bucket/other/plan.json")[0] == 0
    assert call("diagnose", url)[0] == 0
    assert call("compare", url, url)[0] == 0
    assert call("plan", "show", "s3://bucket/other/nothing.json")[0] == 3


def test_a_cache_on_s3_is_shared_and_solves_nothing_twice(s3):
    where = "s3://bucket/cache"
    assert tw.audit(MODEL, cache_dir=where).provenance.reused == 0
    again = tw.audit(MODEL, cache_dir=where)
    assert (again.provenance.reused, again.provenance.notes) == (2, ())
    spectra = [path for path in s3.find("bucket/cache/spectra") if path.endswith(".npz")]
    s3.pipe_file(spectra[0], b"damaged")
    assert tw.audit(MODEL, cache_dir=where).provenance.reused == 1


def test_a_cache_that_cannot_be_written_is_a_note(s3):
    found = tw.audit(MODEL, cache_dir="s3://no-such-bucket/cache")
    assert len(found) == 2
    assert "the cache could not be written" in found.provenance.notes[0]


def test_the_environment_may_name_a_url(monkeypatch):
    monkeypatch.setenv("TAILWISE_CACHE", "memory://kept")
    tw.audit(MODEL)
    assert fsspec.filesystem("memory").find("/kept/spectra")
    assert next(item for item in check() if item.name == "cache").ok
    with pytest.raises(tw.UsageError, match="no folder on this machine"):
        clear()


def test_a_store_that_breaks_down_may_be_tried_again(monkeypatch, audit):
    fs = fsspec.filesystem("memory")
    monkeypatch.setattr(type(fs), "pipe_file", lambda *a, **k: (_ for _ in ()).throw(TimeoutError("no answer")))
    with pytest.raises(UnreachableError, match="could not be written: could not be reached"):
        audit.save("memory://x/y.audit")


@pytest.mark.parametrize("kept", ["folder", "url"])
def test_threads_that_meet_at_one_matrix_compute_it_once(tmp_path, kept):
    cache = Cache(tmp_path if kept == "folder" else "memory://meeting")
    spectrum, computed, start = Spectrum(np.arange(5.0), 5, 9), [], threading.Barrier(4)

    def work() -> None:
        start.wait()
        with cache.alone("k"):
            if cache.spectrum("k") is None:
                computed.append(1)
                cache.keep_spectrum("k", spectrum)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work) for _ in range(4)]:
            future.result()
    assert len(computed) == 1
    assert not list((tmp_path / "locks").glob("*")) if kept == "folder" else True
