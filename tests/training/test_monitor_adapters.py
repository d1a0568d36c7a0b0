"""Trainers and trackers, with the libraries themselves."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import threading
import warnings

import pytest
import torch

import tailwise as tw
from tailwise.history.jsonl import read_jsonl
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
            sink = trackers.Wandb(run)
            sink.write(point)
            sink.flush()
            summary = dict(run.summary)
    assert summary["tailwise/mean/alpha"] == 3.0
    assert summary["tailwise/step"] == 7


def offline(wandb, tmp_path, monkeypatch):
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    return wandb.init(project="test", dir=str(tmp_path))


def records_of(data):
    """Records of W&B's file: a header of 7 bytes, then the log format of LevelDB."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if kind == 0 or 32768 - at % 32768 < 7:  # the rest of a block that no record begins in
            at += 32768 - at % 32768
            continue
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            yield parts
            parts = b""


def rows_of(folder):
    """Every row of the run that W&B has written below a folder; its process may still be writing when it has ended."""
    from wandb.proto import wandb_internal_pb2

    for _ in range(300):
        records = []
        for data in records_of(next(folder.rglob("*.wandb")).read_bytes()):
            records.append(wandb_internal_pb2.Record())
            records[-1].ParseFromString(data)
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            break
        threading.Event().wait(0.1)
    rows = [record.history.item for record in records if record.WhichOneof("record_type") == "history"]
    return [{"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in row} for row in rows]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("own_every", "numbered"), [(1, True), (1, False), (10, True), (25, True), (0, False)])
def test_wandb_keeps_every_row_of_the_training_and_of_the_monitor(tmp_path, monkeypatch, model, own_every, numbered):
    """Rows that the training logs with its own steps, beside points of the monitor: none is dropped."""
    wandb = pytest.importorskip("wandb")
    with offline(wandb, tmp_path, monkeypatch) as run:
        settings = {"every": 10, "full": "off", "max_overhead": 1.0, "sinks": [trackers.Wandb(run)]}
        with tw.Monitor(model, **settings) as monitor:
            for step in range(1, 101):
                monitor.step(loss=1.0)
                if own_every and step % own_every == 0:
                    run.log({"mine": step}, **({"step": step // own_every} if numbered else {}))
    rows = rows_of(tmp_path)
    assert [row["mine"] for row in rows if "mine" in row] == (
        list(range(own_every, 101, own_every)) if own_every else []
    )
    assert [row["tailwise/step"] for row in rows if "tailwise/step" in row] == list(range(0, 101, 10))


@pytest.mark.filterwarnings("ignore")
def test_trackio_keeps_its_count_of_steps(tmp_path, monkeypatch, point):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trackio = pytest.importorskip("trackio")
    run = trackio.init(project="test", name="one", auto_log_gpu=False)
    for step in range(3):
        trackio.log({"mine": step})
        trackers.Trackio(run).write(dataclasses.replace(point, step=100 * step))
    trackio.finish()
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs("test", "one")
    assert [(row["step"], row["mine"]) for row in rows if "mine" in row] == [(0, 0), (1, 1), (2, 2)]
    assert [(row["step"], row["tailwise/mean/alpha"]) for row in rows if "mine" not in row] == [
        (0, 3.0), (100, 3.0), (200, 3.0),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_mlflow_itself_keeps_points(tmp_path, monkeypatch, point):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "runs").as_uri())
    try:
        run = client.create_run(client.create_experiment("test"))
    except Exception as error:  # mlflow-skinny without a store that it can open here
        pytest.skip(f"no store for MLflow: {error}")
    trackers.Mlflow(client, run.info.run_id).write(point)
    (metric,) = client.get_metric_history(run.info.run_id, "tailwise/mean/alpha")
    assert (metric.value, metric.step, metric.timestamp) == (3.0, 7, 1_700_000_000_000)


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
        trainer = transformers.Trainer(
            model, arguments, train_dataset=rows, eval_dataset=rows[:4], callbacks=[callback]
        )
        trainer.train()
    assert [point.step for point in kept.of("cheap") if point.layers] == [0, 2, 4, 6]
    # What the Trainer logs stands at its own step, that of the last step too.
    logged = {name: [point.step for point in kept.of("cheap") if name in point.scalars and not point.layers]
              for name in ("loss", "grad_norm", "lr", "eval_loss")}  # fmt: skip
    assert logged == {"loss": [1, 2, 3, 4, 5, 6], "grad_norm": [1, 2, 3, 4, 5, 6], "lr": [1, 2, 3, 4, 5, 6],
                      "eval_loss": [3, 6]}  # fmt: skip
    history = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    assert {p.step: p.scalars["loss"] for p in kept.of("cheap") if "loss" in p.scalars} == history
    first = next(point for point in kept.of("cheap") if point.layers)  # a full one may come before it
    assert "model.layers.0.self_attn.q_proj" in first.layers
    assert first.notes[0] == "optimizer: AdamW"
    assert callback.monitor.report().errors == ()
    assert callback.monitor.report().rules > 5


def small_trainer(tmp_path, callbacks, **settings):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    rows = [{"input_ids": list(range(8)), "labels": list(range(8))}] * 16
    settings = {"max_steps": 6, "logging_steps": 1, "save_strategy": "no", **settings}
    arguments = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False, per_device_eval_batch_size=2, **settings,
    )  # fmt: skip
    held = {"val": rows[:4], "test": rows[:2]} if "eval_strategy" in settings else None
    model = transformers.LlamaForCausalLM(config)
    return transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=held, callbacks=callbacks)


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_with_several_evaluation_sets(kept, tmp_path):
    from tailwise.training.huggingface import MonitorCallback

    callback = MonitorCallback(every=2, full="off", sinks=[kept], max_overhead=1.0)
    small_trainer(tmp_path, [callback], eval_strategy="steps", eval_steps=3).train()
    for name in ("eval_val_loss", "eval_test_loss"):
        assert [point.step for point in kept.points if name in point.scalars] == [3, 6]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_trainer_that_is_interrupted_closes_the_monitor(kept, tmp_path, error):
    transformers = pytest.importorskip("transformers")
    from tailwise.training.huggingface import MonitorCallback

    class Interrupts(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **given):
            if state.global_step == 3:
                raise error

    callback = MonitorCallback(every=2, full="off", sinks=[kept], max_overhead=1.0)
    trainer = small_trainer(tmp_path, [callback, Interrupts()])
    with pytest.raises(error):
        trainer.train()
    for _ in range(600):
        if callback.monitor._closed:
            break
        threading.Event().wait(0.1)
    assert callback.monitor._closed
    assert [point.step for point in kept.points if point.layers] == [0, 2]


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_that_resumes_writes_one_line(tmp_path):
    from tailwise.history.store import History
    from tailwise.training.huggingface import MonitorCallback

    def monitored():
        return MonitorCallback(every=1, full="off", history=tmp_path / "h.db", run="a", max_overhead=1.0)

    small_trainer(tmp_path, [monitored()], save_strategy="steps", save_steps=2, max_steps=5).train()
    small_trainer(tmp_path, [monitored()], save_strategy="steps", save_steps=2).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-2")
    )
    with History(tmp_path / "h.db") as history:
        assert [point.step for point in history.points("a")] == [0, 1, 2, 3, 4, 5, 6]
        assert [point.step for point in history.points("a, left at step 5")] == [3, 4, 5]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("closed", ["by Ctrl-C", "at the end of Python"])
def test_what_nobody_closes_is_written_when_python_ends(tmp_path, closed):
    """A script that is interrupted leaves the points that it has measured."""
    raises = "raise KeyboardInterrupt" if closed == "by Ctrl-C" else ""
    script = f"""
import torch, tailwise as tw
model = torch.nn.Linear(32, 32)
monitor = tw.Monitor(model, every=1, full_every=2, history={str(tmp_path / "h.jsonl")!r}, run="a", max_overhead=1.0)
for step in range(4):
    monitor.step(loss=1.0)
monitor.note(eval_loss=2.0)
{raises}
"""
    subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)
    items = list(read_jsonl(tmp_path / "h.jsonl"))
    assert [item.step for item in items if item.cadence == "cheap"] == [0, 1, 2, 3, 4, 4]
    assert items[-1].scalars.get("eval_loss") == 2.0 or items[-2].scalars.get("eval_loss") == 2.0


