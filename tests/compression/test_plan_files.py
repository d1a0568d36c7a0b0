"""A plan is a file that a person can read and edit."""

from __future__ import annotations

import contextlib
import gc
import json
import os

import pytest

from tailwise.compression.making.make import plan_prune
from tailwise.compression.making.request import Request
from tailwise.compression.plans import files
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import UnreadableError, UsageError

yaml = pytest.importorskip("yaml")
FIRST = "layers.0.attn_q.weight"


@pytest.fixture(params=["plan.json", "plan.yaml", "plan.yml"])
def path(request, plan, tmp_path):
    return plan.save(tmp_path / request.param)


def edited(path, change) -> Plan:
    """The plan after `change` was done to the file's document."""
    as_json = path.suffix == ".json"
    document = json.loads(path.read_text()) if as_json else yaml.safe_load(path.read_text())
    change(document)
    path.write_text(json.dumps(document) if as_json else yaml.safe_dump(document))
    return Plan.load(path)


def test_what_was_saved_is_what_is_loaded(path, plan):
    assert Plan.load(path) == plan


@pytest.mark.parametrize("how", [{"pattern": "N:8"}, {"operator": "low_rank"}, {"operator": "structured"}])
def test_every_kind_of_plan_survives_a_file(how, audit, tmp_path):
    made = plan_prune(audit, Request(0.6, **how))
    assert Plan.load(made.save(tmp_path / "x.json")) == Plan.load(made.save(tmp_path / "x.yaml")) == made


def test_a_search_s_table_is_kept(plan, tmp_path):
    searched = plan.replace(tried=({"allocator": "depth", "beta": 0.01, "loss": 3.2},))
    assert Plan.load(searched.save(tmp_path / "x.yaml")).tried == searched.tried


def test_the_file_is_keyed_by_the_tensor_and_says_why(path):
    text = path.read_text()
    assert FIRST in text
    assert "of 4 blocks: prune" in text


def test_an_edited_amount_is_taken_and_the_budget_that_no_longer_holds_is_a_warning(path, plan):
    def change(document):
        document["entries"][FIRST]["sparsity"] = 0

    found = edited(path, change)
    assert found[FIRST].sparsity == 0
    assert "no longer" in found.validate()[0]
    assert plan.validate() == ()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("sparsity", 1.2, "fraction from 0 to 0.99"),
        ("sparsity", -0.1, "fraction from 0 to 0.99"),
        ("sparsity", 70, "write 0.7 for 70 %"),
        ("sparsity", "0.7", "fraction from 0 to 0.99"),
        ("sparsity", True, "fraction from 0 to 0.99"),
        ("sparsity", None, "fraction from 0 to 0.99"),
        ("pattern", "2:3:4", "no pattern '2:3:4'"),
        ("pattern", "N:8", "no pattern 'N:8'"),
        ("pattern", "4:4", "keeps nothing, or everything"),
        ("pattern", 124, "write it in quotes"),
        ("pattern", "2:4", "2:4 is a sparsity of 0.5"),
        ("rank", 3, "has a rank, which wanda does not use"),
        ("spartsity", 0.5, "did you mean sparsity"),
        ("parameters", 0, "it is a count"),
        ("parameters", "many", "it is a count"),
        ("block", "first", "a number or null"),
        ("role", 3, "it is text"),
        ("metrics", {"alpha": "high"}, "a number or null"),
        ("metrics", [1], "metrics is"),
        ("shape", "64x64", "shape is"),
        ("shape", ["a", 2], "a list of counts"),
        ("shape", [0, 64], "a list of counts"),
        ("block", [1], "a number or null"),
        ("sparsity", 10**400, "fraction from 0 to 0.99"),
        ("parameters", 10**400, "it is a count"),
        ("format", 4, "has a format, which a plan to prune does not use"),
    ],
)
def test_a_bad_edit_is_refused_with_what_is_wrong(path, field, value, said):
    with pytest.raises(UsageError) as caught:
        edited(path, lambda document: document["entries"][FIRST].update({field: value}))
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert FIRST in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"operater": "wanda"}, "did you mean operator"),
        ({"operator": "wandas"}, "did you mean wanda"),
        ({"kind": "shrink"}, "it is prune, quantize or"),
        ({"entries": {}}, "has no entries"),
        ({"entries": [1]}, "has no entries"),
        ({"settings": 3}, "settings is 3"),
        ({"settings": {"tau": float("nan")}}, "settings holds other things than text and finite numbers"),
        ({"budget": {"requested": "half"}}, "the budget's requested is 'half'; it is a number"),
        ({"budget": {"requested": 0.5, "achieved": 10**400}}, "it is a number"),
        ({"notes": "one"}, "notes is 'one'"),
        ({"tried": [1]}, r"tried is \[1\]"),
        ({"tailwise_plan": 9}, "is a plan of format 9"),
    ],
)
def test_a_bad_head_is_refused(path, change, said):
    with pytest.raises((UsageError, UnreadableError), match=said):
        edited(path, lambda document: document.update(change))


