"""What `import tailwise` offers and costs. A name added or removed here is a decision, not an accident."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest

import tailwise as tw

NAMES = [
    "METRICS", "Alarms", "Audit", "Checkpoint", "Layer", "LayerRow", "Monitor", "Prepared", "Recipe", "RunOptions",
    "Spectrum", "TailFit", "TailwiseError", "UnreadableError", "UsageError", "__version__", "alpha_hill", "apply",
    "audit", "check", "compare", "diagnose", "diagnose_run", "esd", "evaluate", "fit_tail", "load_pruned", "metric",
    "open_checkpoint", "plot", "prepare", "rank", "singular_entropy", "stable_rank", "table",
]  # fmt: skip

MODULES = ["auditing", "comparing", "diagnosing", "errors", "extend", "gates", "plans", "precision", "remedies", "runs",
           "scoring"]  # fmt: skip


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`."""
    probe = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-W", "error", "-c", probe], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_public_names_are_these_and_at_most_thirty_five():
    assert tw.__all__ == NAMES
    assert len(NAMES) <= 35
    # What completes behind `tw.`: the names, and the modules that hold what functions take and give.
    assert dir(tw) == sorted([*NAMES, *MODULES])


@pytest.mark.parametrize("module", MODULES)
def test_every_named_module_is_there(module):
    assert isinstance(getattr(tw, module), ModuleType)


def test_a_name_of_a_module_is_told_of_where_it_is():
    with pytest.raises(AttributeError, match=r"it is tailwise\.plans\.Plan"):
        _ = tw.Plan


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_leads_somewhere(name):
    assert getattr(tw, name) is getattr(tw, name)


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'alhpa'"):
        _ = tw.alhpa


def test_importing_tailwise_imports_neither_torch_nor_numpy():
    loaded = modules_after("import tailwise; tailwise.UsageError; tailwise.__all__")
    assert "tailwise" in loaded
    assert not loaded & {"torch", "numpy", "scipy", "pyarrow", "safetensors", "huggingface_hub", "rich", "typer"}


def test_reading_a_saved_audit_imports_no_torch(tmp_path):
    path = tw.audit({"layer.weight": np.eye(20)}, use_cache=False).save(tmp_path / "a.audit")
    loaded = modules_after(
        f"import tailwise as tw; a = tw.Audit.load({str(path)!r}); a.summary(); a.weightwatcher(); a['layer']; repr(a)"
    )
    assert "pyarrow" in loaded
    assert not loaded & {"torch", "safetensors", "huggingface_hub"}


def test_the_numerics_and_metrics_of_a_spectrum_import_no_torch():
    loaded = modules_after(
        "import numpy as np, tailwise as tw\n"
        "from tailwise.spectrum.metrics.facts import measure\n"
        "from tailwise.spectrum.metrics.facts import Spectra\n"
        "measure(Spectra(tw.Spectrum(np.arange(1.0, 61), 60, 60)), tw.Recipe())"
    )
    assert "torch" not in loaded
