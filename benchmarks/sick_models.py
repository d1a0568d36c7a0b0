"""The rules of `tailwise diagnose` against models made sick on purpose: sensitivity and false alarms.

    python benchmarks/sick_models.py --folder F              train what is missing in F, audit, diagnose, print
    python benchmarks/sick_models.py --folder F --write      … and write benchmarks/results/fault-injection.md
    python benchmarks/sick_models.py --folder F --train healthy memorised    train these conditions and end

Small Llamas learn the bytes of Python's standard library. Trained weights and audits are kept in F, so after the first
run the rules alone are run, in seconds. Training takes about a minute of one core for each model.
"""

from __future__ import annotations

import argparse
import random
import re
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import tailwise as tw

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "benchmarks" / "results" / "fault-injection.md"
WIDTH, INNER, BLOCKS, HEADS, CONTEXT, BATCH, STEPS, LR = 128, 352, 6, 4, 64, 8, 500, 3e-3
#: Thresholds were chosen on these seeds, and the tables are made on the others.
TUNING = (0, 1)

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Training:
    """How one condition is trained."""

    lr: float = LR
    steps: int = STEPS
    one_batch: bool = False
    scale: Callable[[int, int], float] = lambda _block, _seed: 1.0  # learning rate of a block, relative to `lr`


def sick_block(seed: int) -> int:
    """The block that is made sick: neither the first nor the last."""
    return 1 + (seed * 7 + 2) % (BLOCKS - 2)


TRAINED = {
    "healthy": Training(),
    "frozen block": Training(scale=lambda block, seed: 0.0 if block == sick_block(seed) else 1.0),
    "slow block": Training(scale=lambda block, seed: 0.02 if block == sick_block(seed) else 1.0),
    "starved depth": Training(scale=lambda block, _: 10.0 ** (-2.5 * block / (BLOCKS - 1))),
    "lr ÷ 100": Training(lr=LR / 100, steps=300),
    "lr × 100": Training(lr=LR * 100, steps=300),
    "memorised": Training(steps=1200, one_batch=True),
}


def text() -> torch.Tensor:
    """Bytes of the standard library, (n,) int64, in a fixed order of files."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")) + sorted(
        Path(sysconfig.get_path("stdlib")).glob("[a-m]*/*.py")
    )
    files = [path for path in files if "site-packages" not in str(path)]
    random.Random(0).shuffle(files)
    joined = b"\n".join(path.read_bytes() for path in files)[: 8 << 20]
    return torch.frombuffer(bytearray(joined), dtype=torch.uint8).long()


def untrained(seed: int) -> Any:
    """The model as it starts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=256, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def train(name: str, seed: int) -> tuple[State, float]:
    """Weights and last loss of one condition."""
    plan, data, model = TRAINED[name], text(), untrained(seed)
    groups = [
        {"params": [weight], "factor": plan.scale(int(found[1]), seed) if (found := _BLOCK.search(key)) else 1.0,
         "weight_decay": 0.1 if weight.ndim > 1 else 0.0}
        for key, weight in model.named_parameters()
    ]  # fmt: skip
    groups = [group for group in groups if group["factor"] > 0]  # type: ignore[operator]
    optimizer = torch.optim.AdamW(groups, lr=plan.lr, betas=(0.9, 0.95))
    generator, loss = torch.Generator().manual_seed(seed), torch.tensor(0.0)
    size = 2 if plan.one_batch else BATCH
    for step in range(plan.steps):
        if step == 0 or not plan.one_batch:
            starts = torch.randint(len(data) - CONTEXT - 1, (size,), generator=generator)
            batch = torch.stack([data[start : start + CONTEXT] for start in starts])
        now = plan.lr * min(1.0, (step + 1) / 30) * (1.0 - 0.9 * step / plan.steps)
        for group in optimizer.param_groups:
            group["lr"] = now * group["factor"]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {key: value.detach().contiguous() for key, value in model.state_dict().items()}, float(loss.detach())


_BLOCK = re.compile(r"\.layers\.(\d+)\.")


