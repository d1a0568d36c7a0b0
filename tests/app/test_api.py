"""The JSON API: facts as the pages show them, and a description that a fuzzer cannot break."""

import pytest

schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis.strategies import booleans  # noqa: E402

from tailwise.history.point import Point  # noqa: E402
from tailwise.history.store import History  # noqa: E402


def test_models_layers_and_diagnosis_agree_with_the_audit(client, ids, audits):
    models = {one["title"]: one for one in client.get("/api/models").json()}
    assert models["base"]["layers"] == len(audits[0])
    rows = client.get(
        f"/api/models/{ids['base']}/layers", params={"sort": "alpha", "down": "true", "size": 1000}
    ).json()
    values = [row["alpha"] for row in rows["layers"] if row["alpha"] is not None]
    assert values == sorted(values, reverse=True)
    assert rows["of"] == len(audits[0].rows)
    assert client.get(f"/api/models/{ids['base']}/diagnosis").json()["looked"]


def test_a_comparison_with_oneself_finds_nothing(client, ids):
    found = client.get("/api/compare", params={"model": ids["base"], "base": ids["base"]}).json()
    assert all(layer["identical"] for layer in found["layers"])


def test_comparisons_at_other_rates_are_kept_and_made_one_at_a_time(client, ids):
    workspace = client.app.state.context.workspace
    asked = {"model": ids["tuned"], "base": ids["base"]}
    found = client.get("/api/compare", params={**asked, "level": 0.2}).json()
    assert found["level"] == 0.2
    with workspace._comparing:
        assert client.get("/api/compare", params={**asked, "level": 0.2}).json() == found
        assert client.get("/api/compare", params=asked).json()["level"] == 0.05
        refused = client.get("/api/compare", params={**asked, "level": 0.3})
    assert (refused.status_code, refused.json()["error"]) == (400, "another comparison is being made")
    assert client.get("/api/compare", params={**asked, "level": 0.3}).json()["level"] == 0.3


def test_every_chart_of_every_scope_is_a_spec_without_colours(client, ids):
    from tailwise.report.charts.chart import charts_of

    base, tuned = ids["base"], ids["tuned"]
    addresses = [f"/api/models/{base}/charts/{one.name}" for one in charts_of("audit")]
    addresses += [
        f"/api/models/{base}/layer/charts/{one.name}?name=layers.1.mlp.up_proj"
        for one in charts_of("layer")
        if one.name != "layer"
    ]
    addresses += [f"/api/compare/charts/{one.name}?model={base}&model={tuned}" for one in charts_of("several")]
    addresses += [f"/api/base/charts/{one.name}?model={tuned}&base={base}" for one in charts_of("base")]
    addresses += [f"/api/plans/{ids['plan']}/chart"]
    run = {"name": "run & <i>one</i>"}
    answers = [client.get(address) for address in addresses]
    answers += [client.get("/api/training/chart", params={**run, "metric": "alpha"})]
    answers += [client.get("/api/training/scalars", params=run)]
    for answer in answers:
        assert answer.status_code == 200, (answer.request.url, answer.text)
        spec = answer.json()
        assert spec["datasets"] or '"values"' in answer.text
        assert "#ff" not in str({**spec, "datasets": None}).lower()


def test_a_series_comes_in_order(client):
    found = client.get("/api/training/series", params={"name": "run & <i>one</i>", "metric": "alpha"}).json()
    assert [line["step"] for line in found] == sorted(line["step"] for line in found)
    assert len(found) == 12


def test_a_chart_over_time_says_how_many_fits_it_left_out(client, folder):
    layers = {f"layers.{i}.mlp.up_proj": {"alpha": 3.0, "ks_distance": 0.05, "num_pl_spikes": 40.0 - 17 * i}
              for i in range(3)}  # fmt: skip
    with History(folder / "history.db") as history:
        history.add_point(Point("judged", 1, "full", 1.0, layers, {"loss": 1.0}))
    spec = client.get("/api/training/chart", params={"name": "judged", "metric": "alpha"}).json()
    assert " ".join(spec["title"]["text"]) == "1 of 3 fits of alpha is not trusted, and left out of the medians"
    assert spec["datasets"]["series"][0]["layers"] == 2
    assert "title" not in client.get("/api/training/scalars", params={"name": "judged"}).json()


@pytest.mark.parametrize("path", ["run", "series", "chart", "scalars"])
def test_a_run_that_there_is_not_is_told(client, path):
    answer = client.get(f"/api/training/{path}", params={"name": "absent", "metric": "alpha"})
    assert answer.status_code == 404
    assert "run" in answer.json()["error"]


def test_the_description_survives_a_fuzzer(app, client, ids):
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", app, headers={"host": "127.0.0.1"})
    proof = {"X-CSRF-Token": client.headers["X-CSRF-Token"], "host": "127.0.0.1"}
    statuses = {}
    for result in schema.get_all_operations():
        statuses[result.ok().label] = _fuzzed(result.ok(), proof, ids)
    assert not {label: found for label, found in statuses.items() if max(found) >= 500}
    # It must have come past the first look-up.
    assert sum(200 in found or 201 in found for found in statuses.values()) >= len(statuses) - 2


def _fuzzed(operation, headers, ids):
    """Statuses of one operation under made-up requests; every other one names things that are there."""
    names = {
        "/api/models/{audit}/charts/{name}": "alpha_hist",
        "/api/models/{audit}/layer/charts/{chart}": "layers.1.mlp.up_proj",
        "/api/compare/charts/{name}": "models_alpha",
        "/api/base/charts/{name}": "base_alpha",
        "/api/plans/{name}": ids["plan"],
        "/api/plans/{name}/chart": ids["plan"],
        "/api/topics/{name}": "TW101",
    }
    name = names.get(operation.path, "run & <i>one</i>")
    there = {"audit": ids["base"], "model": ids["base"], "base": ids["tuned"], "name": name, "chart": "layer_esd"}
    there |= {"metric": "alpha"} if "training" in operation.path else {}
    found = set()

    @settings(max_examples=30, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(), real=booleans())
    def check(case, real):
        if real:
            for name in set(case.path_parameters or {}) & set(there):
                case.path_parameters[name] = there[name]
            for name in set(case.query or {}) & set(there):
                case.query[name] = there[name]
        answer = case.call(headers=headers)
        found.add(answer.status_code)
        if answer.status_code == 200 and "json" in answer.headers.get("content-type", [""])[0]:
            answer.json()

    check()
    return found
