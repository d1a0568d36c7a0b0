"""`tailwise ask` and `tailwise mcp` as people type them."""

import json
import subprocess
import sys

import pytest
from endpoint import endpoint, text, tool

from tailwise.app.assistant.endpoint import FILE, KEY, MODEL, URL
from tailwise.cli.main import run


@pytest.fixture
def call(made, monkeypatch, capsys, tmp_path):
    """Run a command line in the workspace's folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(made.workspace.roots[0])
    for name in (URL, MODEL, KEY, "TAILWISE_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(FILE, str(tmp_path / "none.json"))

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tailwise", *words])
        with pytest.raises(SystemExit) as ended:
            run()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return command


@pytest.mark.parametrize(("words", "says"), [
    (("model.audit", "why is block 4 mlp up red?"), "TW201"),
    (("model.audit", "tuned.audit", "what changed?"), "From model to tuned"),
    ((".", "which models are here?"), "3 audits"),
    (("which models are here?",), "3 audits"),
    (("half.json", "what does this plan do?"), "half is a plan to prune"),
    (("--store", "history.db", "what changed in training?"), "TW706"),
    (("--store", "history.db", "--run", "my-run", "any alarms?"), "TW706"),
    (("model.audit", "--layer", "model.layers.4.mlp.up_proj", "why is this red?"), "TW201"),
    (("model.audit", "sing"), "I cannot answer that"),
    (("what is alpha?",), "Exponent of the fitted power law"),
])  # fmt: skip
def test_answers_in_plain_text(call, words, says):
    code, out, err = call("ask", *words)
    assert (code, err) == (0, "")
    assert says in out
    assert "](" not in out


def test_json_has_text_links_and_facts(call):
    code, out, _ = call("ask", "model.audit", "which layers are worst?", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["facts"]
    assert found["links"]
    assert found["unverified"] == []


@pytest.mark.parametrize(("words", "says"), [
    (("model.audit",), "there is no question"),
    (("what is alpha?", "model.audit"), "the question comes last"),
    (("model.audit", " "), "there is no question"),
    (("gone.audit", "why?"), "no such file"),
    (("model.audit", "why?", "--model", "m"), "--base-url"),
    (("model.audit", "why?", "--base-url", "nowhere", "--model", "m"), "address"),
    (("model.audit", "why?", "--base-url", "http://127.0.0.1:1/v1"), "no model"),
])  # fmt: skip
def test_wrong_requests_end_with_2(call, words, says):
    code, _, err = call("ask", *words)
    assert code == 2
    assert says in err


def test_an_endpoint_that_is_away_ends_with_3(call):
    code, out, err = call("ask", "model.audit", "why?", "--base-url", "http://127.0.0.1:9/v1", "--model", "m")
    assert (code, out) == (3, "")
    assert "cannot be reached" in err


def test_a_model_answers_and_its_numbers_are_marked(call, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with endpoint(tool("audit", "{}"), text("There are 18 matrices\x1b[m, ", "and 77.7 of them fine.")) as script:
        code, out, err = call("ask", "model.audit", "well?", "--base-url", script.url, "--model", "m", "--api-key-env",
                              "MY_KEY")  # fmt: skip
    assert code == 0
    assert out.startswith("There are 18 matrices")
    assert "\x1b" not in out
    assert "looks up audit" in err
    assert "in no result: 77.7" in err
    assert "secret" not in out + err
    assert script.headers[0]["authorization"] == "Bearer secret"


def test_offline_asks_no_model(call, monkeypatch):
    with endpoint(text("from the model")) as script:
        monkeypatch.setenv(URL, script.url)
        monkeypatch.setenv(MODEL, "m")
        assert "from the model" in call("ask", "model.audit", "what is alpha?")[1]
        assert "Exponent" in call("ask", "model.audit", "what is alpha?", "--offline")[1]
        assert len(script.requests) == 1


def test_the_prompt_can_be_seen(call):
    code, out, _ = call("ask", "model.audit", "x", "--show-prompt")
    assert code == 0
    assert out.startswith("You are the assistant of tailwise")
    assert "model.layers.4.mlp.up_proj" in out


@pytest.mark.parametrize(("words", "says"), [
    (("--http", "--host", "0.0.0.0"), "without a token"),
    (("--http", "--token-env", "NO_SUCH"), "NO_SUCH"),
    (("gone",), "no such file"),
    (("model.audit", "--allow-write"), "no folder to write into"),
])  # fmt: skip
def test_a_server_that_cannot_be_is_refused(call, monkeypatch, words, says):
    monkeypatch.delenv("TAILWISE_MCP_TOKEN", raising=False)
    code, _, err = call("mcp", *words)
    assert code == 2
    assert says in err


def test_answers_need_no_torch(made):
    program = f"""
import sys
from tailwise.app.assistant.answers import EXAMPLES, answer
from tailwise.app.assistant.functions.function import FUNCTIONS, Place, call
from tailwise.app.assistant.prompt import system_prompt
from tailwise.app.assistant.screen import ShownPage
from tailwise.app.workspace.workspace import Workspace
workspace, screen = Workspace([{str(made.workspace.roots[0])!r}]), ShownPage(audit={made.ids["model"]!r})
for example in EXAMPLES:
    answer(example, workspace, screen)
for name in FUNCTIONS:
    call(name, {{"kind": "quantize", "amount": 4.5}} if name == "draft_plan" else {{}}, Place(workspace, screen))
system_prompt(workspace, screen)
print(sorted({{"torch", "transformers", "openai", "mcp"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_questions_about_audits_take_no_extra(made):
    root = made.workspace.roots[0]
    program = f"""
import sys
sys.modules |= dict.fromkeys(("sqlalchemy", "altair", "vl_convert", "openai", "mcp", "fastapi", "ruptures"))
sys.argv = ["tailwise", "ask", {str(root / "model.audit")!r}, "which layers are worst?"]
from tailwise.cli.main import run
run()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "TW201" in done.stdout