def test_an_entry_without_its_size_or_that_is_no_entry_is_refused(path):
    with pytest.raises(UsageError, match="has no parameters"):
        edited(path, lambda document: document["entries"][FIRST].pop("parameters"))


def test_a_bare_number_for_an_entry_is_refused(path):
    with pytest.raises(UsageError, match="give the fields of an entry"):
        edited(path, lambda document: document["entries"].update({FIRST: 0.7}))


def test_at_most_five_wrong_entries_are_listed_and_the_others_counted(path):
    def change(document):
        for entry in document["entries"].values():
            entry["sparsity"] = 2.0

    with pytest.raises(UsageError, match="… and 11 more"):
        edited(path, change)


def test_a_tensor_that_is_there_twice_is_refused_in_json(plan, tmp_path):
    path = plan.save(tmp_path / "x.json")
    path.write_text(path.read_text().replace("layers.0.attn_v.weight", FIRST))
    with pytest.raises(UsageError, match=r"'layers\.0\.attn_q\.weight' is there twice"):
        Plan.load(path)


def test_a_tensor_that_is_there_twice_is_refused_in_yaml_with_its_line(plan, tmp_path):
    path = plan.save(tmp_path / "x.yaml")
    path.write_text(path.read_text().replace("layers.0.attn_v.weight", FIRST))
    with pytest.raises(UsageError, match=r"line \d+: 'layers\.0\.attn_q\.weight' is there twice"):
        Plan.load(path)


@pytest.mark.parametrize(("name", "text"), [("x.json", '{"tailwise_plan": 1,\n "kind" "prune"}'),
                                            ("x.yaml", "tailwise_plan: 1\nkind: [prune\noperator: x"),
                                            ("x.yaml", "a: 1\n\tb: 2")])  # fmt: skip
def test_a_slip_of_syntax_is_told_with_its_line(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=r"line [23], column \d+: is no (JSON|YAML)"):
        Plan.load(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.json", "[" * 100_000),
        ("x.json", '{"tailwise_plan": ' + "1" * 5000 + "}"),
        ("x.yaml", "tailwise_plan: " + "1" * 5000),
        ("x.yaml", "tailwise_plan: 2024-13-45"),
    ],
)
def test_a_file_that_a_reader_of_json_or_yaml_gives_up_on_is_told(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=r"is no (plan|JSON|YAML)"):
        Plan.load(tmp_path / name)


HEAD = "tailwise_plan: 1\nkind: prune\noperator: magnitude\nentries:"


def test_entries_of_yaml_may_share_what_an_anchor_names(tmp_path):
    text = f"{HEAD}\n  a: &one {{parameters: 4, sparsity: 0.5}}\n  b: *one\n  c: {{<<: *one, sparsity: 0.25}}\n"
    (tmp_path / "x.yaml").write_text(text)
    assert [decision.sparsity for decision in Plan.load(tmp_path / "x.yaml")] == [0.5, 0.5, 0.25]


def test_an_anchor_within_itself_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_text(f"{HEAD} &all\n  a: *all\n")
    with pytest.raises(UsageError, match="within itself"):
        Plan.load(tmp_path / "x.yaml")


@pytest.mark.parametrize("place", ["model", "tensor", "notes", "settings"])
def test_half_a_character_is_refused_before_the_work(path, place):
    def change(document):
        if place == "tensor":
            document["entries"]["a\ud800"] = document["entries"].pop(FIRST)
        else:
            document[place] = {"model": "a\ud800", "notes": ["\udc00"], "settings": {"\ud800": 1}}[place]

    document = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
    change(document)
    path.write_text(json.dumps(document))  # JSON with escapes is YAML, too
    with pytest.raises(UsageError, match=r"half a character|is no YAML"):
        Plan.load(path)


def test_aliases_of_aliases_are_refused_before_they_unfold(tmp_path):
    lines = ["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))]
    (tmp_path / "x.yaml").write_text("tailwise_plan: 1\nsettings:\n" + "\n".join(f"  {line}" for line in lines))
    with pytest.raises(UsageError, match="aliases stand for more"):
        Plan.load(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    "value",
    ["!!bool foo", '!!int ""', "!!timestamp foo", "!!float ''", "!!binary 7é", "!!python/name:os.system", "2001-99-99",
     ":".join(["1"] * 100_000), ":".join(["1"] * 400) + ":1.5", "9" * 100_000, "{? [1] : 2}"],
    ids=range(11),
)  # fmt: skip
def test_a_value_that_its_tag_does_not_fit_is_one_error_at_once(tmp_path, value):
    (tmp_path / "x.yaml").write_text(f"tailwise_plan: 1\nx: {value}\n")
    with pytest.raises(UsageError, match="is no YAML"):
        Plan.load(tmp_path / "x.yaml")


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_pipe_is_no_plan_and_is_not_waited_for(tmp_path, suffix):
    os.mkfifo(tmp_path / f"plan.{suffix}")
    with pytest.raises(UnreadableError, match="a pipe, and a file was expected"):
        Plan.load(tmp_path / f"plan.{suffix}")


def test_a_plan_that_an_editor_began_with_a_byte_order_mark_is_read(plan, tmp_path):
    path = plan.save(tmp_path / "x.json")
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert Plan.load(path) == plan


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_what_is_no_number_is_refused(plan, tmp_path, value):
    path = plan.save(tmp_path / "x.json")
    amount = str(plan[FIRST].sparsity)
    path.write_text(path.read_text().replace(amount, value, 1))
    with pytest.raises(UsageError, match="fraction from 0"):
        Plan.load(path)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"a": 1}'])
