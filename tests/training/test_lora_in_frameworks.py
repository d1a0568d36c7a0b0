"""Low-rank adapters under the Trainer, Lightning and Accelerate: the changes of layers, by names that people know."""

from __future__ import annotations

import pytest
import torch

peft = pytest.importorskip("peft")

# Of peft and the frameworks, about each other.
pytestmark = pytest.mark.filterwarnings("ignore")
FACTORS = {"lora_A.default", "lora_B.default"}


def net():
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(24, 40), "head": torch.nn.Linear(40, 8)})
    model.forward = lambda x: model["head"](model["q_proj"](x))
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))


def held(kept, name, prefix="base_model.model."):
    """That the last point has a change that moves, its two factors, and a weight under them that does not."""
    layers = [point for point in kept.of("cheap") if point.layers][-1].layers
    assert layers[name]["update_ratio"] > 0
    assert layers[name]["stable_rank"] <= 2.0
    at = prefix + name.removeprefix("net.")
    assert all(layers[f"{at}.{factor}"]["update_ratio"] >= 0 for factor in FACTORS)
    assert layers[f"{at}.base_layer"]["update_ratio"] == 0.0


def test_the_trainer(kept, tmp_path):
    transformers = pytest.importorskip("transformers")
    from tailwise.training.huggingface import MonitorCallback

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = peft.get_peft_model(
        transformers.LlamaForCausalLM(config), peft.LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    callback = MonitorCallback(every=2, full="off", sinks=[kept], max_overhead=1.0)
    arguments = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, max_steps=4, report_to=[], save_strategy="no", use_cpu=True,
        disable_tqdm=True, dataloader_pin_memory=False, label_names=["labels"],
    )  # fmt: skip
    rows = [{"input_ids": list(range(8)), "labels": list(range(8))}] * 8
    transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train()
    held(kept, "model.layers.0.self_attn.q_proj")
    assert callback.monitor.report().errors == ()


def test_lightning(kept, tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")
    from tailwise.training.lightning import MonitorCallback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, index):
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)

    callback = MonitorCallback(every=2, full="off", sinks=[kept], max_overhead=1.0)
    trainer = lightning.Trainer(
        max_epochs=1, callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=str(tmp_path), accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.randn(16, 24), batch_size=4))
    held(kept, "net.q_proj", "net.base_model.model.")


def test_accelerate(kept):
    accelerate = pytest.importorskip("accelerate")
    from tailwise.training.accelerate import AcceleratedMonitor

    accelerator = accelerate.Accelerator(cpu=True)
    model = net()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model, optimizer = accelerator.prepare(model, optimizer)
    with AcceleratedMonitor(accelerator, model, every=2, full="off", sinks=[kept], max_overhead=1.0) as monitor:
        for _ in range(4):
            accelerator.backward(model(torch.randn(4, 24)).square().mean())
            optimizer.step()
            optimizer.zero_grad()
            monitor.step()
    held(kept, "q_proj")
