"""Remedies and alarms on small training runs: what they gain, what they see, and when.

    python benchmarks/training.py --folder F              train what is missing in F, and print the tables
    python benchmarks/training.py --folder F --write      … and write them into docs/training-evidence.md
    python benchmarks/training.py --folder F --only sick --seeds 0 1    some of it, to share the work

A run takes about a minute of one core. Runs are kept in F; alarms are asked anew each time, in seconds.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from pathlib import Path
from typing import Any

from scipy import stats

from tailwise.history.point import Alarm
from tailwise.training import remedies
from tailwise.training.alarms import Alarms
from training_runs import CONDITIONS, ROOT, STEPS, Arm, Condition, kept, path_of

PAGE = ROOT / "docs" / "training-evidence.md"
TUNING = (0, 1)  # thresholds of the alarms were chosen on these seeds, and their tables are made on the others
EVERY = 50  # steps between updates of the factors


def balanced(**options: Any) -> Arm:
    """TempBalance with these options."""
    chosen = remedies.BalanceOptions(**options)
    return lambda model, optimizer: remedies.layerwise_learning_rates(model, optimizer, every=EVERY, options=chosen)


def by_shape(model: Any, optimizer: Any) -> remedies.Balance:
    """A control that knows no α: what TempBalance mostly does to these models, fixed from the start."""
    balance = remedies.layerwise_learning_rates(model, optimizer, every=10 * STEPS)
    factors = {name: 1.4 if ".mlp." in name else 0.6 for name in remedies.linear_matrices(model)}
    balance.load_state_dict({"setting": "lr", "steps": 0, "alphas": {}, "factors": factors})
    return balance


ARMS: dict[str, Arm] = {
    "TempBalance": balanced(),
    "AlphaDecay": lambda model, optimizer: remedies.layerwise_weight_decay(model, optimizer, every=EVERY),
    "TempBalance by role": balanced(within="role"),
    "TempBalance mean kept": balanced(keep_mean=True),
    "control by shape": by_shape,
}
#: Codes that are right for a condition.
EXPECTED = {
    "lr × 30": ("TW701", "TW702", "TW703", "TW704", "TW706", "TW707", "TW709", "TW710"),
    "lr × 30 half-way": ("TW701", "TW702", "TW703", "TW704", "TW706", "TW707", "TW709", "TW710"),
    "noise half-way": ("TW702", "TW707"),
    "frozen block": ("TW705", "TW708"),
    "memorising 4 windows": ("TW709", "TW710", "TW711"),
}


def gains(folder: Path, seeds: list[int]) -> str:
    """Held-out loss of each arm beside the plain run of the same seed, for the arms with two such seeds or more."""
    plain = _losses(folder, seeds, None)
    lines = ["| | " + " | ".join(f"seed {seed}" for seed in seeds) + " | difference, paired, 95 % interval |",
             "| --- |" + " ---: |" * (len(seeds) + 1)]  # fmt: skip
    lines.append(f"| plain | {_shown(plain, seeds)} | |")
    for name in ARMS:
        found = _losses(folder, seeds, name)
        both = [found[seed] - plain[seed] for seed in seeds if seed in found and seed in plain]
        if len(both) > 1:
            low, middle, high = _interval(both)
            lines.append(f"| {name} | {_shown(found, seeds)} | {middle:+.3f} ({low:+.3f} to {high:+.3f}) |")
    return "\n".join(lines)


def between(folder: Path, seeds: list[int], one: str, other: str) -> str:
    """Two arms against each other, paired by seed."""
    first, second = _losses(folder, seeds, one), _losses(folder, seeds, other)
    both = [seed for seed in seeds if seed in first and seed in second]
    low, middle, high = _interval([first[seed] - second[seed] for seed in both])
    return f"{one} less {other}, seeds {', '.join(map(str, both))}: {middle:+.3f} ({low:+.3f} to {high:+.3f})."


def _losses(folder: Path, seeds: list[int], arm: str | None) -> dict[int, float]:
    """Seed → held-out loss of the runs that are kept."""
    there = [seed for seed in seeds if path_of(folder, CONDITIONS[0], seed, arm or "").exists()]
    return {seed: _run(folder, CONDITIONS[0], seed, arm)["held_out_loss"] for seed in there}


def _run(folder: Path, condition: Condition, seed: int, arm: str | None = None) -> dict[str, Any]:
    return kept(folder, condition, seed, (arm, ARMS[arm]) if arm else None)


def _shown(losses: dict[int, float], seeds: list[int]) -> str:
    return " | ".join(f"{losses[seed]:.3f}" if seed in losses else "–" for seed in seeds)


def _interval(differences: list[float]) -> tuple[float, float, float]:
    """Of Student's t over the seeds."""
    middle = statistics.fmean(differences)
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    return middle - half, middle, middle + half


def alarms_of(folder: Path, condition: Condition, seed: int, arm: str | None = None) -> list[Alarm]:
    """All alarms of a kept run."""
    return Alarms().replay(_run(folder, condition, seed, arm)["points"])