def weights_of(folder: Path, name: str, seed: int) -> Path:
    """Where the weights of a trained condition are kept."""
    return folder / f"{_file(name)}-{seed}.safetensors"


def trained(folder: Path, name: str, seed: int) -> State:
    """Weights of a trained condition, trained now if they are not in `folder`."""
    path = weights_of(folder, name, seed)
    if not path.exists():
        began = time.perf_counter()
        state, loss = train(name, seed)
        save_file(state, path)
        print(f"{name}, seed {seed}: loss {loss:.3f}, {time.perf_counter() - began:.0f} s", flush=True)
    return load_file(path)


def _file(name: str) -> str:
    return re.sub(r"\W+", "-", name.replace("÷", "div").replace("×", "times"))


def _in_block(block: int, *parts: str) -> list[str]:
    return [f"model.layers.{block}.{part}.weight" for part in parts]


_ALL = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
        "mlp.down_proj")  # fmt: skip


def re_initialise(state: State, seed: int) -> list[str]:
    """Two matrices as they were before training."""
    names = _in_block(sick_block(seed), "self_attn.o_proj", "mlp.up_proj")
    for name in names:
        state[name] = torch.randn(state[name].shape, generator=_generator(seed)) * 0.02
    return names


def set_back(state: State, seed: int) -> list[str]:
    """Two matrices three quarters of the way back to their initialisation, as if they had learned a quarter."""
    names, start = _in_block(sick_block(seed), "self_attn.o_proj", "mlp.up_proj"), untrained(seed).state_dict()
    for name in names:
        state[name] = start[name] + (state[name] - start[name]) / 4
    return names


def starve_the_last(state: State, seed: int) -> list[str]:
    """The last three blocks, as if they had learned an eighth."""
    start = untrained(seed).state_dict()
    names = [name for name in everything(state, seed) if (found := _BLOCK.search(name)) and int(found[1]) >= BLOCKS - 3]
    for name in names:
        state[name] = start[name] + (state[name] - start[name]) / 8
    return names


def set_all_back(state: State, seed: int) -> list[str]:
    """Every matrix of the blocks, as if it had learned an eighth."""
    names, start = everything(state, seed), untrained(seed).state_dict()
    for name in names:
        state[name] = start[name] + (state[name] - start[name]) / 8
    return names


def permute(state: State, seed: int) -> list[str]:
    """The entries of two matrices in random order. (Permuted rows or columns leave a spectrum as it is.)"""
    names = _in_block(sick_block(seed), "self_attn.v_proj", "mlp.down_proj")
    for name in names:
        flat = state[name].flatten()
        state[name] = flat[torch.randperm(len(flat), generator=_generator(seed))].reshape(state[name].shape)
    return names


def collapse_head(state: State, seed: int) -> list[str]:
    """All rows of one head equal up to a factor, in query and key."""
    names, size = _in_block(sick_block(seed), "self_attn.q_proj", "self_attn.k_proj"), WIDTH // HEADS
    rows = slice(seed % HEADS * size, (seed % HEADS + 1) * size)
    for name in names:
        head = state[name][rows]
        state[name][rows] = torch.linspace(0.5, 1.5, size)[:, None] * head.mean(0)
    return names


def collapse_rank(state: State, seed: int) -> list[str]:
    """One direction of one matrix thirty times as strong as the strongest, as a layer that ran away has it."""
    names = _in_block(sick_block(seed), "mlp.gate_proj")
    for name in names:
        left, sigma, right = torch.linalg.svd(state[name], full_matrices=False)
        sigma[0] *= 30
        state[name] = left * sigma @ right
    return names


def scale(state: State, seed: int) -> list[str]:
    """One matrix times ten."""
    names = _in_block(sick_block(seed), "self_attn.o_proj")
    for name in names:
        state[name] *= 10
    return names


