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

from tailwise import remedies
from tailwise.history.point import Alarm
from tailwise.training.alarms import Alarms
from training_runs import CONDITIONS, ROOT, STEPS, Arm, Condition, kept

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
    """Held-out loss of each arm beside the plain run of the same seed."""
    plain = {seed: kept(folder, CONDITIONS[0], seed)["held_out_loss"] for seed in seeds}
    lines = ["| | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean | difference, paired, 95 % interval |",
             "| --- |" + " ---: |" * (len(seeds) + 2)]  # fmt: skip
    lines.append(f"| plain | {_losses(plain.values())} | {statistics.fmean(plain.values()):.3f} | |")
    for name, arm in ARMS.items():
        found = {seed: kept(folder, CONDITIONS[0], seed, (name, arm))["held_out_loss"] for seed in seeds}
        low, middle, high = _interval([found[seed] - plain[seed] for seed in seeds])
        lines.append(f"| {name} | {_losses(found.values())} | {statistics.fmean(found.values()):.3f} | "
                     f"{middle:+.3f} ({low:+.3f} to {high:+.3f}) |")  # fmt: skip
    return "\n".join(lines)


def _losses(values: Any) -> str:
    return " | ".join(f"{value:.3f}" for value in values)


def _interval(differences: list[float]) -> tuple[float, float, float]:
    """Of Student's t over the seeds."""
    middle = statistics.fmean(differences)
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    return middle - half, middle, middle + half


def alarms_of(folder: Path, condition: Condition, seed: int, arm: str | None = None) -> list[Alarm]:
    """All alarms of a kept run."""
    found = kept(folder, condition, seed, (arm, ARMS[arm]) if arm else None)
    return Alarms().replay(found["points"])


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
    """Alarms of the healthy runs, plain and with remedies."""
    lines = ["| run | seeds | alarms (errors, warnings, notes) | codes |", "| --- | --- | --- | --- |"]
    for arm in (None, *ARMS):
        found = [alarm for seed in seeds for alarm in alarms_of(folder, CONDITIONS[0], seed, arm)]
        counts = [sum(alarm.severity == level for alarm in found) for level in ("error", "warning", "note")]
        lines.append(f"| {arm or 'plain'} | {', '.join(map(str, seeds))} | {len(found)} ({', '.join(map(str, counts))})"
                     f" | {_codes(found)} |")  # fmt: skip
    return "\n".join(lines)


def speed(folder: Path) -> str:
    """Milliseconds of one point."""
    points = kept(folder, CONDITIONS[0], 0)["points"]
    alarms, began = Alarms(), time.perf_counter()
    for point in points:
        alarms.see(point)
    each = 1000 * (time.perf_counter() - began) / len(points)
    return f"All rules take {each:.1f} ms a point of {len(points[0].layers)} matrices."


def report(folder: Path, seeds: list[int]) -> dict[str, str]:
    """Marker → table."""
    others = [seed for seed in seeds if seed not in TUNING]
    return {
        "gains": gains(folder, seeds),
        "sightings": sightings(folder, others),
        "false": false_alarms(folder, others),
        "tuning": sightings(folder, list(TUNING)) + "\n\n" + false_alarms(folder, list(TUNING)),
        "speed": speed(folder),
    }


def train(folder: Path, only: str, seeds: list[int]) -> None:
    """Train what is missing."""
    for seed in seeds:
        for condition in CONDITIONS if only in ("sick", "all") else ():
            kept(folder, condition, seed)
        for name, arm in ARMS.items() if only in ("arms", "all") else ():
            kept(folder, CONDITIONS[0], seed, (name, arm))


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", choices=("sick", "arms"), help="train these and end")
    parser.add_argument("--write", action="store_true", help="write docs/training-evidence.md")
    wanted = parser.parse_args()
    train(wanted.folder, wanted.only or "all", wanted.seeds)
    if wanted.only:
        return
    text = PAGE.read_text(encoding="utf-8")
    for name, table in report(wanted.folder, wanted.seeds).items():
        print(f"{name}\n\n{table}\n")
        text = re.sub(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", lambda m, t=table: m[1] + t + m[2], text, flags=re.S)
    if wanted.write:
        PAGE.write_text(text, encoding="utf-8")
        print(f"written: {PAGE.relative_to(ROOT)} ({STEPS} steps a run)")


if __name__ == "__main__":
    main()
