"""Alarms on planted faults and on healthy trainings: how many are found, and how often healthy runs are called ill.

    python benchmarks/training_alarms.py train --folder F --split calibration    train what is missing in F
    python benchmarks/training_alarms.py train --folder F --split "held out" --most 20    … twenty pieces now
    python benchmarks/training_alarms.py report --folder F           judge what is kept, and print the tables
    python benchmarks/training_alarms.py report --folder F --write   … and keep them in docs/ and benchmarks/results/

Thresholds are set on the calibration runs (Llama, an MLP, a CNN, LoRA on Llama; seeds 0 to 2), on the earlier ones
(GPT-2, ViT, a residual MLP, a residual CNN, LoRA on GPT-2 and ViT; seeds from 100 on), which were held out until the
rules were mended on them, and for adapters on LoRA of the held-out split too, for the same reason. They are reported on
full training of the held-out split (a deeper GPT-2, a wider ViT, an MLP-mixer, a plain CNN with batch norm; seeds from
200 on) and on the adapters (LoRA on a GPT-NeoX and on the mixer; seeds from 300 on). A piece is a healthy training and
one to three with a fault, and takes one to fifteen seconds of one core; trainings are kept in F with every point and
every loss, and alarms are asked anew each time. Of runs that F lacks, the line in benchmarks/results/ stays as it is.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path

from scipy import stats

from tailwise.training.alarms import Alarms
from training_faults import EVERY, FAULTS, OF_A_LAYER, SINCE, STEPS, pieces, runs_of, train

ROOT = Path(__file__).resolve().parent.parent
PAGE, RESULTS = ROOT / "docs" / "training-evidence.md", ROOT / "benchmarks" / "results" / "training_alarms.jsonl"
SPLITS = ("calibration", "earlier", "held out", "adapters")
TABLES = ("held out", "calibration")


def alarms_of(run):
    """Every alarm of a run, as a monitor would have raised it: losses first, then the point of their last step."""
    alarms, found, at, losses = Alarms(), [], 0, run["losses"]
    for point in sorted(run["points"], key=lambda point: (point.step, point.cadence == "full", not point.layers)):
        if point.step > at:
            found += alarms.see_losses(point.run, range(at + 1, point.step + 1), losses[at : point.step])
            at = point.step
        found += alarms.see(point)
    return found + alarms.see_losses("r", range(at + 1, len(losses) + 1), losses[at:])


def outcome(run):
    """One line of the results: what was planted, and what was said of it."""
    found = alarms_of(run)
    since = 0 if run["fault"] in ("", "memorising") else SINCE
    after, before = ([a for a in found if (a.step > since) is side] for side in (True, False))
    named = [alarm for alarm in after if any(_same(layer, run["layer"]) for layer in alarm.layers)]
    return {
        **{key: run[key] for key in ("split", "model", "kind", "optimizer", "schedule", "seed", "fault", "layer")},
        "codes": dict(Counter(alarm.rule for alarm in after)),
        "severities": dict(Counter(alarm.severity for alarm in after)),
        "first_step": after[0].step if after else None, "first_code": after[0].rule if after else None,
        "layer_named": bool(named) if run["layer"] else None, "first_named": named[0].step if named else None,
        "alarms_before": len(before), "last_loss": run["losses"][-1] if run["losses"][-1] < 1e300 else None,
    }  # fmt: skip


def _same(layer, planted):
    """Whether an alarm's layer is the planted one: the matrix, a part of it, or what an adapter's factors make."""
    if not planted:
        return False
    plain = layer.partition("#")[0]
    adapted = re.sub(r"^base_model\.model\.|\.lora_[AB]\.\w+$", "", planted)
    return plain in (planted, adapted)


def interval(hits, count):
    """95 % interval of a share (Clopper & Pearson 1934)."""
    low = 0.0 if hits == 0 else stats.beta.ppf(0.025, hits, count - hits + 1)
    high = 1.0 if hits == count else stats.beta.ppf(0.975, hits + 1, count - hits)
    return f"{100 * hits / count:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def faults_table(lines):
    """Of each fault: runs in which it was found, in which its layer was named, and how soon."""
    rows = ["| fault | runs | found | full training | LoRA | right layer named "
            "| steps to the first alarm, median (most) | codes (× runs) |",
            "| --- | ---: | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    total = Counter()
    for fault in FAULTS:
        mine = [line for line in lines if line["fault"] == fault]
        if not mine:
            continue
        hit = [line for line in mine if line["first_step"] is not None]
        named = sum(bool(line["layer_named"]) for line in mine)
        since = 0 if fault == "memorising" else SINCE
        soon = sorted(line["first_step"] - since for line in hit)
        words = f"{soon[len(soon) // 2]} ({soon[-1]})" if soon else "–"
        codes = Counter(code for line in mine for code in line["codes"])
        shown = ", ".join(f"{code}×{count}" for code, count in codes.most_common(5))
        layer = interval(named, len(mine)) if fault in OF_A_LAYER else "–"
        rows.append(f"| {fault} | {len(mine)} | {interval(len(hit), len(mine))} | {_by_kind(mine)} | {layer} | {words} "
                    f"| {shown} |")  # fmt: skip
        total.update(runs=len(mine), found=len(hit))
    if total["runs"]:
        ill = [line for line in lines if line["fault"]]
        rows.append(f"| all | {total['runs']} | {interval(total['found'], total['runs'])} | {_by_kind(ill)} | | | |")
    return "\n".join(rows)


def _by_kind(lines):
    """In how many of them something was found: full training, and LoRA."""
    kinds = [[line["first_step"] is not None for line in lines if line["kind"] == kind] for kind in ("full", "lora")]
    return " | ".join(f"{sum(found)} of {len(found)}" if found else "–" for found in kinds)


def healthy_table(lines):
    """Of healthy runs: in how many an error, and in how many any alarm, by kind of run."""
    healthy = [line for line in lines if not line["fault"]]
    rows = ["| healthy runs | runs | with an error | with any alarm | codes (× runs) |",
            "| --- | ---: | --- | --- | --- |"]  # fmt: skip
    groups = {"full training": ("kind", "full"), "LoRA": ("kind", "lora"), "AdamW": ("optimizer", "adamw"),
              "SGD": ("optimizer", "sgd"), "Muon": ("optimizer", "muon"), "constant rate": ("schedule", "constant"),
              "warm-up and cosine": ("schedule", "warm-up"), "plateau": ("schedule", "plateau")}  # fmt: skip
    for model in dict.fromkeys(line["model"] for line in healthy):
        groups[model] = ("model", model)
    for name, (key, value) in {"all": (None, None), **groups}.items():
        mine = [line for line in healthy if key is None or line[key] == value]
        if mine:
            codes = Counter(code for line in mine for code in line["codes"])
            errors = sum(bool(line["severities"].get("error")) for line in mine)
            some = sum(bool(line["codes"]) for line in mine)
            shown = ", ".join(f"{code}×{count}" for code, count in codes.most_common()) or "–"
            rows.append(
                f"| {name} | {len(mine)} | {interval(errors, len(mine))} | {interval(some, len(mine))} | {shown} |"
            )
    return "\n".join(rows)


def missed(lines):
    """Which planted faults nothing was said of."""
    found = [line for line in lines if line["fault"] and line["first_step"] is None]
    names = [f"{line['fault']} ({line['model']}, {line['kind']}, {line['optimizer']}, {line['schedule']}, seed "
             f"{line['seed']}{', ' + line['layer'] if line['layer'] else ''})" for line in found]  # fmt: skip
    return "Nothing was said of: " + "; ".join(names) + "." if names else "Something was said of every planted fault."


def table_of(line):
    """Which table a run stands in: of those that no rule was chosen on, or of the others."""
    fresh = line["split"] == "adapters" or (line["split"] == "held out" and line["kind"] == "full")
    return "held out" if fresh else "calibration"


def judged(folder):
    """A line a run: judged now where its training is in the folder, as it was judged before where not."""
    lines = {_key(line): line for line in map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())}
    before = set(lines)
    for split in SPLITS:
        for piece in pieces(split):
            for run in runs_of(folder, piece):
                # Earlier runs were kept under the name of the split that they were of then.
                line = outcome({**run, "split": split})
                lines[_key(line)] = line
                before.discard(_key(line))
    # Of adapters what is measured is no longer what it was.
    gone = {key for key in before if lines[key]["kind"] == "lora"}
    print(f"{len(lines) - len(before)} runs judged now, {len(before) - len(gone)} as before, {len(gone)} left out")
    return [line for key, line in lines.items() if key not in gone]


def diverged(lines):
    """The pieces whose training without any fault ended in a loss that is not finite: they are not healthy."""
    return {_piece(line) for line in lines if not line["fault"] and line["last_loss"] is None}


def _piece(line):
    return _key(line)[:-1]


def ill_by_itself(lines):
    """In words, what the tables leave out, and what was said of it."""
    ill = diverged(lines)
    if not ill:
        return ""
    alone = [line for line in lines if _piece(line) in ill and not line["fault"]]
    told = sum("TW701" in line["codes"] for line in alone)
    rows = [line for line in lines if _piece(line) in ill and line["fault"]]
    hit = sum(line["first_step"] is not None for line in rows)
    names = sorted({f"{model}, {kind}, {optimizer}, seed {seed}" for _, model, kind, optimizer, _, seed in ill})
    return (f"Left out of both tables: {len(ill)} trainings whose loss went to NaN or infinity without any fault "
            f"({'; '.join(names)}), of which TW701 said so in {told}; and the {len(rows)} faults planted after that, "
            f"of which a further alarm was raised in {hit}.")  # fmt: skip


def _key(line):
    return tuple(line[name] for name in ("split", "model", "kind", "optimizer", "schedule", "seed", "fault"))


def report(folder, write):
    """Judge, print, and with `write` keep."""
    lines = judged(folder)
    text, tables = PAGE.read_text(encoding="utf-8"), {}
    for name in TABLES:
        every = [line for line in lines if table_of(line) == name]
        ill = diverged(every)
        mine = [line for line in every if _piece(line) not in ill]
        words = "\n\n".join(filter(None, (missed(mine), ill_by_itself(every))))
        tables |= {f"faults {name}": f"{faults_table(mine)}\n\n{words}", f"healthy {name}": healthy_table(mine)}
    for name, table in tables.items():
        print(f"{name}\n\n{table}\n")
        marked = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text = re.sub(marked, lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.S)
    if write:
        PAGE.write_text(text, encoding="utf-8")
        RESULTS.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        print(f"written: {PAGE.relative_to(ROOT)}, {RESULTS.relative_to(ROOT)} ({len(lines)} runs)")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "report"))
    parser.add_argument("--folder", type=Path, required=True, help="where trainings are kept")
    parser.add_argument("--split", choices=SPLITS, help="train this one; all by default")
    parser.add_argument("--kind", choices=("full", "lora"), help="train this one; both by default")
    parser.add_argument("--most", type=int, help="pieces to train now")
    parser.add_argument("--write", action="store_true", help="keep tables and results")
    wanted = parser.parse_args()
    if wanted.what == "report":
        report(wanted.folder, wanted.write)
        return
    todo = [piece for split in SPLITS if wanted.split in (None, split) for piece in pieces(split)
            if wanted.kind in (None, piece.kind)]  # fmt: skip
    missing = [piece for piece in todo if not (wanted.folder / f"{piece.name}.jsonl.gz").exists()]
    for index, piece in enumerate(missing[: wanted.most]):
        train(wanted.folder, piece)
        print(f"{piece.name}: {len(missing) - index - 1} of {len(todo)} pieces are left; "
              f"{STEPS} steps, a point every {EVERY}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
