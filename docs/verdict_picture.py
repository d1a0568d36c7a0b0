"""Draws `docs/images/verdict.png`: the top of the report of the overheated fine-tune in `examples/adapters`.

    python docs/verdict_picture.py

Needs `tailwise[report]`, playwright and Chromium (`CHROMIUM` names it, /usr/bin/chromium by default).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "verdict.png"
WIDTH, HEIGHT = 1100, 860


def run(*words: str) -> None:
    """A command of tailwise, from the root of the repository."""
    subprocess.run([sys.executable, "-P", "-m", "tailwise", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Audits both, makes the report against the base, and takes its picture."""
    with tempfile.TemporaryDirectory() as folder:
        base, tuned, page = (str(Path(folder) / name) for name in ("base.audit", "overheated.audit", "report.html"))
        run("audit", "examples/pycode-8m", "-o", base)
        run("audit", "examples/adapters/overheated", "--adapter", "merged", "--base", "examples/pycode-8m", "-o", tuned)
        run("report", tuned, "--base", base, "-o", page)
        with sync_playwright() as driver:
            program = os.environ.get("CHROMIUM", "/usr/bin/chromium")
            browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
            view = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
            view.goto(f"file://{page}")
            view.wait_for_timeout(3000)
            view.screenshot(path=str(PICTURE))
            browser.close()


if __name__ == "__main__":
    main()
