"""Loops as people have them: batches that are skipped, trainings that begin twice, early evaluations."""

from __future__ import annotations

import pytest
import torch

import tailwise as tw
from tailwise.history.store import History

pytestmark = pytest.mark.filterwarnings("ignore")


def small_trainer(tmp_path, callbacks, **settings):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    rows = [{"input_ids": list(range(8)), "labels": list(range(8))}] * 16
    arguments = transformers.TrainingArguments(
        str(tmp_path / "out"), per_device_train_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True,
        max_steps=4, dataloader_pin_memory=False, logging_steps=1, save_strategy="no", **settings,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    return transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:4], callbacks=callbacks)


def measured(kept):
    return [point.step for point in kept.points if point.layers]


def test_an_evaluation_before_the_first_step_stands_at_step_zero(kept, tmp_path):
    pytest.importorskip("transformers")
    from tailwise.training.huggingface import MonitorCallback

    callback = MonitorCallback(every=2, full="off", sinks=[kept], max_overhead=1.0)
    small_trainer(tmp_path, [callback], eval_strategy="steps", eval_steps=4, eval_on_start=True).train()
    assert [point.step for point in kept.points if "eval_loss" in point.scalars] == [0, 4]


def test_a_trainer_that_trains_twice_has_two_runs(tmp_path):
    pytest.importorskip("transformers")
    from tailwise.training.huggingface import MonitorCallback

    callback = MonitorCallback(every=1, full="off", history=tmp_path / "h.db", max_overhead=1.0)
    trainer = small_trainer(tmp_path, [callback])
    trainer.train()
    first = callback.monitor
    trainer.train()
    assert first._closed
    assert callback.monitor is not first
    with History(tmp_path / "h.db") as history:
        assert sorted((run.first_step, run.last_step) for run in history.runs()) == [(0, 4), (0, 4)]


def test_a_batch_size_that_is_found_by_trial_leaves_one_run_of_what_was_trained(tmp_path):
    """`auto_find_batch_size` begins the training anew after a batch that did not fit, and tells no callback of it."""
    transformers = pytest.importorskip("transformers")
    from tailwise.training.huggingface import MonitorCallback

    class Full(transformers.TrainerCallback):
        failed = False

        def on_step_begin(self, args, state, control, **given):
            if state.global_step == 2 and not self.failed:
                self.failed = True
                raise RuntimeError("CUDA out of memory.")

    callback = MonitorCallback(every=1, full="off", history=tmp_path / "h.db", max_overhead=1.0, run="a")
    small_trainer(tmp_path, [callback, Full()], auto_find_batch_size=True).train()
    with History(tmp_path / "h.db") as history:
        assert [point.step for point in history.points("a")] == [0, 1, 2, 3, 4]
        assert callback.monitor._closed


def lightning_trainer(tmp_path, callbacks, **settings):
    lightning = pytest.importorskip("pytorch_lightning")
    return lightning.Trainer(
        callbacks=callbacks, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False, default_root_dir=str(tmp_path), **settings,
    )  # fmt: skip