def test_another_file_is_no_plan(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UsageError, match="is no plan"):
        Plan.load(tmp_path / "x.yaml")


def test_a_file_that_is_not_there_or_no_text_is_unreadable(tmp_path):
    with pytest.raises(UnreadableError, match="not a readable plan"):
        Plan.load(tmp_path / "none.json")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UnreadableError, match="it is no text"):
        Plan.load(tmp_path / "x.json")


def test_another_suffix_is_refused(plan, tmp_path):
    with pytest.raises(UsageError, match="suffix"):
        plan.save(tmp_path / "plan.txt")


def test_a_plan_that_was_not_clamped_can_be_looked_at_but_not_applied(audit, tmp_path):
    raw = plan_prune(audit, Request(0.95, "alpha", clamp=False))
    found = Plan.load(raw.save(tmp_path / "x.json"))
    assert found == raw
    with pytest.raises(UsageError, match="plan again without clamp=False"):
        found.validate()


def test_a_rank_that_was_edited_holds_against_the_amount_and_is_noted(audit, tmp_path):
    made = plan_prune(audit, Request(0.6, operator="low_rank"))
    assert made.validate() == ()

    found = edited(made.save(tmp_path / "x.json"), lambda document: document["entries"][FIRST].update(rank=2))
    assert any("the rank holds" in line for line in found.validate())
    with pytest.raises(UsageError, match="whole number from 1 to 64"):
        edited(made.save(tmp_path / "y.json"), lambda document: document["entries"][FIRST].update(rank=65))


def test_a_quantization_plan_wants_a_format_for_each_entry(plan, tmp_path):

    entries = tuple(d.but(sparsity=None, format="int4-sym-g32") for d in plan)
    quantized = plan.replace(kind="quantize", operator="rtn", decisions=entries)
    assert Plan.load(quantized.save(tmp_path / "x.yaml")) == quantized
    with pytest.raises(UsageError, match="has no format"):
        quantized.replace(decisions=(entries[0].but(format=None),)).validate()


@pytest.mark.parametrize("text", ["- " * 100_000, "{a: " * 100_000, "? " * 100_000, "[" * 900, "- " * 900 + "1"])
def test_yaml_that_is_nested_without_measure_is_one_error(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"is no (YAML|plan)"):
        Plan.load(tmp_path / "x.yaml")


@pytest.mark.parametrize("tag", ["!!omap", "!!pairs", ""])
def test_each_node_of_yaml_is_made_once(tmp_path, monkeypatch, tag):
    made = []
    before = yaml.resolver.BaseResolver.resolve
    monkeypatch.setattr(yaml.resolver.BaseResolver, "resolve", lambda *given: made.append(1) or before(*given))
    (tmp_path / "x.yaml").write_text(f"{HEAD} {tag} [" + "a: 1, " * 1000 + "]")
    with pytest.raises(UsageError, match="has no entries"):
        Plan.load(tmp_path / "x.yaml")
    assert 3000 <= len(made) < 3500


@pytest.mark.parametrize("text", [None, "{", "[1]"])
@pytest.mark.parametrize("on", [True, False])
def test_the_collector_rests_while_a_plan_is_read_and_is_then_as_it_was(plan, tmp_path, monkeypatch, text, on):
    seen = []
    before = files.from_json
    monkeypatch.setattr(files, "from_json", lambda *given: seen.append(gc.isenabled()) or before(*given))
    path = plan.save(tmp_path / "x.json")
    if text is not None:
        path.write_text(text)
    was = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        with contextlib.suppress(UsageError):
            Plan.load(path)
        assert (seen, gc.isenabled()) == ([False], on)
    finally:
        (gc.enable if was else gc.disable)()


@pytest.mark.parametrize("place", ["model", "allocator", "tensor", "reason", "matrix", "format"])
def test_a_name_of_megabytes_is_refused_in_few_words(path, place):
    def change(document):
        if place == "tensor":
            document["entries"]["a" * 3_000_000] = document["entries"].pop(FIRST)
        else:
            (document if place in ("model", "allocator") else document["entries"][FIRST])[place] = "a" * 3_000_000

    with pytest.raises(UsageError, match="a text of 3000000 signs") as caught:
        edited(path, change)
    assert len(str(caught.value)) < 1000
