"""Every area answers, shows what it should, and escapes what files hold."""

import re

import pytest

from tailwise.app.workspace import links
from tailwise.audits.trusted import doubt
from tailwise.history.point import Point
from tailwise.history.store import History


def addresses(ids, evil):
    return [
        "/models",
        links.model(ids["base"]),
        links.model(ids["base"]) + "?family=heat",
        links.layers(ids["base"]),
        links.layer(ids["base"], "layers.1.mlp.up_proj"),
        links.layer(ids["base"], evil),
        links.layer(ids["base"], "norm.weight"),
        links.chart(ids["base"], "alpha_hist"),
        links.chart(ids["base"], "heatmap", "stable_rank"),
        "/compare",
        links.compare([ids["base"], ids["tuned"]]),
        links.against_base(ids["tuned"], ids["base"]),
        "/training",
        links.run("run & <i>one</i>"),
        "/plans",
        links.plan(ids["plan"]),
        "/jobs",
        "/help",
        "/help/TW101",
        "/help/alpha",
        "/help/alpha_hist",
        "/help/TW702",
        "/settings",
    ]


def test_every_page_answers_in_html(client, ids, evil):
    for address in addresses(ids, evil):
        answer = client.get(address)
        assert answer.status_code == 200, address
        assert answer.headers["content-type"].startswith("text/html")
        assert "</html>" in answer.text


def test_no_name_becomes_markup(client, ids, evil):
    for address in addresses(ids, evil):
        text = client.get(address).text
        for evil in ("<script>alert", "<b>tuned", "<i>one", "<b>spike", "49.mlp"):
            assert evil not in text, (address, evil)


def test_pages_load_nothing_from_elsewhere_and_hold_no_script(client, ids, evil):
    for address in addresses(ids, evil):
        text = client.get(address).text
        assert not re.findall(r'(?:src|href|action|hx-\w+)="(?:https?:)?//', text), address
        assert not re.findall(r"<script(?![^>]* src=)", text), address
        assert not re.findall(r"\son\w+=|\sstyle=", text), address


def test_the_list_says_what_cannot_be_read(client):
    text = client.get("/models").text
    assert "not readable" in text
    assert "org/base" in text


def test_the_list_is_sorted_and_searched(client, ids):
    def order(query):
        return re.findall(r'href="/models/([\w-]+)"', client.get(f"/models?{query}").text)

    assert order("sort=title&down=False")[-1] == ids["tuned"]
    assert order("sort=title&down=True")[0] == ids["tuned"]
    assert order("q=tuned") == [ids["tuned"]]
    assert order("q=nothing-of-the-kind") == []


def test_a_fragment_comes_alone_for_htmx(client, ids):
    headers = {"HX-Request": "true", "HX-Target": "table"}
    text = client.get(links.layers(ids["base"], q="role:mlp_up"), headers=headers).text
    assert "</html>" not in text
    assert text.count("<tr>") == 1 + 5  # the head, and the rows


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/models/absent", 404),
        ("/models/{base}/layer?name=absent", 404),
        ("/models/{base}/charts/absent", 404),
        ("/models/{base}/charts/layer_esd", 400),
        ("/help/absent", 404),
        ("/plans/absent", 404),
        ("/absent", 404),
        ("/training/run?name=absent", 404),
        ("/compare?model=absent", 404),
        ("/base?model={base}", 400),
        ("/base?model={base}&base={tuned}&metric=absent", 400),
        ("/plans/{plan}/export/absent", 404),
        ("/models?page=0", 400),
        ("/models/{broken}", 422),
    ],
)
def test_what_cannot_be_is_told_on_a_page(client, ids, address, status):
    answer = client.get(address.format(**ids))
    assert answer.status_code == status
    assert 'class="finding error"' in answer.text


@pytest.mark.parametrize(
    ("rules", "said"), [(0, "No alarm rule looked at this run"), (12, "No alarm; 12 rules looked.")]
)
def test_a_run_without_alarms_says_whether_rules_looked(client, folder, rules, said):
    with History(folder / "history.db") as history:
        history.add_point(Point("quiet", 0, "cheap", 1.7e9, {}, {"alarm_rules": rules}))
    assert said in client.get("/training/run?name=quiet").text


