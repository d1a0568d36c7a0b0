"""Are our recipes what llm-compressor reads? Each is loaded there, and every layer's amount compared with the plan.

python benchmarks/export_llmcompressor.py --python /path/of/an/environment/with/llmcompressor/bin/python
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path

from tailwise.audits.run import audit
from tailwise.compression.export.exporter import export
from tailwise.compression.making.make import plan_prune
from tailwise.compression.making.request import Request

ROOT = Path(__file__).resolve().parents[1]
THEIRS = """
import json, sys
from llmcompressor.recipe import Recipe
found = Recipe.create_instance(sys.argv[1]).modifiers
print("FOUND" + json.dumps([[type(m).__name__, m.sparsity, m.mask_structure, m.targets] for m in found]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter with llmcompressor")
    parser.add_argument("--model", default=str(ROOT / "examples" / "pycode-8m"))
    options = parser.parse_args()
    measured = audit(options.model)
    with tempfile.TemporaryDirectory() as folder:
        for operator in ("wanda", "sparsegpt"):
            for pattern in ("unstructured", "N:8"):
                plan = plan_prune(measured, Request(0.7, "alpha", operator, pattern=pattern))
                (path,) = export(plan, "llmcompressor", Path(folder) / "recipe.yaml")
                done = subprocess.run(
                    [options.python, "-c", THEIRS, str(path)], capture_output=True, text=True, check=False
                )
                if done.returncode:
                    raise SystemExit(f"llm-compressor refused it:\n{done.stderr[-2000:]}")
                found = json.loads(done.stdout.partition("FOUND")[2])
                for decision in plan:
                    module = decision.tensor.removesuffix(".weight")
                    holds = [m for m in found if any(re.match(t.removeprefix("re:"), module) for t in m[3])]
                    if [m[1] for m in holds] != [decision.sparsity]:
                        raise SystemExit(f"{module}: {holds} and not {decision.sparsity}")
                print(f"{operator}, {pattern}: {len(found)} × {found[0][0]} for {len(plan)} layers, all as planned")


if __name__ == "__main__":
    main()
