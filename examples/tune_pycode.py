"""Tunes a LoRA adapter of `examples/pycode-8m` on Markdown: a fine-tune that is well, or one that is overheated.

    python examples/tune_pycode.py --rate 2e-3 --text docs --output tuned
    python examples/tune_pycode.py --rate 1e-1 --text docs --output overheated

Needs transformers and peft (`tailwise[hf]`). A minute on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE = Path(__file__).resolve().parent / "pycode-8m"
STEPS, WARM_UP, BATCH, LENGTH = 60, 10, 4, 128
TARGETS = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


def windows(folder: Path) -> torch.Tensor:
    """(windows, LENGTH) token ids of all Markdown in a folder."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.md")))
    ids = torch.tensor(AutoTokenizer.from_pretrained(BASE)(text)["input_ids"])
    return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


def tuned(ids: torch.Tensor, rate: float) -> peft.PeftModel:
    """The base with an adapter that was trained at a peak learning rate."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32), config)
    optimizer = torch.optim.AdamW([item for item in model.parameters() if item.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARM_UP) * (1 - step / STEPS)
    )
    for step in range(STEPS):
        batch = ids[torch.randint(len(ids), (BATCH,))]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step in (0, STEPS - 1):
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return model


def main() -> None:
    """Tunes one adapter and writes it in bf16."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, required=True, help="peak learning rate")
    parser.add_argument("--text", type=Path, required=True, help="folder of Markdown")
    parser.add_argument("--output", type=Path, required=True, help="folder of the adapter")
    wanted = parser.parse_args()
    tuned(windows(wanted.text), wanted.rate).to(torch.bfloat16).save_pretrained(wanted.output)


if __name__ == "__main__":
    main()
