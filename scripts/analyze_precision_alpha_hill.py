"""Alpha-Hill of every weight matrix at several precisions: tables and pictures in one folder.

    python scripts/analyze_precision_alpha_hill.py --model examples/pycode-8m

The same as `tailwise precision MODEL --basic`, under the argument names of the documented interface.
"""

from __future__ import annotations

import argparse
import sys

from tailwise.cli.main import run

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def parser() -> argparse.ArgumentParser:
    """The documented arguments."""
    found = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    found.add_argument("--model", required=True, help="Hugging Face model id, or a local path")
    found.add_argument("--device", default="cpu", help="cpu, cuda or cuda:0")
    found.add_argument("--load-dtype", default="fp32", choices=("fp32", "fp16", "bf16"))
    found.add_argument("--precisions", default="fp32,fp16,bf16", help="comma list of number formats; also fp64, int4 …")
    found.add_argument("--output-dir", default="./results/precision_analysis")
    found.add_argument("--k-frac", type=float, default=0.1, help="tail fraction, in (0, 1]")
    found.add_argument("--filter-layers", help="regular expression; only layers whose name matches")
    found.add_argument("--plot-format", default="png", choices=("png", "pdf", "svg"))
    found.add_argument("--max-layers-per-plot", type=int, default=10, help="0 for all")
    found.add_argument("--bound", help="not a documented one: MEASURE=LIMIT; alpha_shift=0.05 marks layers")
    found.add_argument("--log-level", default="INFO", type=str.upper, choices=_LEVELS)
    return found


def main() -> None:
    """Hand the arguments over to the command."""
    given = vars(parser().parse_args())
    model = given.pop("model")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    sys.argv = ["tailwise", "precision", "--basic", "--plots", *options, "--", model]
    run()


if __name__ == "__main__":
    main()
