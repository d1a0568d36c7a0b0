"""A checkpoint's own Python never runs, whatever stands on standard input."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tailwise
from tailwise.core.errors import UnreadableError, UnsafeError

transformers = pytest.importorskip("transformers")

CODE = """
from pathlib import Path
Path({marker!r}).write_text("it ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
#: Every command that loads a model, its tokenizer or its config; {m}: the model, {t}: a text, {o}: an output.
COMMANDS = {
    "evaluate": "evaluate {m} --text {t} --window 16",
    "evaluate --against": "evaluate {base} --against {m} --text {t} --window 16",
    "evaluate --tokenizer": "evaluate {base} --tokenizer {m} --text {t} --window 16",
    "evaluate --tasks": "evaluate {m} --tasks arc_easy --limit 1",
    "plan prune": "plan prune {m} --sparsity 0.5 --calibration {t} --window 16 --samples 4 -o {o}.json",
    "plan prune owl": "plan prune {m} --sparsity 0.5 --allocator owl --calibration {t} --window 16 -o {o}.json",
    "plan quantize": "plan quantize {m} --bits 5 --calibration {t} --window 16 --samples 4 -o {o}.json",
    "plan quantize outputs":
        "plan quantize {m} --bits 5 --allocator outputs --calibration {t} --window 16 --samples 4 -o {o}.json",
    "plan drop": "plan drop {m} --count 1 --calibration {t} --window 16 --samples 4 -o {o}.json",
    "apply wanda": "apply {wanda} {m} --calibration {t} --window 16 --samples 4 --force -o {o}",
    "apply gptq": "apply {gptq} {m} --calibration {t} --window 16 --samples 4 --force -o {o}",
    "apply structured": "apply {structured} {m} --force -o {o}",
    "recover": "recover {m} --text {t} --window 16 --steps 1 -o {o} --force",
}  # fmt: skip


def changed(file: Path, **values) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture(scope="module")
def trapped(tmp_path_factory, folder):
    """Where Python of the model's own writes → (folder with it in config.json, folder with it beside the tokenizer)."""
    root = tmp_path_factory.mktemp("own")
    marker = root / "marker"
    found = []
    for name in ("config", "tokenizer"):
        place = root / name
        shutil.copytree(folder, place)
        (place / "own.py").write_text(CODE.format(marker=str(marker)))
        found.append(place)
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    changed(found[0] / "config.json", model_type="own", architectures=["OwnModel"], auto_map=auto_map)
    own = ["own.OwnTokenizer", "own.OwnTokenizer"]
    changed(
        found[1] / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map={"AutoTokenizer": own}
    )  # fmt: skip
    return marker, found[0], found[1]


@pytest.fixture(scope="module")
def places(tmp_path_factory, folder):
    """What the commands take beside the model."""
    from tailwise.audits.run import audit
    from tailwise.compression.making.make import plan_prune, plan_quantize
    from tailwise.compression.making.request import QuantizeRequest, Request

    root = tmp_path_factory.mktemp("places")
    text = root / "story.txt"
    text.write_text("the cat sat on the mat and saw a dog. " * 84)
    measured = audit(folder)
    plans = {
        "wanda": plan_prune(measured, Request(0.5, "uniform", "wanda")),
        "structured": plan_prune(measured, Request(0.3, "uniform", "structured")),
        "gptq": plan_quantize(measured, QuantizeRequest(formats=("int4-g8",), operator="gptq")),
    }
    for name, plan in plans.items():
        plan.save(root / f"{name}.json")
    return {"t": text, "o": root / "out", "base": folder, **{name: root / f"{name}.json" for name in plans}}


@pytest.mark.parametrize("where", ["config", "tokenizer"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_what_came_with_the_model_or_asks_whether_to(trapped, places, command, where):
    from tailwise.cli.main import app

    marker, by_config, by_tokenizer = trapped
    model = by_config if where == "config" else by_tokenizer
    arguments = [str(part).format(m=model, **places) for part in COMMANDS[command].split()]
    found = CliRunner().invoke(app, arguments, input="y\n" * 20)
    assert not marker.exists()
    assert "[y/N]" not in found.output
    reads_none = where == "tokenizer" and command == "apply structured"
    if reads_none or (where == "config" and command == "evaluate --tokenizer"):
        return
    assert isinstance(found.exception, UnsafeError), found.output
    assert found.exception.exit_code == 3
    assert "load the model in Python yourself" in str(found.exception)


def test_a_model_of_transformers_with_code_beside_it_is_read_as_its_own_and_says_so(trapped, folder, tmp_path):
    from tailwise.models.evaluation.loading import load_model

    marker, by_config, _ = trapped
    place = tmp_path / "llama"
    shutil.copytree(by_config, place)
    known = json.loads((folder / "config.json").read_text())
    changed(place / "config.json", model_type=known["model_type"], architectures=known["architectures"])
    loaded = load_model(str(place))
    assert type(loaded.module).__name__ == "LlamaForCausalLM"
    assert any("which was not run" in note for note in loaded.notes)
    assert not marker.exists()


def test_load_pruned_runs_nothing(trapped):
    marker, by_config, _ = trapped
    with pytest.raises(UnsafeError):
        tailwise.load_pruned(by_config)
    assert not marker.exists()


def test_a_class_that_is_no_model_is_refused(folder, tmp_path):
    place = tmp_path / "odd"
    shutil.copytree(folder, place)
    changed(place / "config.json", architectures=["pipeline"])
    with pytest.raises((UnreadableError, tailwise.core.errors.UsageError), match="pipeline"):
        tailwise.load_pruned(place)


def test_a_loading_script_of_a_data_set_is_not_run(tmp_path):
    from tailwise.models.evaluation.sources import documents_of

    script = tmp_path / "script"
    script.mkdir()
    marker = tmp_path / "marker"
    (script / "script.py").write_text(CODE.format(marker=str(marker)))
    with pytest.raises(UnreadableError):
        documents_of(f"{script}:train:text")
    assert not marker.exists()


#: Methods that can run code that came with what they load, and those of their classes that cannot.
LOADERS = ("from_pretrained", "load_dataset", "HFLM")
HARMLESS = ("GenerationConfig", "PeftModel")  # JSON alone, or JSON and tensors


def calls_in(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            yield node


def test_every_load_in_the_source_says_that_nothing_is_to_be_run():
    source, found, wrong = Path(tailwise.__file__).parent, 0, []
    for file in source.rglob("*.py"):
        for call in calls_in(file):
            name = ast.unparse(call.func)
            if not name.endswith(LOADERS) or any(f"{one}.from_pretrained" in name for one in HARMLESS):
                continue
            found += 1
            said = {word.arg: ast.unparse(word.value) for word in call.keywords}
            if said.get("trust_remote_code") != "False":
                wrong.append(f"{file.relative_to(source)}:{call.lineno}")
    assert wrong == []
    assert found >= 9
