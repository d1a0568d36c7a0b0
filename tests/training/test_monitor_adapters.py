"""Trainers and trackers, with the libraries themselves."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from tailwise.history.point import Point
from tailwise.training import trackers


@pytest.fixture
def point():
    layers = {"a[0]": {"alpha": 2.0, "ks_distance": 0.1}, "b": {"alpha": 4.0, "stable_rank": math.nan}}
    return Point("run", 7, "full", 1.7e9, layers, {"loss": 0.5})


def test_a_point_as_series():
    layers = {"a": {"alpha": 2.0, "ks_distance": 0.1}, "b": {"alpha": 4.0, "stable_rank": math.nan}}
    assert trackers.flat(Point("run", 7, "full", 0.0, layers, {"loss": 0.5})) == {
        "tailwise/loss": 0.5,
        "tailwise/alpha/a": 2.0,
        "tailwise/alpha/b": 4.0,
        "tailwise/mean/alpha": 3.0,
        "tailwise/mean/ks_distance": 0.1,
    }


def test_tensorboard_keeps_step_and_value(point, tmp_path):
    pytest.importorskip("tensorboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(tmp_path))
        trackers.TensorBoard(writer).write(point)
        writer.close()
        events = EventAccumulator(str(tmp_path))
        events.Reload()
    (found,) = events.Scalars("tailwise/mean/alpha")
    assert (found.step, found.value, found.wall_time) == (7, 3.0, 1.7e9)


def test_wandb_offline_takes_a_point_and_its_step(point, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with wandb.init(project="test", dir=str(tmp_path)) as run:
            trackers.Wandb(run).write(point)
            summary = dict(run.summary)
    assert summary["tailwise/mean/alpha"] == 3.0
    assert summary["tailwise/step"] == 7


def test_mlflow_keeps_step_and_value(point, tmp_path):
    pytest.importorskip("mlflow")

    class Client:
        def __init__(self):
            self.metrics = []

        def log_batch(self, run_id, metrics):
            self.metrics += metrics

    client = Client()
    trackers.Mlflow(client, "1").write(point)
    found = {metric.key: (metric.value, metric.step, metric.timestamp) for metric in client.metrics}
    assert found["tailwise/mean/alpha"] == (3.0, 7, 1_700_000_000_000)
    assert "tailwise/alpha/a_0_" in found


def test_trackio_gets_step_and_values(point):
    class Run:
        def log(self, values, step):
            self.logged = values, step

    run = Run()
    trackers.Trackio(run).write(point)
    assert run.logged == (trackers.flat(point), 7)


def test_the_trainer_of_transformers(kept, tmp_path):
    transformers = pytest.importorskip("transformers")
    from tailwise.training.huggingface import MonitorCallback

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    rows = [{"input_ids": list(range(8)), "labels": list(range(8))}] * 16
    callback = MonitorCallback(every=2, full_every=4, sinks=[kept], max_overhead=1.0)
    arguments = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=6, logging_steps=1,
        eval_strategy="steps", eval_steps=3, per_device_eval_batch_size=2,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:4], callbacks=[callback]).train()
    assert [point.step for point in kept.of("cheap")] == [0, 2, 4, 6]
    # The evaluation of step 3 is in the next point and in no other; that of step 6 comes after the last point.
    assert ["eval_loss" in point.scalars for point in kept.of("cheap")] == [False, False, True, False]
    assert "model.layers.0.self_attn.q_proj" in kept.points[0].layers
    assert {"loss", "lr"} <= set(kept.of("cheap")[-1].scalars)
    assert callback.monitor.report().errors == ()
    assert callback.monitor.report().rules > 5


def test_the_trainer_of_lightning(kept, tmp_path, model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning = pytest.importorskip("pytorch_lightning")
        from tailwise.training.lightning import MonitorCallback

        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = model

            def training_step(self, batch, index):
                return 0.0 * self.net(batch).square().mean() + 5.0

            def validation_step(self, batch, index):
                self.log("val_loss", 7.0)

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.01)

        callback = MonitorCallback(every=2, full="off", sinks=[kept], max_overhead=1.0)
        trainer = lightning.Trainer(
            max_steps=4, accumulate_grad_batches=2, callbacks=[callback], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(tmp_path), accelerator="cpu",
        )  # fmt: skip
        training, held = (torch.utils.data.DataLoader(torch.randn(size, 48), batch_size=4) for size in (24, 4))
        trainer.fit(Module(), training, held)
    assert [point.step for point in kept.points] == [0, 2, 4]
    assert callback.monitor.report().rules > 5
    assert set(kept.points[0].layers) == {"net.0", "net.2"}
    assert [point.scalars["loss"] for point in kept.points[1:]] == [5.0, 5.0]  # not divided by the accumulation
    assert [point.scalars.get("eval_loss") for point in kept.points] == [None, None, 7.0]  # an epoch is three steps


def test_accelerate_counts_steps_of_the_optimizer(kept, model):
    accelerate = pytest.importorskip("accelerate")
    from tailwise.training.accelerate import AcceleratedMonitor

    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    inner = model
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.01))
    with AcceleratedMonitor(accelerator, model, every=1, full="off", sinks=[kept], max_overhead=1.0) as monitor:
        for _ in range(4):
            with accelerator.accumulate(model):
                accelerator.backward(model(torch.randn(4, 48)).square().mean())
                optimizer.step()
                optimizer.zero_grad()
            monitor.step()
    assert [point.step for point in kept.points] == [0, 1, 2]
    assert monitor._live.module is inner
    assert monitor.report().rules > 5
