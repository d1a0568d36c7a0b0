"""`tailwise evaluate` and tasks of the lm-evaluation-harness."""

from __future__ import annotations

import json

import pytest
import typer

from tailwise.core.errors import TailwiseError, UnreadableError, UsageError
from tailwise.models.evaluation.evaluate import EvaluateOptions, evaluate
from tailwise.models.evaluation.scores import ScoreChange, TaskScore
from tailwise.models.evaluation.tasks import SUITES, expanded, mean_of
from tailwise.report.evaluations.evaluation_tables import p_words


@pytest.fixture
def command(capsys, tmp_path, monkeypatch):
    """Run the command: (exit code, stdout, stderr)."""
    from tailwise.cli.evaluate_command import evaluate as evaluate_command

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tailwise.core.errors._on_command_line", lambda: True)
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(evaluate_command)

    def run(*arguments: object) -> tuple[int, str, str]:
        code, said = 0, ""
        try:
            app([*map(str, arguments)], standalone_mode=False)
        except TailwiseError as error:
            code, said = error.exit_code, str(error)
        captured = capsys.readouterr()
        return code, captured.out, captured.err + said

    return run


@pytest.fixture
def task_files(tmp_path):
    """A task of eight choices between two ways to end a story, as the harness reads it."""
    place = tmp_path / "tasks"
    place.mkdir()
    starts = ["Once upon a time, there was a little", "She was very", "Lily liked to play with her", "The sun was"]
    rows = [{"q": q, "choices": pair, "gold": 0} for q, pair in zip(starts, [["girl", "xyz"], ["happy", "qqq"],
            ["friends", "tax"], ["bright", "zzz"]], strict=True)] * 2  # fmt: skip
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "endings.yaml").write_text(
        f"""
task: endings
dataset_path: json
dataset_kwargs:
  data_files:
    test: {place / "rows.jsonl"}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
    )
    return place


def test_the_table_says_perplexity_size_and_speed(command, folder, story):
    code, out, err = command(folder, "--text", story, "--window", 32, "--speed")
    assert (code, err) == (0, "")
    assert all(word in out for word in ("perplexity", "95 %", "parameters", "decode tokens/s"))


def test_json_is_alone_on_stdout(command, folder, story):
    code, out, err = command(folder, "--text", story, "--window", 32, "--json", "-o", "x.json")
    assert code == 0
    assert json.loads(out)["perplexity"] > 1
    assert "written to x.json" in err


def test_a_comparison_says_its_verdict(command, folder, story):
    code, out, _ = command(folder, "--against", folder, "--text", story, "--window", 32)
    assert code == 0
    assert "no difference seen" in out
    assert f"No difference between {folder} and {folder} was seen on this text: perplexity × 1 (95 %: 1 to 1)" in out
    assert "the verdict is of the loss alone" in out
    assert out.startswith("No difference between"), "the sentence stands above the tables"


def test_an_adapter_scored_alone_is_told_what_to_hold_it_against(command, folder, story, adapter):
    _, out, _ = command(adapter, "--text", story, "--window", 32)
    assert f"whether the fine-tune cost something: --against {folder}" in " ".join(out.split())
    _, out, _ = command(adapter, "--text", story, "--window", 32, "--against", folder)
    assert "whether the fine-tune" not in out


def test_that_windows_are_few_is_said_once(command, folder, story):
    _, out, _ = command(folder, "--text", story, "--window", 32, "--max-windows", 4, "--against", folder)
    said = " ".join(out.split())
    assert said.count("too few to tell a difference from chance") == 1
    assert "windows are few" not in said


@pytest.mark.parametrize(
    ("p", "runs", "words"),
    [(0.0002, 33, "≤ 0.0002"), (0.0004, 33, "0.0004"), (2 / 2**7, 7, "0.016"), (0.03, None, "0.03"), (None, 5, "–")],
)
def test_p_at_the_floor_of_the_random_flips_is_a_bound(p, runs, words):
    assert p_words(ScoreChange("x", 1.0, 2.0, 1.0, None, p, 99, "worse", runs)) == words


def test_saved_scores_stand_for_models(command, folder, story):
    assert command(folder, "--text", story, "--window", 32, "-o", "base.json")[0] == 0
    assert "no difference seen" in command("base.json", "--against", "base.json")[1]
    assert "no difference seen" in command(folder, "--against", "base.json", "--text", story, "--window", 32)[1]


def test_saved_scores_of_other_windows_are_refused(command, folder, story):
    command(folder, "--text", story, "--window", 32, "-o", "base.json")
    code, _, said = command(folder, "--against", "base.json", "--text", story, "--window", 16)
    assert (code, "different windows" in said) == (2, True)


def test_text_may_be_given_several_times(command, folder, story):
    _, out, _ = command(folder, "--text", story, "--text", story, "--window", 32, "--json")
    assert json.loads(out)["settings"]["documents"] == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [([], 2), (["--text", "nowhere"], 3), (["--text", "story.txt", "-o", "x.csv"], 2),
     (["--text", "story.txt", "--device", "toaster"], 2), (["--tasks", "endings", "--include-path", "nowhere"], 2)],
)  # fmt: skip
def test_a_wrong_request_is_one_message(command, folder, story, arguments, code):
    found, out, said = command(folder, *arguments)
    assert (found, out) == (code, "")
    assert said


def test_a_task_is_scored_with_its_standard_error_and_quietly(command, stories, task_files):
    pytest.importorskip("lm_eval")
    code, out, err = command(stories, "--tasks", "endings", "--include-path", task_files, "--json")
    assert (code, err) == (0, "")
    task = json.loads(out)["tasks"][0]
    assert (task["task"], task["metric"], task["n"]) == ("endings", "acc", 8)
    assert task["value"] >= 0.75
    assert task["samples"] == [1.0 if one else 0.0 for one in task["samples"]]
    assert task["stderr"] is not None


def test_tasks_of_two_models_are_compared_document_by_document(command, stories, task_files):
    pytest.importorskip("lm_eval")
    code, out, _ = command(stories, "--against", stories, "--tasks", "endings", "--include-path", task_files)
    assert code == 0
    assert "endings acc" in out
    assert "no difference seen" in out


def test_tasks_without_a_tokenizer_are_refused(llama, task_files):
    pytest.importorskip("lm_eval")
    with pytest.raises(UsageError, match="take a tokenizer"):
        evaluate(llama, options=EvaluateOptions(tasks=("endings",), include_path=task_files))


def test_a_task_whose_data_is_gone_is_unreadable(stories, task_files):
    pytest.importorskip("lm_eval")
    (task_files / "rows.jsonl").unlink()
    with pytest.raises(UnreadableError, match="the harness failed"):
        evaluate(stories, options=EvaluateOptions(tasks=("endings",), include_path=task_files))


def test_the_number_of_documents_may_be_limited(stories, task_files):
    pytest.importorskip("lm_eval")
    options = EvaluateOptions(tasks=("endings",), include_path=task_files, limit=3, facts=False)
    found = evaluate(stories, options=options)
    assert (found.tasks[0].n, len(found.tasks[0].samples), found.facts) == (3, 3, None)


def test_a_checkpoint_that_cannot_be_counted_costs_no_score(folder, story, monkeypatch):
    def fail(_):
        raise UnreadableError("went away", where=folder)

    monkeypatch.setattr("tailwise.models.evaluation.evaluate.facts_of", fail)
    found = evaluate(folder, text=story, options=EvaluateOptions(window=32))
    assert found.perplexity is not None
    assert "not counted (went away)" in found.notes[0]


def test_the_seven_tasks_of_alphapruning_have_one_name_and_a_mean(command, stories, tmp_path):
    """Offline, from files of those names."""
    pytest.importorskip("lm_eval")
    place = tmp_path / "tasks"
    place.mkdir()
    (place / "rows.jsonl").write_text(json.dumps({"q": "The sun was", "choices": ["bright", "zzz"], "gold": 0}) + "\n")
    for name in SUITES["alphapruning"]:
        (place / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {place / 'rows.jsonl'}\n"
            'test_split: test\noutput_type: multiple_choice\ndoc_to_text: "{{q}}"\ndoc_to_choice: choices\n'
            "doc_to_target: gold\nmetric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
        )
    code, out, _ = command(stories, "--tasks", "alphapruning", "--include-path", place, "--json")
    assert code == 0
    tasks = {(task["task"], task["metric"]): task["value"] for task in json.loads(out)["tasks"]}
    assert {name for name, metric in tasks if metric == "acc"} == set(SUITES["alphapruning"])
    values = [value for (_, metric), value in tasks.items() if metric == "acc"]
    assert tasks["alphapruning", "acc, mean"] == pytest.approx(sum(values) / 7)


def test_a_suite_with_a_task_missing_has_no_mean():
    one = TaskScore("boolq", "acc", 0.5, 0.1, 4, True)
    assert mean_of("alphapruning", [one]) is None
    every = [TaskScore(name, "acc", 0.5, 0.07, 4, True) for name in SUITES["alphapruning"]]
    found = mean_of("alphapruning", every)
    assert (found.value, found.n) == (0.5, 28)
    assert found.stderr == pytest.approx(0.07 / 7**0.5)
    assert expanded(("piqa", "alphapruning", "boolq")) == ("piqa", *SUITES["alphapruning"])


def test_an_adapter_is_scored_in_its_base_and_says_what_it_is(command, folder, story, adapter):
    code, out, said = command(adapter, "--text", story, "--window", 32, "--against", folder, "--json")
    assert (code, said) == (0, "")
    found = json.loads(out)
    assert found["perplexity"]["after"] != found["perplexity"]["before"]
    assert f"an adapter (LORA, rank 4) on {folder}" in found["model"]["notes"][0]
    assert found["model"]["facts"]["parameters"] == found["base"]["facts"]["parameters"]


def test_an_adapter_without_a_base_asks_for_one(command, folder, story, adapter):
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": None}))
    code, _, said = command(adapter, "--text", story, "--window", 32)
    assert code == 2
    assert "--base MODEL" in said
    code, _, said = command(adapter, "--text", story, "--window", 32, "--base", folder)
    assert (code, said) == (0, "")


def test_a_base_that_looks_like_a_path_is_not_asked_of_the_hub(command, folder, story, tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base-8m").mkdir()
    code, _, err = command(folder, "--against", "models/base", "--text", story)
    assert code == 3
    assert "no such folder" in err
    assert "base-8m" in err
