"""`diagnose_run`: which checkpoints are odd, whether it lasts, and which weights stand still."""

from __future__ import annotations

import numpy as np
import pytest

import tailwise as tw

N, M = 160, 128


def learned(seed: int = 0, spike: float = 0.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {}
    for block in range(3):
        tail = rng.standard_normal((N, M)) @ np.diag(np.arange(1.0, M + 1) ** -0.8) @ rng.standard_normal((M, M))
        made[f"layers.{block}.mlp.up_proj.weight"] = tail / np.sqrt(M) + 0.2 * rng.standard_normal((N, M))
    if spike:
        name = "layers.1.mlp.up_proj.weight"
        u, v = rng.standard_normal((N, 1)), rng.standard_normal((1, M))
        made[name] = made[name] + spike * np.linalg.norm(made[name]) * (u @ v) / np.linalg.norm(u @ v)
    return made


def noise(seed: int = 9) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"layers.{block}.mlp.up_proj.weight": rng.standard_normal((N, M)) for block in range(3)}


def audited(models):
    return {step: tw.audit(model, use_cache=False, baseline_replicas=2) for step, model in models.items()}


def words(found):
    return [(one.place, one.untrained, one.odd, one.same_as) for one in found.checkpoints]


def test_a_fault_that_came_and_went_and_weights_that_stand_still():
    models = {0: noise(), 10: learned(1), 20: learned(2, spike=30), 30: learned(3), 40: learned(3), 50: learned(3)}
    found = tw.diagnose_run(audited(models))
    assert words(found) == [
        ("step 0", True, False, None), ("step 10", False, False, None), ("step 20", False, True, None),
        ("step 30", False, False, None), ("step 40", False, False, "step 30"), ("step 50", False, False, "step 30"),
    ]  # fmt: skip
    said = found.conclusion
    assert "at step 20 alone: " in said
    assert "layers.1.mlp.up_proj" in said
    assert "The weights stand still from step 30 to step 50, to the byte: nothing" in said
    assert said.endswith("Not trained yet at step 0, as runs begin.")
    table = found.table().to_pandas()
    assert list(table["same_weights_as"].fillna("")) == ["", "", "", "", "step 30", "step 30"]
    assert table["verdict"][0] == "not trained yet"


def test_what_lasts_is_said_to_and_noise_after_learning_is_no_beginning():
    found = tw.diagnose_run(audited({1: learned(1), 2: noise(1), 3: noise(2)}))
    assert found.conclusion.startswith("Unhealthy from step 2 to the last: ")
    assert not any(one.untrained for one in found.checkpoints)


def test_a_run_that_never_trained_is_not_called_a_beginning():
    found = tw.diagnose_run(audited({1: noise(1), 2: noise(2)}))
    assert found.conclusion.startswith("Not trained at any checkpoint: unhealthy: ")


def test_a_healthy_run():
    found = tw.diagnose_run(audited({1: learned(1), 2: learned(2)}))
    assert found.conclusion == "Nothing found in 2 checkpoints."
    assert "Nothing found" in repr(found)
    assert "Nothing found" in found._repr_html_()


def test_order_is_of_steps_where_all_have_one():
    audits = audited({30: learned(1), 4: learned(2)})
    assert [one.place for one in tw.diagnose_run(audits).checkpoints] == ["step 4", "step 30"]
    assert [one.place for one in tw.diagnose_run(list(audits.values()), steps=[9, 8]).checkpoints] == [
        "step 8",
        "step 9",
    ]
    named = {"before": audits[30], "after": audits[4]}
    assert [one.place for one in tw.diagnose_run(named).checkpoints] == ["before", "after"]


@pytest.mark.parametrize("given", [[], {}])
def test_nothing_given(given):
    with pytest.raises(tw.UsageError, match="there is no audit"):
        tw.diagnose_run(given)


def test_a_fault_that_grows_is_told_from_where_it_begins():
    """Stable rank falls over several checkpoints before the rule on collapse finds it."""
    models = {
        step: learned(7, spike=spike) for step, spike in zip(range(1, 8), (0, 0, 0, 0.3, 0.8, 3, 30), strict=True)
    }
    found = tw.diagnose_run(audited(models))
    first = next(one for one in found.checkpoints if one.odd)
    assert first.place in ("step 5", "step 6", "step 7")
    said = found.conclusion
    assert f"Unhealthy from {first.place} to the last: " in said or f"Unhealthy at {first.place}: " in said
    assert "It begins before a rule finds it, at step 5: the stable rank of layers.1.mlp.up_proj is " in said
    sound = found.checkpoints[3].stable_ranks["layers.1.mlp.up_proj"]
    assert f" is {sound:.3g} at step 4, " in said


def test_the_worst_is_said_first_and_the_last_layers_to_leave_noise_still_begin():
    partly = {**noise(4), "layers.0.mlp.up_proj.weight": learned(1)["layers.0.mlp.up_proj.weight"]}
    found = tw.diagnose_run(audited({1: noise(3), 2: partly, 3: learned(1), 4: learned(2, spike=30)}))
    assert [one.untrained for one in found.checkpoints] == [True, True, False, False]
    assert found.conclusion.startswith("Unhealthy at step 4: ")
    assert found.table().to_pandas()["codes"][3].startswith("TW")
