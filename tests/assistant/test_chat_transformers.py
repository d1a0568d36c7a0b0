"""A chat against `transformers serve` with a small model. It talks nonsense; what counts is the protocol."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tailwise.app.assistant.chat import Answered, Failed, TextDelta, chat
from tailwise.app.assistant.endpoint import Endpoint
from tailwise.app.assistant.screen import ShownPage

pytest.importorskip("openai")
pytest.importorskip("transformers")

_PATIENCE = 90.0  # seconds until a server that does not come up is given up


@pytest.fixture(scope="module")
def served(pycode, tmp_path_factory):
    """The address of a server, and the model's name there."""
    program = Path(sys.executable).with_name("transformers")
    if not program.is_file():
        pytest.skip("transformers has no command line here")
    model = tmp_path_factory.mktemp("served") / "model"
    shutil.copytree(pycode, model)
    (model / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}\n{% endfor %}")
    # The answer ends with its first line, which is not empty; the server asks for a thousand tokens otherwise.
    from tokenizers import Tokenizer

    newline = Tokenizer.from_file(str(model / "tokenizer.json")).encode("\n").ids[-1]
    (model / "generation_config.json").write_text(
        f'{{"eos_token_id": {newline}, "min_new_tokens": 8, "do_sample": false}}'
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        str(program),
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
        "--log-level",
        "info",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    watchdog = threading.Timer(_PATIENCE, process.kill)
    watchdog.start()
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "running on" in line:
            break
    watchdog.cancel()
    if process.poll() is not None or not lines or "running on" not in lines[-1]:
        pytest.skip(f"`transformers serve` does not start here: {''.join(lines[-3:])}")
    drain = threading.Thread(target=process.stderr.read, daemon=True)
    drain.start()
    yield f"http://127.0.0.1:{port}/v1", str(model)
    process.terminate()
    process.wait()
    drain.join()
    process.stderr.close()


def test_streams_text_and_ends(made, served):
    url, model = served
    events = list(chat([{"role": "user", "content": "def main():"}], made.workspace, ShownPage(), Endpoint(url, model)))
    parts = [event.text for event in events if isinstance(event, TextDelta)]
    assert isinstance(events[-1], Answered), events[-1]
    assert len(parts) > 1
    assert events[-1].answer.text
    assert "".join(parts).strip().startswith(events[-1].answer.text.split("\\")[0][:5])


def test_a_model_that_is_not_there_is_an_answer_too(made, served):
    to = Endpoint(served[0], str(Path(served[1]) / "not-there"))
    events = list(chat([{"role": "user", "content": "x"}], made.workspace, ShownPage(), to))
    assert isinstance(events[-1], Failed)
    assert events[-1].fix