def lightning_module(net, skip=()):
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net

        def training_step(self, batch, index):
            return None if index in skip else self.net(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    return Module()


def loader(size=24):
    return torch.utils.data.DataLoader(torch.randn(size, 48), batch_size=4)


def test_batches_that_lightning_skips_are_no_steps_or_steps_without_a_loss(kept, tmp_path, model):
    pytest.importorskip("pytorch_lightning")
    from tailwise.training.lightning import MonitorCallback

    callback = MonitorCallback(every=1, full="off", sinks=[kept], max_overhead=1.0)
    trainer = lightning_trainer(tmp_path, [callback], max_epochs=1)
    trainer.fit(lightning_module(model, skip=(1, 2)), loader())
    assert measured(kept) == list(range(trainer.global_step + 1))
    assert callback.monitor.report().errors == ()


@pytest.mark.parametrize("accumulate", [4, 10])
def test_the_last_batches_of_an_epoch_are_a_step_however_many_are_missing(kept, tmp_path, model, accumulate):
    pytest.importorskip("pytorch_lightning")
    from tailwise.training.lightning import MonitorCallback

    callback = MonitorCallback(every=1, full="off", sinks=[kept], max_overhead=1.0)
    trainer = lightning_trainer(tmp_path, [callback], max_epochs=2, accumulate_grad_batches=accumulate)
    trainer.fit(lightning_module(model), loader())
    assert measured(kept) == list(range(trainer.global_step + 1))


def test_a_callback_of_lightning_serves_two_fits(tmp_path, model):
    pytest.importorskip("pytorch_lightning")
    from tailwise.training.lightning import MonitorCallback

    callback = MonitorCallback(every=1, full="off", history=tmp_path / "h.db", max_overhead=1.0)
    for _ in range(2):
        lightning_trainer(tmp_path, [callback], max_epochs=1).fit(lightning_module(model), loader())
        assert callback.monitor._closed
    with History(tmp_path / "h.db") as history:
        assert [(run.first_step, run.last_step) for run in history.runs()] == [(0, 6), (0, 6)]


def test_a_loss_of_several_devices_is_their_mean(model, kept):
    """DataParallel hands out a loss for each of its devices."""
    with tw.Monitor(model, every=1, full="off", at_start=False, sinks=[kept], max_overhead=1.0) as monitor:
        monitor.step(loss=torch.tensor([1.0, 3.0], requires_grad=True))
        monitor.step(loss=torch.tensor([float("nan"), 3.0]))
    assert kept.points[0].scalars["loss"] == 2.0
    assert kept.points[0].scalars["loss_mean"] == 2.0
    assert [(alarm.rule, alarm.step) for alarm in monitor.alarms] == [("TW701", 2)]


def test_two_models_of_one_accelerator_are_two_monitors_of_one_run(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    from tailwise.training.accelerate import AcceleratedMonitor

    accelerator = accelerate.Accelerator(cpu=True)
    nets = {"generator": torch.nn.Linear(32, 48), "critic": torch.nn.Linear(48, 32)}
    optimizers = {name: torch.optim.SGD(net.parameters(), lr=0.01) for name, net in nets.items()}
    prepared = {name: accelerator.prepare(net, optimizers[name]) for name, net in nets.items()}
    settings = {"every": 1, "full": "off", "max_overhead": 1.0}
    monitors = [AcceleratedMonitor(accelerator, net, run=name, history=tmp_path / f"{name}.jsonl", **settings)
                for name, (net, _) in prepared.items()]  # fmt: skip
    for _ in range(3):
        x = torch.randn(4, 32)
        accelerator.backward(prepared["critic"][0](prepared["generator"][0](x)).square().mean())
        for _, optimizer in prepared.values():
            optimizer.step()
            optimizer.zero_grad()
        for monitor in monitors:
            monitor.step()
    for monitor in monitors:
        monitor.close()
        assert monitor.report().cheap == 4
        assert monitor.report().errors == ()


def test_a_run_of_wandb_that_goes_on_from_a_row_keeps_all_rows(tmp_path, monkeypatch, model):
    wandb = pytest.importorskip("wandb")
    from tailwise.training import trackers

    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    dropped = []
    monkeypatch.setattr("wandb.termwarn", lambda text, **_: dropped.append(text), raising=False)
    with wandb.init(project="test", dir=str(tmp_path)) as run:
        run.log({"mine": 0}, step=5000)  # as a resumed run begins
        with tw.Monitor(model, every=1, full="off", max_overhead=1.0, sinks=[trackers.Wandb(run)], first_step=10) as m:
            for step in range(11, 31):
                m.step(step=step, loss=1.0)
                run.log({"mine": step}, step=5000 + step)
    assert not [text for text in dropped if "less than" in text or "must only increase" in text]