def test_a_half_typed_condition_keeps_the_table(client, ids):
    text = client.get(links.layers(ids["base"], q="alpha>x")).text
    assert "is no number" in text
    assert "layers.3.mlp.up_proj" in text


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_the_table_is_exported_as_filtered(client, ids, kind):
    answer = client.get(links.layers(ids["base"], q="role:attn_q", sort="name", export=kind))
    assert answer.status_code == 200
    assert answer.headers["content-disposition"].endswith(f'.{kind}"')
    if kind == "json":
        assert [row["name"] for row in answer.json()] == [f"layers.{i}.self_attn.q_proj" for i in range(4)]


def test_a_plan_is_exported_for_another_tool(client, ids):
    answer = client.get(f"/plans/{ids['plan']}/export/alphapruning")
    assert answer.status_code == 200
    assert answer.content.startswith(b"\x93NUMPY")
    assert answer.headers["content-disposition"].endswith('.npy"')


def test_what_a_tool_cannot_say_is_told(client, ids):
    answer = client.get(f"/plans/{ids['plan']}/export/llamacpp")
    assert answer.status_code == 400


def test_tags_are_kept_shown_and_searched(client, ids):
    assert client.put(f"/models/{ids['base']}/tags", data={"text": "prod v1.2"}).status_code == 200
    text = client.get("/models?tag=prod").text
    assert ids["base"] in text
    assert ids["tuned"] not in re.findall(r'href="/models/([\w-]+)"', text)
    assert client.put(f"/models/{ids['base']}/tags", data={"text": "<b>"}).status_code == 400


def test_the_help_says_what_the_charts_say(client, ids):
    from tailwise.report.charts.chart import CHARTS

    for name, chart in CHARTS.items():
        if chart.scope == "audit" and name != "heatmap":
            assert chart.guidance.good.split("'")[0][:40] in client.get(f"/help/{name}").text


def test_everything_that_the_assistant_explains_has_a_page(client):
    from tailwise.app.assistant.functions.explaining import topics

    for name in topics():
        assert client.get(links.explain(name)).status_code == 200, name


def test_an_answer_of_the_assistant_is_drawn_without_markup_of_names(client, ids):
    question = {
        "messages": [{"role": "user", "content": "which layers are worst?"}],
        "screen": {"area": "details", "audit": ids["base"]},
    }
    answer = client.post("/assistant/ask", json=question)
    assert answer.status_code == 200
    assert '"kind": "done"' in answer.text
    assert "<script>" not in answer.text


def test_the_table_of_layers_counts_what_is_measured_as_the_verdict_does(client, ids, audits):
    text = client.get(links.layers(ids["base"])).text
    of, measured = len(audits[0].rows), len(audits[0])
    assert of > measured
    assert f"{of} of {of} tensors, {measured} of them measured as matrices" in text
    assert f"{measured} matrices" in client.get(links.model(ids["base"])).text


def test_a_layer_says_why_its_exponent_says_nothing(client, ids, audits):
    doubts = {layer.row.name: doubt(layer.row) for layer in audits[0]}
    assert any(doubts.values())
    for name, why in doubts.items():
        text = client.get(links.layer(ids["base"], name)).text
        assert ("Its α says nothing" in text) == bool(why)


def test_a_run_of_audits_asks_for_no_loss(client, folder, audits):
    with History(folder / "history.db") as history:
        history.add_audit(audits[0], "checkpoints", 5)
    text = client.get(links.run("checkpoints")).text
    assert "Audits of checkpoints have no loss" in text
    assert "/api/training/scalars" not in text
    assert "/api/training/scalars" in client.get(links.run("run & <i>one</i>")).text


def test_two_models_are_compared_with_a_conclusion_first(client, ids):
    page = client.get(links.compare([ids["base"], ids["tuned"]])).text
    told = client.get(links.against_base(ids["tuned"], ids["base"])).text
    said = told.split('<p class="health info">')[1].split("</p>")[0]
    assert said in page.split("<table")[0]
    assert 'class="health info"' not in client.get(links.compare([ids["base"]])).text