@pytest.mark.filterwarnings("ignore")
def test_lightning_with_two_optimizers_counts_batches_and_measures_updates(kept, tmp_path, model):
    lightning = pytest.importorskip("pytorch_lightning")
    from tailwise.training.lightning import MonitorCallback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.net = model

        def training_step(self, batch, index):
            for optimizer in self.optimizers():
                loss = self.net(batch).square().mean()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def validation_step(self, batch, index, dataloader_idx=0):
            self.log("val_loss", 7.0 + dataloader_idx)

        def configure_optimizers(self):
            return [torch.optim.SGD(self.net[0].parameters(), lr=0.1), torch.optim.AdamW(self.net[2].parameters())]

    callback = MonitorCallback(every=2, full="off", sinks=[kept], max_overhead=1.0)
    trainer = lightning.Trainer(
        max_epochs=1, callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=str(tmp_path), accelerator="cpu",
    )  # fmt: skip
    training, *held = (torch.utils.data.DataLoader(torch.randn(size, 48), batch_size=4) for size in (32, 4, 4))
    trainer.fit(Module(), training, held)
    measured = [point for point in kept.points if point.layers]
    assert [point.step for point in measured] == [0, 2, 4, 6, 8]
    assert all("update_ratio" in values for point in measured[1:] for values in point.layers.values())
    (noted,) = [point for point in kept.points if not point.layers]
    assert (noted.step, noted.scalars["eval_0_loss"], noted.scalars["eval_1_loss"]) == (8, 7.0, 8.0)
    assert measured[0].notes[0] == "optimizer: SGD, AdamW"


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
    measured = [point for point in kept.points if point.layers]
    assert [point.step for point in measured] == [0, 2, 4]
    assert callback.monitor.report().rules > 5
    assert set(kept.points[0].layers) == {"net.0", "net.2"}
    assert [point.scalars["loss"] for point in measured[1:]] == [5.0, 5.0]  # not divided by the accumulation
    noted = {point.step: point.scalars["eval_loss"] for point in kept.points if "eval_loss" in point.scalars}
    assert noted == {3: 7.0}  # an epoch is three steps


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
