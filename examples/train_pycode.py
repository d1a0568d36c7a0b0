"""Trains a small Llama on the source of Python's standard library, and keeps checkpoints along the way.

    python examples/train_pycode.py --minutes 45 --output runs/pycode
    python examples/train_pycode.py --steps 1746 --output runs/pycode      the same weights each time on one machine

Modules whose path hashes to 0 mod 20 are held out. Writes OUTPUT/{init,early,mid,late,final} in bf16, each with
training.json, and OUTPUT/log.jsonl and OUTPUT/heldout.txt. Needs transformers and tokenizers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY, END = 4096, "<|endoftext|>"
BATCH, LENGTH = 16, 256
PEAK_RATE, WARM_UP, FLOOR = 3e-3, 100, 0.05  # learning rate: linear to the peak, then a cosine to 5 % of it
#: Share of the training after which a checkpoint is kept; `final` comes at the end.
MARKS = {"init": 0.0, "early": 0.03, "mid": 0.12, "late": 0.4}


def source_files() -> tuple[Path, list[Path], list[Path]]:
    """The standard library's folder, and its modules to train on and to hold out."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(
        path
        for path in library.glob("**/*.py")
        if "site-packages" not in path.parts and "dist-packages" not in path.parts
    )
    held = [path for path in files if _digest(path.relative_to(library)) % 20 == 0]
    return library, [path for path in files if path not in set(held)], held


def _digest(path: Path) -> int:
    return int(hashlib.sha256(path.as_posix().encode()).hexdigest(), 16)


def texts(files: list[Path]) -> Iterator[str]:
    """Contents of the files that are UTF-8."""
    for path in files:
        try:
            yield path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def train_tokenizer(files: list[Path]) -> Tokenizer:
    """A byte-level BPE tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(files), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, files: list[Path]) -> torch.Tensor:
    """All texts as one stream (n,), each after an end-of-text token."""
    stream: list[int] = []
    for encoding in tokenizer.encode_batch(list(texts(files))):
        stream += [0, *encoding.ids]
    return torch.tensor(stream)


def new_model() -> LlamaForCausalLM:
    """Eight layers, 256 wide: 8.0 million parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    )


@dataclass
class Run:
    """One training run."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    train: torch.Tensor  # (n,) token ids
    held: torch.Tensor
    device: str
    output: Path
    generator: torch.Generator
    step: int = 0
    marks: dict[str, float] = field(default_factory=lambda: dict(MARKS))

    def batch(self) -> torch.Tensor:
        """BATCH random windows, (16, 257)."""
        starts = torch.randint(0, len(self.train) - LENGTH - 1, (BATCH,), generator=self.generator)
        return torch.stack([self.train[start : start + LENGTH + 1] for start in starts.tolist()]).to(self.device)

    def loss(self, windows: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy in nats a token."""
        with torch.autocast(self.device, torch.bfloat16):
            logits = self.model(windows[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.float().reshape(-1, VOCABULARY), windows[:, 1:].reshape(-1))

    @torch.no_grad()
    def held_out_loss(self, windows: int) -> float:
        """Mean loss on the first `windows` windows of 4 × 257 held-out tokens."""
        self.model.eval()
        size = 4 * (LENGTH + 1)
        losses = [
            self.loss(self.held[i * size : (i + 1) * size].view(4, LENGTH + 1).to(self.device)).item()
            for i in range(min(windows, len(self.held) // size))
        ]
        self.model.train()
        return sum(losses) / len(losses)

    def save(self, name: str, loss: float) -> None:
        """Weights in bf16, tokenizer and training.json."""
        folder = self.output / name
        copy = LlamaForCausalLM(self.model.config)
        copy.load_state_dict(self.model.state_dict())
        copy.to(torch.bfloat16).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        facts = {"step": self.step, "tokens": self.step * BATCH * LENGTH, "val_loss": loss}
        (folder / "training.json").write_text(json.dumps(facts))
        print(f"{name}: step {self.step}, held-out loss {loss:.3f}", flush=True)


def learning_rate(step: int, done: float) -> float:
    """Rate at `step` after the share `done` of the training."""
    cosine = FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done))
    return PEAK_RATE * min(1.0, (step + 1) / WARM_UP) * cosine


def train(run: Run, minutes: float | None, steps: int | None, windows: int) -> None:
    """Train for so many minutes or steps, keep checkpoints and write the log."""
    matrices = [p for p in run.model.parameters() if p.ndim == 2]
    vectors = [p for p in run.model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=True)
    started = time.perf_counter()
    with (run.output / "log.jsonl").open("w") as log:
        while True:
            seconds = time.perf_counter() - started
            done = run.step / steps if steps is not None else seconds / (60 * (minutes or 1))
            for name in [name for name, mark in run.marks.items() if mark <= done < 1]:
                del run.marks[name]
                run.save(name, run.held_out_loss(windows))
            if done >= 1:
                break
            rate = learning_rate(run.step, done)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = run.loss(run.batch())
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            run.step += 1
            if run.step % 20 == 0:
                facts = {
                    "step": run.step,
                    "loss": loss.item(),
                    "lr": rate,
                    "grad_norm": norm.item(),
                    "seconds": seconds,
                }
                print(json.dumps(facts), file=log, flush=True)
            if run.step % 100 == 0:
                print(
                    f"{run.step}: loss {loss.item():.3f}, {run.step * BATCH * LENGTH / seconds:.0f} tokens/s",
                    flush=True,
                )
    run.save("final", run.held_out_loss(windows))


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints and log")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="train for so long (45 unless --steps is given)")
    length.add_argument("--steps", type=int, help="train for so many steps, whatever the machine: reproducible")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="of the CPU; another number rounds differently")
    parser.add_argument("--windows", type=int, default=40, help="held-out windows of a measurement")
    found = parser.parse_args()
    if found.minutes is None and found.steps is None:
        found.minutes = 45.0
    if found.steps is not None and found.steps < 1:
        parser.error("--steps takes 1 or more")
    return found


def main() -> None:
    """Prepare text, tokenizer and model, and train."""
    wanted = arguments()
    wanted.output.mkdir(parents=True, exist_ok=True)
    library, train_files, held_files = source_files()
    tokenizer = train_tokenizer(train_files)
    train_ids, held_ids = encode(tokenizer, train_files), encode(tokenizer, held_files)
    names = "\n".join(path.relative_to(library).as_posix() for path in held_files)
    (wanted.output / "heldout.txt").write_text(names + "\n")
    device = wanted.device if wanted.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(wanted.threads)
    torch.manual_seed(wanted.seed)
    model = new_model().to(device)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(train_ids)} tokens to train on, {len(held_ids)} held out; {count} parameters on {device}", flush=True)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)
    generator = torch.Generator().manual_seed(wanted.seed + 1)
    run = Run(model, fast, train_ids, held_ids, device, wanted.output, generator)
    train(run, wanted.minutes, wanted.steps, wanted.windows)


if __name__ == "__main__":
    main()
