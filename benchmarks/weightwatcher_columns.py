"""WeightWatcher's table of the example model beside `Audit.weightwatcher()`: how far each column differs.

    python benchmarks/weightwatcher_columns.py            print the table
    python benchmarks/weightwatcher_columns.py --write    … and write it into docs/weightwatcher.md

Needs weightwatcher 0.7.7 with powerlaw below 2, and transformers (the `dev` extra has them). About a minute.
"""

from __future__ import annotations

import argparse
import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import tailwise as tw

ROOT = Path(__file__).resolve().parent.parent
MODEL, PAGE = ROOT / "examples" / "pycode-8m", ROOT / "docs" / "weightwatcher.md"
START, END = "<!-- columns -->\n", "<!-- end columns -->"
COLUMNS = (
    "alpha", "D", "sigma", "xmin", "xmax", "num_pl_spikes", "alpha_weighted", "log_alpha_norm", "log_norm",
    "log_spectral_norm", "stable_rank", "matrix_rank", "rank_loss", "entropy", "num_evals", "Q", "detX_num", "detX_val",
    "num_spikes", "sigma_mp", "bulk_max", "mp_softrank", "num_traps", "rand_distance", "ww_softrank", "ww_maxdist",
)  # fmt: skip


def theirs() -> Any:
    """WeightWatcher's details, a row a layer, by the full name of the module."""
    import weightwatcher
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32")
    watcher = weightwatcher.WeightWatcher(model=model)
    return watcher.analyze(mp_fit=True, randomize=True, detX=True, plot=False).set_index("longname")


def ours() -> Any:
    """The same columns from tailwise."""
    audit = tw.audit(str(MODEL), randomize=1, metrics=[*tw.METRICS], use_cache=False)
    return audit.weightwatcher().to_pandas().set_index("longname")


def table() -> str:
    """A row a column: in how many layers the two agree to 1e-6, and median and largest relative difference."""
    left, right = theirs(), ours()
    names = [name for name in left.index if name in right.index]
    lines = [
        f"{len(names)} layers of {len(left)} that weightwatcher lists and {len(right)} that tailwise lists.",
        "",
        "| column | layers that agree to 10⁻⁶ | median difference | largest difference |",
        "| --- | ---: | ---: | ---: |",
    ]
    for column in COLUMNS:
        if column not in left.columns or column not in right.columns:
            lines.append(f"| `{column}` | not in {'weightwatcher' if column not in left.columns else 'tailwise'} | | |")
            continue
        a = left.loc[names, column].to_numpy(dtype=float)
        b = right.loc[names, column].to_numpy(dtype=float)
        with np.errstate(divide="ignore", invalid="ignore"):
            apart = np.where(a == b, 0.0, np.abs(a - b) / np.maximum(np.abs(a), np.abs(b)))
        seen = apart[np.isfinite(apart)]
        lines.append(
            f"| `{column}` | {int((seen <= 1e-6).sum())} of {len(seen)} | {_shown(np.median(seen))} | "
            f"{_shown(seen.max())} |"
        )
    return "\n".join(lines)


def _shown(value: float) -> str:
    if value == 0:
        return "0"
    return f"{100 * value:.0f} %" if value > 0.01 else f"10^{math.ceil(math.log10(value))}"


def main() -> None:
    """Prints the table, and keeps it with --write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/weightwatcher.md")
    wanted = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = table()
    print(found)
    if wanted.write:
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(
            re.sub(f"{START}.*?{END}", lambda _: f"{START}{found}\n{END}", text, flags=re.DOTALL), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