def duplicate(state: State, seed: int) -> list[str]:
    """A block copied over the next."""
    block = sick_block(seed)
    for here, there in zip(_in_block(block, *_ALL), _in_block(block + 1, *_ALL), strict=True):
        state[there] = state[here].clone()
    return _in_block(block, *_ALL) + _in_block(block + 1, *_ALL)


def kill_rows(state: State, seed: int) -> list[str]:
    """Eight output rows of zeros."""
    names = _in_block(sick_block(seed), "self_attn.o_proj")
    for name in names:
        state[name][torch.randperm(WIDTH, generator=_generator(seed))[:8]] = 0
    return names


def put_nan(state: State, seed: int) -> list[str]:
    """One entry that is not a number."""
    names = _in_block(sick_block(seed), "mlp.down_proj")
    for name in names:
        state[name][3, 5] = float("nan")
    return names


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 + seed)


def everything(state: State, _seed: int) -> list[str]:
    """Every matrix of the blocks."""
    return [name for name, weight in state.items() if weight.ndim == 2 and _BLOCK.search(name)]


@dataclass(frozen=True)
class Condition:
    """One way to be sick: how it comes about, and what the rules should say of which layers."""

    name: str
    base: str  # of TRAINED
    make: Callable[[State, int], list[str]]  # changes the weights, and says which matrices are sick
    expected: tuple[str, ...]  # any of these codes counts
    unclear: tuple[int, ...] = ()  # blocks that are neither sick nor healthy
    whole: bool = False  # the whole model is sick: a code counts whatever layers it names