def sightings(folder: Path, seeds: list[int]) -> str:
    """By sick condition and seed: the first right alarm, and what else was said."""
    lines = ["| run | cause at step | seed | first right alarm | it says since | right codes (× alarms) | before "
             "| other |", "| --- | ---: | ---: | --- | ---: | --- | ---: | --- |"]  # fmt: skip
    for condition in CONDITIONS:
        for seed in seeds if not condition.healthy else []:
            lines.append(_sighting(condition, seed, alarms_of(folder, condition, seed)))
    return "\n".join(lines)


def _sighting(condition: Condition, seed: int, found: list[Alarm]) -> str:
    before = [alarm for alarm in found if alarm.step < condition.since]
    after = [alarm for alarm in found if alarm.step >= condition.since]
    right = [alarm for alarm in after if alarm.rule in EXPECTED[condition.name]]
    other = [alarm for alarm in after if alarm not in right]
    first = f"{right[0].rule} at {right[0].step}" if right else "**none**"
    return (
        f"| {condition.name} | {condition.since} | {seed} | {first} | {right[0].since if right else '–'} | "
        f"{_codes(right)} | {len(before)} | {_codes(other)} |"
    )


def _codes(found: list[Alarm]) -> str:
    counts = {code: sum(alarm.rule == code for alarm in found) for code in sorted({alarm.rule for alarm in found})}
    return ", ".join(f"{code}×{count}" for code, count in counts.items()) or "–"


def false_alarms(folder: Path, seeds: list[int]) -> str:
    """Alarms of the healthy runs that are kept, plain and with remedies."""
    lines = ["| run | seeds | alarms (errors, warnings, notes) | codes |", "| --- | --- | --- | --- |"]
    for arm in (None, *ARMS):
        there = list(_losses(folder, seeds, arm))
        found = [alarm for seed in there for alarm in alarms_of(folder, CONDITIONS[0], seed, arm)]
        counts = [sum(alarm.severity == level for alarm in found) for level in ("error", "warning", "note")]
        if there:
            lines.append(f"| {arm or 'plain'} | {', '.join(map(str, there))} | {len(found)} "
                         f"({', '.join(map(str, counts))}) | {_codes(found)} |")  # fmt: skip
    return "\n".join(lines)


def speed(folder: Path) -> str:
    """Milliseconds of one point, of the processor: the machine may be busy."""
    points = kept(folder, CONDITIONS[0], 0)["points"]
    alarms, began = Alarms(), time.process_time()
    for point in points:
        alarms.see(point)
    each = 1000 * (time.process_time() - began) / len(points)
    return f"All rules take {each:.1f} ms of one core a point of {len(points[0].layers)} matrices."


def report(folder: Path, seeds: list[int], sick_seeds: list[int]) -> dict[str, str]:
    """Marker → table."""
    return {
        "gains": gains(folder, seeds) + "\n\n" + between(folder, seeds, "TempBalance", "TempBalance by role"),
        "sightings": sightings(folder, sick_seeds),
        "false": false_alarms(folder, [seed for seed in {*seeds, *sick_seeds} if seed not in TUNING]),
        "tuning": sightings(folder, list(TUNING)),
        "speed": speed(folder),
    }


def train(folder: Path, only: str, seeds: list[int], sick_seeds: list[int]) -> None:
    """Train what is missing."""
    if only in ("sick", "all"):
        for seed in sick_seeds:
            for condition in CONDITIONS:
                kept(folder, condition, seed)
    if only in ("arms", "all"):
        for seed in seeds:
            kept(folder, CONDITIONS[0], seed)
            for name, arm in ARMS.items():
                kept(folder, CONDITIONS[0], seed, (name, arm))


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 2, 3, 4], help="of the plain run and the arms")
    parser.add_argument("--sick-seeds", type=int, nargs="+", default=[2], help="beside the two of the thresholds")
    parser.add_argument("--only", choices=("sick", "arms"), help="train these and end")
    parser.add_argument("--report", action="store_true", help="train nothing: tables of what is kept")
    parser.add_argument("--write", action="store_true", help="write docs/training-evidence.md")
    wanted = parser.parse_args()
    if not wanted.report:
        train(wanted.folder, wanted.only or "all", wanted.seeds, [*TUNING, *wanted.sick_seeds])
    if wanted.only:
        return
    text = PAGE.read_text(encoding="utf-8")
    for name, table in report(wanted.folder, wanted.seeds, wanted.sick_seeds).items():
        print(f"{name}\n\n{table}\n")
        text = re.sub(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", lambda m, t=table: m[1] + t + m[2], text, flags=re.S)
    if wanted.write:
        PAGE.write_text(text, encoding="utf-8")
        print(f"written: {PAGE.relative_to(ROOT)} ({STEPS} steps a run)")


if __name__ == "__main__":
    main()
