"""The web app under load and in a browser: times of pages, 50 readers beside an audit, a kill in the middle of one.

    python benchmarks/app.py            print the tables
    python benchmarks/app.py --write    … and write them into benchmarks/results/app.md

Needs Chromium. Times are of this machine and this run; there is no peer to put beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from safetensors.numpy import save_file

from tailwise.audits.audit import Audit
from tailwise.audits.run import audit

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "benchmarks" / "results" / "app.md"
READERS, ROUNDS = 50, 12
MATRICES, SIDE = 80, 1536


def prepare(folder: Path) -> None:
    """Audits of 58, 300 and 10,000 layers, and a model whose audit takes a while."""
    found = audit(ROOT / "examples" / "pycode-8m", randomize=1)
    found.save(folder / "example.audit")
    for number in (300, 10_000):
        grown(found, number).save(folder / f"layers-{number}.audit")
    rng = np.random.default_rng(0)
    (folder / "model").mkdir()
    save_file(
        {f"layers.{i}.mlp.up_proj.weight": rng.standard_normal((SIDE, SIDE), np.float32) for i in range(MATRICES)},
        folder / "model" / "model.safetensors",
    )


def grown(found: Audit, number: int) -> Audit:
    """The same layers over and over, with other names, blocks and slightly other numbers."""
    rng, inner = np.random.default_rng(0), [layer for layer in found if layer.row.block is not None]
    layers = {}
    for index in range(number):
        layer, block = inner[index % len(inner)], index // 7
        metrics = {key: value and float(value * rng.uniform(0.9, 1.2)) for key, value in layer.row.metrics.items()}
        row = replace(
            layer.row, name=f"model.layers.{block}.{index % 7}.{layer.row.role}", block=block, metrics=metrics
        )
        layers[row.name] = replace(layer, row=row)
    return Audit([layer.row for layer in layers.values()], layers, replace(found.provenance, model=f"{number} layers"))


class Server:
    """`tailwise serve` as a process."""

    def __init__(self, folder: Path, state: Path) -> None:
        command = [sys.executable, "-m", "tailwise", "serve", str(folder), "--port", "0", "--state", str(state)]
        command += ["--workers", "1"]
        environment = os.environ | {"TAILWISE_CACHE": str(state / "cache")}
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [*command, "--workers", "1"], stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stderr is not None
        self.address = next(m[0] for line in self.process.stderr if (m := re.search(r"http://[\d.:]+", line)))
        with httpx2.Client(base_url=self.address) as client:
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    client.get("/api/health")
                    break
                time.sleep(0.02)
            self.started = time.perf_counter() - began
            self.proof = re.search(r'name="csrf" content="([^"]+)', client.get("/models").text)[1]

    def client(self) -> httpx2.Client:
        """For reading and writing."""
        return httpx2.Client(base_url=self.address, headers={"X-CSRF-Token": self.proof}, timeout=60)

    def end(self, how: int = signal.SIGINT) -> None:
        """Stop it."""
        self.process.send_signal(how)
        self.process.wait()


@contextlib.contextmanager
def serving(folder: Path, state: Path) -> Iterator[Server]:
    """A server for a while."""
    server = Server(folder, state)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end()


def pages(server: Server) -> dict[str, str]:
    """What is timed → its address."""
    with server.client() as client:
        ids = {one["title"]: one["id"] for one in client.get("/api/models").json()}
    small, big = f"/models/{ids['layers-300']}", f"/models/{ids['layers-10000']}"
    return {
        "models": "/models",
        "details, 300 layers": small,
        "table, 300 layers, sorted": f"{small}/layers?sort=alpha",
        "chart along depth, 300 layers": f"/api{small}/charts/correlation_flow",
        "details, 10,000 layers": big,
        "table, 10,000 layers, sorted": f"{big}/layers?sort=alpha",
        "table, 10,000 layers, filtered": f"{big}/layers?q=alpha%3E2+role:mlp_up",
        "chart along depth, 10,000 layers": f"/api{big}/charts/correlation_flow",
    }


def server_times(server: Server) -> str:
    """First and later answers, from the server alone."""
    lines = ["| page | first, ms | then, ms (median of 20) | kB |", "| --- | ---: | ---: | ---: |"]
    with server.client() as client:
        for name, address in pages(server).items():
            times = []
            for _ in range(21):
                began = time.perf_counter()
                answer = client.get(address)
                times.append(1000 * (time.perf_counter() - began))
                assert answer.status_code == 200, address
            size = len(answer.content) / 1000
            lines.append(f"| {name} | {times[0]:.0f} | {statistics.median(times[1:]):.0f} | {size:.0f} |")
    return f"Start to first answer: {server.started:.1f} s.\n\n" + "\n".join(lines)


def browser_times(server: Server) -> str:
    """From the click to the page, and to the last of its charts in view, in a fresh Chromium."""
    from playwright.sync_api import sync_playwright

    lines = ["| page, in the browser | page there, ms | charts in view drawn, ms |", "| --- | ---: | ---: |"]
    chromium = shutil.which("chromium")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        browser.new_page().goto("about:blank")  # the start of the browser is not the app's
        for name, found in pages(server).items():
            address = found.removeprefix("/api")
            page = browser.new_context(base_url=server.address, viewport={"width": 1200, "height": 900}).new_page()
            began = time.perf_counter()
            page.goto(address, wait_until="domcontentloaded")
            there = 1000 * (time.perf_counter() - began)
            drawn = "–"
            chart = page.locator(".chart[data-source]").first
            if chart.count():
                chart.scroll_into_view_if_needed()
                chart.locator("svg, canvas").first.wait_for(timeout=60_000)
                drawn = f"{1000 * (time.perf_counter() - began):.0f}"
            lines.append(f"| {name} | {there:.0f} | {drawn} |")
            page.context.close()
        browser.close()
    return "\n".join(lines)


@dataclass
class Reading:
    """What fifty readers saw."""

    times: list[float] = field(default_factory=list)  # milliseconds
    wrong: list[str] = field(default_factory=list)

    async def one(self, client: httpx2.AsyncClient, number: int, targets: list[str], pause: float) -> None:
        """One reader: they are not in step, and look at a page for a moment."""
        await asyncio.sleep(pause * number / READERS)
        for turn in range(ROUNDS):
            target = targets[(number + turn) % len(targets)]
            began = time.perf_counter()
            try:
                answer = await client.get(target)
                if answer.status_code != 200:
                    self.wrong.append(f"{answer.status_code} {target}")
            except httpx2.HTTPError as error:
                self.wrong.append(f"{type(error).__name__} {target}")
            self.times.append(1000 * (time.perf_counter() - began))
            await asyncio.sleep(pause)

    async def all_of_them(self, address: str, targets: list[str], pause: float) -> None:
        """Fifty at once, each with a connection of its own."""
        limits = httpx2.Limits(max_connections=READERS, max_keepalive_connections=READERS)
        async with httpx2.AsyncClient(base_url=address, timeout=60, limits=limits) as client:
            await asyncio.gather(*(self.one(client, number, targets, pause) for number in range(READERS)))


def load(server: Server) -> str:
    """Readers at once while an audit runs, and without it: with a page a second each, and without any pause."""
    targets = [address for name, address in pages(server).items() if "10,000" not in name]
    lines = [f"| {READERS} readers | beside | requests | errors | a second | median, ms | p95, ms | slowest, ms |",
             "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for pause in (1.0, 0.0):
        for busy in (False, True):
            lines.append(_loaded(server, targets, pause, busy=busy))
    return "\n".join(lines)


def _loaded(server: Server, targets: list[str], pause: float, *, busy: bool) -> str:
    found, beside = Reading(), "nothing"
    with server.client() as client:
        if busy:
            assert client.post("/api/jobs", json={"model": "model", "bootstrap": int(pause)}).status_code == 201
            first = waited(client, lambda job: job["state"] == "running" and job["done"] > 0)["done"]
        began = time.perf_counter()
        asyncio.run(found.all_of_them(server.address, targets, pause))
        took = time.perf_counter() - began
        if busy:
            job = client.get("/api/jobs").json()[0]
            beside = f"an audit, {first} to {job['done']} of {job['total']} matrices"
            client.post(f"/jobs/{job['id']}/cancel")
    p95, middle, slowest = float(np.quantile(found.times, 0.95)), statistics.median(found.times), max(found.times)
    how, count = "a page a second each" if pause else "without a pause", len(found.times)
    return (
        f"| {how} | {beside} | {count} | {len(found.wrong)} | {count / took:.0f} | {middle:.0f} | {p95:.0f} | "
        f"{slowest:.0f} |"
    )


def waited(client: httpx2.Client, test: Any) -> dict[str, Any]:
    """The newest job, as soon as it passes the test."""
    ends = time.monotonic() + 300
    while time.monotonic() < ends:
        job: dict[str, Any] = client.get("/api/jobs").json()[0]
        if test(job):
            return job
        if job["state"] in ("failed", "cancelled", "done"):
            break
        time.sleep(0.05)
    raise SystemExit(f"the audit is not where it should be: {job}")


def kill(folder: Path, state: Path) -> str:
    """Kill the server in the middle of an audit, start another, and see what is left of the work."""
    shutil.rmtree(state / "cache", ignore_errors=True)
    server = Server(folder, state)
    with server.client() as client:
        client.post("/api/jobs", json={"model": "model"})
        at = waited(client, lambda job: job["done"] >= MATRICES // 3)["done"]
    server.end(signal.SIGKILL)
    with serving(folder, state) as again, again.client() as client:
        job = waited(client, lambda job: job["state"] == "done")
        found = next(one for one in client.get("/api/models").json() if one["layers"] == MATRICES)
        reused = client.get(f"/api/models/{found['id']}").json()["provenance"]["reused"]
    return (
        f"Killed (SIGKILL) after {at} of {MATRICES} matrices; the next server began the job again by itself "
        f"({job['restarts']} restart), took {reused} spectra from the cache, and ended with {found['layers']} matrices."
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/app.md")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tailwise-app-") as made:
        folder, state = Path(made) / "served", Path(made) / "state"
        folder.mkdir()
        prepare(folder)
        with serving(folder, state) as server:
            tables = {"server": server_times(server), "browser": browser_times(server), "load": load(server)}
        tables["kill"] = kill(folder, state)
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    for name, table in tables.items():
        print(f"{name}\n\n{table}\n")
        text = re.sub(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", lambda m, t=table: m[1] + t + m[2], text, flags=re.S)
    if wanted.write:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