CONDITIONS = (
    Condition("healthy", "healthy", lambda _state, _seed: [], ()),
    Condition("frozen block", "frozen block", lambda _, seed: _in_block(sick_block(seed), *_ALL), ("TW201",)),
    Condition("re-initialised matrices", "healthy", re_initialise, ("TW201",)),
    Condition("two matrices set back to 1/4", "healthy", set_back, ("TW103", "TW303", "TW201")),
    Condition("entries permuted", "healthy", permute, ("TW201", "TW303")),
    Condition("slow block (lr ÷ 50)", "slow block", lambda _, seed: _in_block(sick_block(seed), *_ALL),
              ("TW103", "TW303", "TW201")),
    Condition("starved depth (lr falls 300-fold)", "starved depth",
              lambda _state, _seed: _in_block(BLOCKS - 2, *_ALL) + _in_block(BLOCKS - 1, *_ALL), ("TW101", "TW102"),
              unclear=(2, 3)),
    Condition("last three blocks set back to 1/8", "healthy", starve_the_last, ("TW101",)),
    Condition("all matrices set back to 1/8", "healthy", set_all_back, ("TW202",), whole=True),
    Condition("lr ÷ 100", "lr ÷ 100", everything, ("TW202", "TW201"), whole=True),
    Condition("lr × 100", "lr × 100", everything, ("TW301", "TW302", "TW601", "TW204", "TW205"), whole=True),
    Condition("memorised (2 sequences, 1200 steps)", "memorised", everything, ("TW204", "TW205"), whole=True),
    Condition("collapsed head", "healthy", collapse_head, ("TW603",)),
    Condition("runaway direction", "healthy", collapse_rank, ("TW301",)),
    Condition("matrix × 10", "healthy", scale, ("TW401",)),
    Condition("block copied", "healthy", duplicate, ("TW604",)),
    Condition("8 dead rows", "healthy", kill_rows, ("TW602",)),
    Condition("NaN", "healthy", put_nan, ("TW601",)),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What the rules said of one sick model."""

    condition: Condition
    seed: int
    recall: float  # share of the sick matrices that an expected code names
    alarms: int  # untouched matrices that a warning or an error names
    untouched: int
    codes: tuple[str, ...]  # of all warnings and errors


def examine(folder: Path, condition: Condition, seed: int) -> Outcome:
    """Audit (or read the kept audit) and diagnose."""
    path = folder / f"{_file(condition.name)}-{seed}.audit"
    state = trained(folder, condition.base, seed)
    sick = {name.removesuffix(".weight") for name in condition.make(state, seed)}
    if not path.exists():
        tw.audit(state, randomize=1, workers=1, cache_dir=folder / "cache").save(path)
    audit = tw.Audit.load(path)
    found = [item for item in tw.diagnose(audit).findings if item.severity != "info"]
    right = {layer for item in found if item.code in condition.expected for layer in item.layers}
    named = {layer for item in found for layer in item.layers}
    healthy = {row.name for row in audit.rows if row.measured and row.block not in condition.unclear} - sick
    if condition.whole:
        recall = float(any(item.code in condition.expected for item in found))
    else:
        recall = len(right & sick) / len(sick) if sick else 0.0
    codes = tuple(f"{item.code}×{len(item.layers)}" for item in found)
    return Outcome(condition, seed, recall, 0 if condition.whole else len(named & healthy), len(healthy), codes)


def table(outcomes: list[Outcome], seeds: list[int]) -> str:
    """Sensitivity and false alarms by condition."""
    lines = ["| condition | expected | named in | sick matrices named | false alarms | all codes (× matrices) |",
             "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for condition in CONDITIONS:
        runs = [item for item in outcomes if item.condition is condition and item.seed in seeds]
        if not runs:
            continue
        codes = "; ".join(dict.fromkeys(", ".join(item.codes) or "none" for item in runs))
        alarms = f"{sum(item.alarms for item in runs)} of {sum(item.untouched for item in runs)}"
        if not condition.expected:
            lines.append(f"| {condition.name} | – | – | – | {alarms} | {codes} |")
            continue
        hit = sum(item.recall >= 0.5 for item in runs)
        share = sum(item.recall for item in runs) / len(runs)
        lines.append(
            f"| {condition.name} | {' or '.join(condition.expected)} | {hit} of {len(runs)} seeds | "
            f"{'whole model' if condition.whole else f'{share:.0%}'} | "
            f"{'–' if condition.whole else alarms} | {codes} |"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--folder", type=Path, required=True, help="where weights and audits are kept")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    made.add_argument("--train", nargs="*", help="only train these conditions (none named: all)")
    made.add_argument("--known", action="store_true", help="train nothing: only conditions whose weights are in F")
    made.add_argument("--write", action="store_true", help="write benchmarks/results/fault-injection.md")
    return made


def main() -> None:
    """Train, audit, diagnose, tell."""
    options = parser().parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.train is not None:
        for seed in options.seeds:
            for name in options.train or TRAINED:
                trained(options.folder, name, seed)
        return
    began = time.perf_counter()
    wanted = [(condition, seed) for condition in CONDITIONS for seed in options.seeds]
    if options.known:
        wanted = [(one, seed) for one, seed in wanted if weights_of(options.folder, one.base, seed).exists()]
    outcomes = [examine(options.folder, condition, seed) for condition, seed in wanted]
    run = dict.fromkeys(item.seed for item in outcomes)
    reported, tuned = [seed for seed in run if seed not in TUNING], [seed for seed in run if seed in TUNING]
    print(f"{len(outcomes)} models examined in {time.perf_counter() - began:.0f} s")
    for title, seeds in (("tuning", tuned), ("reported", reported)):
        if seeds:
            print(f"\n{title} seeds {seeds}\n\n{table(outcomes, seeds)}")
    if options.write:
        write(table(outcomes, reported), table(outcomes, tuned), (reported, tuned))


def write(reported: str, tuned: str, seeds: tuple[list[int], list[int]]) -> None:
    """Put the tables between the markers of the page."""
    said = (
        ("which no threshold has seen", seeds[0], reported), ("on which thresholds were chosen", seeds[1], tuned)
    )  # fmt: skip
    text = "\n\n".join(
        f"On seed{'s' if len(own) > 1 else ''} {', '.join(map(str, own))}, {what}:\n\n{found}"
        for what, own, found in said
        if own
    )
    page = PAGE.read_text(encoding="utf-8")
    page = re.sub(r"(<!-- measured -->\n).*?(\n<!-- end -->)", lambda m: m[1] + text + m[2], page, flags=re.DOTALL)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
