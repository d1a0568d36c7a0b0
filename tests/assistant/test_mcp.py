"""The MCP server, asked by the MCP client over standard input and output, and over HTTP."""

import asyncio
import dataclasses
import http.client
import json
import select
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, asynccontextmanager, contextmanager

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tailwise.app.assistant.functions.function import FUNCTIONS
from tailwise.app.assistant.mcp_http import ListenAddress, app_of, http_server, serve_http
from tailwise.app.assistant.mcp_server import server_of
from tailwise.app.workspace.workspace import Workspace
from tailwise.core.errors import UsageError

pytest.importorskip("mcp")
TOKEN = "a-token-that-is-long-enough"
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
HEAD = {"content-type": "application/json", "accept": "application/json, text/event-stream"}


def command(made, *more):
    return ["-m", "tailwise", "mcp", str(made.workspace.roots[0]), "--store", made.workspace.store, *more]


@asynccontextmanager
async def over_stdio(arguments):
    from mcp import Client
    from mcp.client.stdio import StdioServerParameters, stdio_client

    environment = {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    server = StdioServerParameters(command=sys.executable, args=arguments, env=environment)
    async with Client(stdio_client(server)) as client:
        yield client


@contextmanager
def over_http(arguments, monkeypatch):
    """The address of a server that runs until the end of the block."""
    monkeypatch.delenv("TAILWISE_MCP_TOKEN", raising=False)
    process = subprocess.Popen([sys.executable, *arguments, "--http", "--port", "0"], stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        assert "listening on http://127.0.0.1:" in line, line + process.stderr.read()
        yield line.split("listening on ")[1].split(";")[0]
    finally:
        process.terminate()
        process.communicate()


async def tour(client):
    """What an agent does: look around, ask, ask wrongly."""
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    found = {}
    for name, arguments in (
        ("list", {}), ("audit", {"audit": "model"}), ("diagnose", {"audit": "model"}),
        ("compare", {"before": "model", "after": "tuned"}), ("plan", {"plan": "half"}), ("explain", {"topic": "TW101"}),
        ("query", {"audit": "model", "sort": "alpha", "where": "role = mlp_up"}), ("training", {}),
    ):  # fmt: skip
        result = await client.call_tool(name, arguments)
        assert not result.is_error, (name, result)
        assert json.loads(result.content[0].text) == result.structured_content
        found[name] = result.structured_content
    wrong = await client.call_tool("audit", {"audit": "no-such"})
    return tools, found, wrong


def check(tools, found, wrong):
    assert set(tools) == set(FUNCTIONS)
    assert all(tool.annotations.read_only_hint for tool in tools.values())
    assert found["audit"]["matrices"] == 18
    assert found["query"]["matching"] == 6
    assert found["compare"]["layers_identical"] == 12
    assert wrong.is_error
    assert "no audit" in wrong.structured_content["error"]


def test_over_stdio(made):
    async def session():
        async with over_stdio(command(made)) as client:
            return await tour(client)

    check(*asyncio.run(session()))


def test_over_http(made, monkeypatch):
    from mcp import Client

    async def session(url):
        async with Client(url) as client:
            return await tour(client)

    with over_http(command(made), monkeypatch) as url:
        check(*asyncio.run(session(url)))
        other_hosts_and_origins_are_refused(url)


def status(url, **headers):
    """The status of a plain request."""
    host, port = url.removeprefix("http://").removesuffix("/mcp").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request("POST", "/mcp", json.dumps(PING), {**HEAD, **headers})
    found = connection.getresponse().status
    connection.close()
    return found


def other_hosts_and_origins_are_refused(url):
    assert status(url) == 200
    assert status(url, host="evil.example") == 421
    assert status(url, host="127.0.0.1:1") == 421
    assert status(url, origin="https://evil.example") == 403
    assert status(url, origin=url.removesuffix("/mcp")) == 200


def test_a_token_is_asked_for_where_there_is_one(made):
    from starlette.testclient import TestClient

    app = app_of(server_of(made.workspace), ListenAddress("10.0.0.1", 8008, (), TOKEN), 8008)
    with TestClient(app, base_url="http://10.0.0.1:8008") as client:

        def answered(**headers):
            return client.post("/mcp", json=PING, headers={**HEAD, **headers}).status_code

        assert answered() == 401
        assert answered(authorization="Bearer wrong") == 401
        assert answered(authorization=f"Basic {TOKEN}") == 401
        assert answered(authorization=f"Bearer {TOKEN}") == 200
        assert answered(authorization=f"Bearer {TOKEN}", host="evil.example") == 421


@pytest.mark.parametrize(("address", "says"), [
    ({"host": "0.0.0.0"}, "without a token"),
    ({"host": "192.168.1.2"}, "without a token"),
    ({"host": "example.org"}, "without a token"),
    ({"token": "short"}, "shorter"),
    ({"host": "0.0.0.0", "token": TOKEN}, "allow_host"),
])  # fmt: skip
def test_what_would_be_open_to_others_is_refused(address, says):
    with pytest.raises(UsageError, match=says):
        ListenAddress(**address)


def test_names_that_are_let_through():
    assert ListenAddress("10.0.0.1", 1, ("audits.example",), TOKEN).hosts(8008) == [
        "10.0.0.1:8008", "audits.example:8008", "audits.example",
    ]  # fmt: skip
    assert "[::1]:8008" in ListenAddress().hosts(8008)
    assert ListenAddress("::1").loopback
    assert TOKEN not in repr(ListenAddress(token=TOKEN))


HALVES = {
    "nothing": b"",
    "half a head": b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:8008\r\n",
    "half a body": b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:8008\r\nContent-Type: application/json\r\n"
    b"Accept: application/json, text/event-stream\r\nContent-Length: 99\r\n\r\n{",
}


@contextmanager
def running(made):
    """Where it listens, in this process."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = http_server(server_of(made.workspace), ListenAddress(names=("127.0.0.1:8008",)), 8008)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()


@pytest.mark.parametrize("half", HALVES)
def test_half_a_request_is_not_waited_for(made, monkeypatch, half):
    from tailwise.app import bodies, patience

    monkeypatch.setattr(patience, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(bodies, "_GAP_SECONDS", 0.2)
    with running(made) as where, socket.create_connection(where, timeout=60) as connection:
        connection.sendall(HALVES[half])
        found = b""
        while piece := connection.recv(65536):  # until the server closes it
            found += piece
    assert (b" 408 " in found) is (half == "half a body")


def test_bodies_that_never_end_are_not_held_without_bound(made):
    head = HALVES["half a body"].replace(b"Length: 99", b"Length: 4000000")
    with running(made) as where, ExitStack() as closed:
        three = [closed.enter_context(socket.create_connection(where, timeout=60)) for _ in range(3)]
        for connection in three:
            connection.sendall(head + b" " * 3_900_000)
        (refused, *_), _, _ = select.select(three, [], [], 60)
        assert b" 503 " in refused.recv(100)


def test_a_taken_port_is_said(made):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="cannot listen"):
        serve_http(server_of(made.workspace), ListenAddress(port=taken.getsockname()[1]), print)


@pytest.fixture
def writable(tmp_path):
    """A folder with a checkpoint, and one outside."""
    rng = np.random.default_rng(0)
    for folder in (tmp_path / "in" / "net", tmp_path / "out" / "net"):
        folder.mkdir(parents=True)
        weights = {f"layers.{i}.mlp.up_proj.weight": rng.standard_normal((64, 64)).astype("float32") for i in range(3)}
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    torch.save({"up.weight": torch.randn(64, 64)}, tmp_path / "in" / "pickled.pt")
    return tmp_path / "in"


def test_without_leave_nothing_is_written(writable):
    async def session():
        from mcp import Client

        async with Client(server_of(Workspace([writable]))) as client:
            return [await client.call_tool(name, {"model": "net", "name": "x"}) for name in ("run_audit", "make_plan")]

    before = sorted(writable.rglob("*"))
    assert all(result.is_error for result in asyncio.run(session()))
    assert sorted(writable.rglob("*")) == before


def test_with_leave_it_writes_below_the_root_and_replaces_nothing(writable):
    calls = [
        ("run_audit", {"model": "net", "name": "net"}),
        ("run_audit", {"model": "net", "name": "net"}),
        ("run_audit", {"model": "../out/net", "name": "a"}),
        ("run_audit", {"model": "link/net", "name": "b"}),
        ("run_audit", {"model": str(writable.parent / "out" / "net"), "name": "c"}),
        ("run_audit", {"model": "some-org/some-model", "name": "d"}),
        ("run_audit", {"model": "net", "name": "../e"}),
        ("run_audit", {"model": "pickled.pt", "name": "f"}),
        ("make_plan", {"kind": "prune", "amount": 0.5, "name": "half", "audit": "net"}),
        ("make_plan", {"kind": "prune", "amount": 0.5, "name": "half", "audit": "net"}),
        ("make_plan", {"kind": "quantize", "amount": 4.25, "name": "bits", "audit": "net", "allocator": "uniform"}),
        ("make_plan", {"kind": "erase", "amount": 1, "name": "f"}),
        ("make_plan", {"kind": "prune", "amount": 0.5, "name": "g", "calibration": "/etc"}),
    ]

    async def session():
        async with over_stdio(["-m", "tailwise", "mcp", str(writable), "--allow-write"]) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            return tools, [await client.call_tool(*one) for one in calls]

    tools, results = asyncio.run(session())
    assert not tools["run_audit"].annotations.read_only_hint
    good = [not result.is_error for result in results]
    assert good == [True, *[False] * 7, True, False, True, False, False], [item.structured_content for item in results]
    assert results[0].structured_content["matrices"] == 3
    assert "exists" in results[1].structured_content["error"]
    assert "is a pickle" in results[7].structured_content["error"]
    assert "not below a folder" in results[2].structured_content["error"]
    written = {path.name for path in writable.iterdir()} - {"net", "link", "pickled.pt"}
    assert written == {"net.audit", "half.json", "bits.json"}
    assert not [
        path
        for path in (writable.parent / "out").rglob("*")
        if path.suffix in (".audit", ".json") and path.name != "config.json"
    ]


def test_a_model_that_an_audit_names_outside_is_not_tried(writable):
    import tailwise as tw
    from tailwise.app.assistant.functions.function import Place, called
    from tailwise.app.assistant.writing import Verbs, writing_functions

    found = tw.audit(writable / "net")
    for name, model in (("theirs", "http://127.0.0.1:1/x"), ("hub", "org/model"), ("ours", str(writable / "net"))):
        changed = dataclasses.replace(found.provenance, model=model)
        tw.Audit(found.rows, {layer.row.name: layer for layer in found}, changed).save(writable / f"{name}.audit")
    (writable / "text.txt").write_text("a text")
    asked = []

    def plan(audit, _order):
        asked.append(audit.model)
        raise UsageError("enough")

    make = writing_functions(Verbs(None, plan))["make_plan"]
    place = Place(Workspace([writable]))
    for name in ("theirs", "hub", "ours"):
        told = called(
            make, {"kind": "prune", "amount": 0.5, "name": "p", "audit": name, "calibration": "text.txt"}, place
        )
        assert ("not below a folder" in told["error"]) is (name != "ours")
    assert asked == [str(writable / "net")]
