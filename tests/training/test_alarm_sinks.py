"""Where alarms go: a log, a web hook on the loopback, functions; and that none of them reaches the training."""

from __future__ import annotations

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from alarm_points import LAYERS, healthy_run, point

from tailwise.core.errors import UsageError
from tailwise.history.point import Alarm
from tailwise.training.alarm_sinks import Log, Webhook, for_slack, in_words
from tailwise.training.alarms import Alarms

ALARM = Alarm("run", 210, 1.0, "TW704", "error", "updates too large: <0.3> & more", (LAYERS[0],), {"update_ratio": 0.3},
              200, ("AdaptiveClip",))  # fmt: skip


@pytest.fixture
def server():
    """A local server that keeps what is posted; `status` is what it answers, `gate` what it waits for."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.server.gate.wait(10)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.got.append((self.headers["Content-Type"], json.loads(body)))
            self.send_response(self.server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    made = HTTPServer(("127.0.0.1", 0), Handler)
    made.got, made.status, made.gate = [], 200, threading.Event()
    made.gate.set()
    made.url = f"http://127.0.0.1:{made.server_port}/services/secret"
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.gate.set()
    made.shutdown()
    thread.join()
    made.server_close()


def test_a_web_hook_posts_what_slack_takes(server):
    hook = Webhook(server.url)
    hook(ALARM)
    hook.close()
    ((kind, body),) = server.got
    assert kind == "application/json"
    assert body["text"].startswith(
        "TW704 error in run at step 210, since step 200: updates too large: &lt;0.3&gt; &amp;"
    )
    assert body["attachments"][0]["color"] == "danger"
    assert "remedy: tailwise.remedies.AdaptiveClip" in body["attachments"][0]["text"]
    assert (hook.posted, hook.failed) == (1, 0)


def test_plain_posts_the_alarm_itself(server):
    hook = Webhook(server.url, plain=True)
    hook(ALARM)
    hook.close()
    assert server.got[0][1] == ALARM.to_json()


def test_a_hook_can_be_used_again_after_it_was_closed(server):
    hook = Webhook(server.url)
    hook.close()
    for _ in range(2):
        hook(ALARM)
        hook.close()
    assert hook.posted == 2


def test_training_does_not_wait_for_a_slow_server(server):
    server.gate.clear()
    hook = Webhook(server.url)
    alarms = Alarms(on_alarm=hook)
    for one in [*healthy_run(20), *(point(s, {LAYERS[0]: {"update_ratio": 0.3}}) for s in (200, 210, 220))]:
        alarms.see(one)
    assert server.got == []
    server.gate.set()
    hook.close()
    assert len(server.got) == 1


@pytest.mark.parametrize("status", [404, 500])
def test_an_answer_that_is_an_error_is_counted_and_logged_without_the_address(server, status, caplog):
    server.status = status
    hook = Webhook(server.url)
    hook(ALARM)
    hook.close()
    assert (hook.posted, hook.failed) == (0, 1)
    assert "could not be posted" in caplog.text
    assert "secret" not in caplog.text


def test_no_server_and_a_time_out_raise_nothing(server, caplog):
    server.gate.clear()
    slow = Webhook(server.url, timeout=0.05)
    slow(ALARM)
    slow.close()
    nobody = Webhook("http://127.0.0.1:9/")
    nobody(ALARM)
    nobody.close()
    assert slow.failed == nobody.failed == 1


def test_alarms_beyond_the_queue_are_dropped_not_waited_for(server, caplog):
    server.gate.clear()
    hook = Webhook(server.url, waiting=2)
    for _ in range(10):
        hook(ALARM)
    assert hook.failed >= 7
    server.gate.set()
    hook.close()
    assert hook.posted + hook.failed == 10


def test_an_address_that_is_not_http_is_refused():
    with pytest.raises(UsageError, match="web hook"):
        Webhook("file:///etc/passwd")


def test_the_log_has_each_alarm_at_the_level_of_its_severity(caplog):
    with caplog.at_level(logging.INFO):
        Log()(ALARM)
        Log(logging.getLogger("mine"))(Alarm("run", 1, 0.0, "TW708", "note", "alpha stalled"))
    assert [(r.name, r.levelname) for r in caplog.records] == [("tailwise.alarms", "ERROR"), ("mine", "INFO")]
    assert caplog.records[0].getMessage() == in_words(ALARM)
    assert in_words(ALARM).endswith("since step 200: updates too large: <0.3> & more")


def sick():
    return [*healthy_run(20), *(point(s, {LAYERS[0]: {"update_ratio": 0.3}}) for s in range(200, 260, 10))]


def test_several_sinks_are_told_once_each_and_one_that_raises_stops_nothing(caplog):
    told, more = [], []

    def broken(_):
        raise RuntimeError("no")

    alarms = Alarms(on_alarm=[told.append, broken, more.append])
    found = [alarm for one in sick() for alarm in alarms.see(one)]
    assert told == more == found
    assert len(found) == 1
    assert "training goes on" in caplog.text


@pytest.mark.parametrize(("stop_on", "stops"), [
    ((), False), ("error", True), ("warning", True), (["TW704"], True), (["TW701"], False), (["error"], True),
    (["warning"], True),
])  # fmt: skip
def test_early_stop_is_a_flag(stop_on, stops):
    alarms = Alarms(stop_on=stop_on)
    for one in sick():
        alarms.see(one)
    assert alarms.should_stop is stops


def test_replaying_a_history_stops_nothing():
    alarms = Alarms(stop_on="error")
    assert alarms.replay(sick())
    assert not alarms.should_stop


def test_evidence_is_in_the_message_of_slack():
    assert "update_ratio: 0.3" in for_slack(ALARM)["attachments"][0]["text"]
