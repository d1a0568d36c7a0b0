"""Remedies as one line of a Trainer or Lightning run."""

from __future__ import annotations

import pytest
import torch

from tailwise.core.errors import UsageError
from tailwise.training.remedy import NAMES, Remedy

pytestmark = pytest.mark.filterwarnings("ignore")


def trainer_of(tmp_path, callbacks, **settings):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    rows = [{"input_ids": list(range(8)), "labels": list(range(8))}] * 32
    arguments = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True, logging_steps=1,
        dataloader_pin_memory=False, lr_scheduler_type="constant",
        **{"max_steps": 5, "save_strategy": "no", **settings},
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    return transformers.Trainer(model, arguments, train_dataset=rows, callbacks=callbacks)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "scale_residual_branches"])
def test_every_remedy_is_a_line_of_the_trainer(tmp_path, name):
    pytest.importorskip("transformers")
    from tailwise.training.huggingface import RemedyCallback

    settings = {"every": 1} if name in ("layerwise_learning_rates", "layerwise_weight_decay", "llr") else {}
    callback = RemedyCallback(name, **settings)
    trainer = trainer_of(tmp_path, [callback], max_grad_norm=0.0, weight_decay=0.1)
    trainer.train()
    assert len(callback.remedy.made) == 1
    if settings:
        balance = callback.remedy.made[0]
        assert balance.steps == 5
        assert len(set(balance.factors.values())) > 2
        assert balance.setting not in trainer.optimizer.optimizer.__dict__  # the groups are the Trainer's again
    if name == "AdaptiveClip":
        assert callback.remedy.made[0].steps == 5


def test_the_penalty_is_in_the_gradients(tmp_path):
    pytest.importorskip("transformers")
    from tailwise.training.huggingface import RemedyCallback

    def weight(callbacks):
        settings = {"learning_rate": 0.05, "optim": "sgd", "max_grad_norm": 0.0, "max_steps": 1}
        trainer = trainer_of(tmp_path, callbacks, **settings)
        before = trainer.model.model.layers[0].mlp.up_proj.weight.detach().clone()
        trainer.train()
        return before, trainer.model.model.layers[0].mlp.up_proj.weight.detach()

    before, plain = weight([])
    _, penalised = weight([RemedyCallback("spectral_penalty", weight=5.0, iterations=200)])
    U, S, V = torch.linalg.svd(before)
    torch.testing.assert_close(plain - penalised, 0.05 * 5.0 * S[0] * torch.outer(U[:, 0], V[0]), atol=1e-3, rtol=0.05)


def test_branches_are_scaled_before_the_first_step_and_not_when_resumed(tmp_path):
    pytest.importorskip("transformers")
    from tailwise.training.huggingface import RemedyCallback

    settings = {"learning_rate": 0.0, "save_strategy": "steps", "save_steps": 2}
    plain = trainer_of(tmp_path / "a", [], **settings)
    before = plain.model.model.layers[0].mlp.down_proj.weight.detach().clone()
    trainer = trainer_of(tmp_path / "b", [RemedyCallback("scale_residual_branches")], **settings)
    trainer.train()
    torch.testing.assert_close(trainer.model.model.layers[0].mlp.down_proj.weight.detach(), before / 2)
    resumed = trainer_of(tmp_path / "b", [RemedyCallback("scale_residual_branches")], **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    torch.testing.assert_close(resumed.model.model.layers[0].mlp.down_proj.weight.detach(), before / 2)


def test_a_trainer_that_resumes_goes_on_with_the_state(tmp_path):
    pytest.importorskip("transformers")
    from tailwise.training.huggingface import RemedyCallback

    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    first = RemedyCallback("llr", every=2)
    trainer_of(tmp_path, [first], **settings).train()
    second = RemedyCallback("llr", every=100)
    trainer = trainer_of(tmp_path, [second], **{**settings, "max_steps": 5})
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert second.remedy.made[0].steps == 5
    assert second.remedy.made[0].factors == first.remedy.made[0].factors


def test_a_function_makes_what_it_likes(tmp_path):
    pytest.importorskip("transformers")
    import tailwise as tw
    from tailwise.training.huggingface import RemedyCallback

    callback = RemedyCallback(lambda model, optimizer: tw.remedies.llr(model, optimizer, high=2.0, every=1))
    trainer_of(tmp_path, [callback]).train()
    assert callback.remedy.made[0].steps == 5


@pytest.mark.parametrize(("remedy", "settings", "what"), [
    ("lrr", {}, "llr"), ("CurriculumSampler", {}, "no remedy"), (lambda m, o: None, {"every": 3}, "every is given"),
])  # fmt: skip
def test_what_is_no_remedy_of_a_loop_is_refused(remedy, settings, what):
    with pytest.raises(UsageError, match=what):
        Remedy(remedy, settings)


def lightning_module(model, seen):
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = model

        def training_step(self, batch, index):
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=0.1)
            optimizer.register_step_post_hook(lambda *_: seen.append(1))
            return optimizer

    return Module()


@pytest.mark.parametrize("name", ["layerwise_learning_rates", "llr", "AdaptiveClip", "spectral_penalty"])
def test_remedies_are_a_line_of_lightning_and_live_in_its_checkpoints(tmp_path, model, name):
    lightning = pytest.importorskip("pytorch_lightning")
    from tailwise.training.lightning import RemedyCallback

    def trained(epochs, **fit):
        settings = {"every": 1} if name in ("layerwise_learning_rates", "llr") else {}
        callback = RemedyCallback(name, **settings)
        trainer = lightning.Trainer(
            max_epochs=epochs, callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(tmp_path),
        )  # fmt: skip
        loader = torch.utils.data.DataLoader(torch.randn(16, 48), batch_size=4)
        trainer.fit(lightning_module(model, []), loader, **fit)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return callback.remedy.made[0]

    first = trained(1)
    again = trained(2, ckpt_path=str(tmp_path / "last.ckpt"), weights_only=False)
    if name != "spectral_penalty":
        assert (first.steps, again.steps) == (4, 8)
