"""The comparison of mitigations end to end, on a perfect memorizer whose truth is known."""

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnemoscope.data.prompts import PromptList, read_prompts
from mnemoscope.errors import InputError
from mnemoscope.flows.comparison import (
    Comparing,
    TrialWorker,
    _ordinary,
    chosen,
    compare_mitigations,
    summary,
    with_thresholds,
)
from mnemoscope.flows.outcomes import mechanism_of
from mnemoscope.mitigations import all_mitigations, parse
from mnemoscope.models import load_model
from mnemoscope.runs.folder import open_run
from mnemoscope.runs.tables import TABLES
from mnemoscope.severity.truth import judge
from tests.flows.test_bench import prompts as listed

METHODS = (
    "static_transition(strength=1)",
    "gated_opposite(strength=3)",
    "noise_adjustment(strength=0.5,rounds=1,wait=0)",
)
STEPS, SEEDS = 8, 2

prompts = listed


@pytest.fixture(scope="module")
def model():
    return load_model("oracle:memorizer")


def go(model, prompts, out, **more):
    options = {"mitigations": METHODS, "seeds": SEEDS, "steps": STEPS, "out": out} | more
    return compare_mitigations(model, prompts, **options)


@pytest.fixture(scope="module")
def found(model, prompts, tmp_path_factory):
    return go(model, prompts, tmp_path_factory.mktemp("mitigations") / "out")


def value(found, setting, population, metric, gated=False):
    (row,) = [
        row
        for row in found.rows
        if row.outcome.setting.startswith(setting)
        and bool(row.outcome.setting) == bool(setting)
        and (row.population, row.metric) == (population, metric)
        and row.outcome.gated == gated
    ]
    return row


def test_plain_guidance_reproduces_every_target_and_no_stranger(found):
    assert found.truth.memorized.tolist() == [True] * 8 + [False] * 8
    for metric in ("reproduced", "copies"):
        assert value(found, "", "memorized", metric).value.value == 1
    assert value(found, "", "others", "identical").value.value == 1


def test_without_the_prompt_samples_leave_their_targets(found):
    row = value(found, "static_transition", "memorized", "severity")
    assert row.change.high < -0.15
    assert value(found, "gated_opposite", "memorized", "severity").change.high < 0


def test_behind_the_detector_others_are_left_bit_for_bit(found):
    for method in ("static_transition", "gated_opposite", "noise_adjustment"):
        others = value(found, method, "others", "identical", gated=True)
        assert others.value.value == 1
        # The memorizer says its target at the first call: all of its prompts are suspicious.
        mine = [value(found, method, "memorized", "reproduced", gated=g) for g in (False, True)]
        assert mine[0].value == mine[1].value


def test_thresholds_are_set_on_ordinary_prompts_and_used(found):
    assert set(found.thresholds) == {"threshold", "target"}
    told = [row.outcome.setting for row in found.rows]
    threshold = found.thresholds["threshold"]
    assert any(f"gated_opposite(strength=3.0,threshold={threshold}" in name for name in told)


def test_the_gap_aimed_at_is_no_other_methods_target():
    # SAIL aims at a change of the score, which is another number.
    given = {"target": 9.0}
    taken = {
        name
        for name, kind in all_mitigations().items()
        if with_thresholds(kind(), given).settings.get("target") == 9.0
    }
    assert taken == {"prompt_optimization", "noise_optimization"}


def test_a_copy_is_what_severity_calls_one(found):
    run = open_run(found.path / "trial")
    keys = {str(parse(row["intervention"])): key for key, row in run.recipes.items()}
    rows = run.table("severity").to_pylist()
    for setting, key in keys.items():
        mine = judge([row for row in rows if row["recipe"] == key], "l2")
        held = {name: found.truth.prompt_id.index(name) for name in mine}
        told = value(found, setting, "memorized", "reproduced").outcome.values
        for name, judged in mine.items():
            assert told["reproduced"][held[name]].mean() == judged.share
            seeds = np.flatnonzero(told["copies"][held[name]]).tolist()
            assert seeds == sorted(judged.copies)


def test_the_price_is_said_first_and_is_what_was_called(model, prompts, found, tmp_path):
    said = []
    with pytest.raises(KeyboardInterrupt):
        go(model, prompts, tmp_path / "out", notify=lambda line: stop(said, line))
    calls = 16 * SEEDS * (4 * 2 * STEPS + 4)
    assert said == [said[0]]
    assert f"3 settings x 16 prompts x {SEEDS} seeds" in said[0]
    assert f"{calls:,} network calls" in said[0]
    made = sum(
        sum(open_run(found.path / name).table("samples")["network_calls"].to_pylist())
        for name in ("study", "trial")
    )
    assert made == calls


def stop(said, line):
    said.append(line)
    raise KeyboardInterrupt


def test_the_price_is_what_was_called(found):
    path = 2 * STEPS
    assert value(found, "", "others", "network_calls").value.value == path
    assert value(found, "gated", "others", "network_calls").value.value == path
    assert value(found, "noise_adj", "others", "network_calls").value.value == path + 4


def test_the_folder_holds_what_is_said(found, model):
    with pq.ParquetFile(found.path / "mitigations.parquet") as file:
        table = file.read()
    assert table.schema.equals(TABLES["mitigations"].schema)
    assert table.num_rows == len(found.rows)
    facts = json.loads((found.path / "bench.json").read_text())
    assert facts["model"]["digest"] == model.digest
    assert (facts["memorized"], facts["others"], facts["left_out"]) == (8, 8, 0)
    text = (found.path / "mitigations.md").read_text()
    assert text == summary(found)
    assert "`static_transition(strength=1.0)`" in text
    assert "no judge" in text
    assert (found.path / "mitigations-price.png").stat().st_size > 1000


def test_pairs_are_the_same_sample_before_and_after(found):
    with pq.ParquetFile(found.path / "pairs.parquet") as file:
        rows = file.read().to_pylist()
    assert rows == list(found.pairs)
    # Six of the eight memorized prompts, under each of the three settings.
    assert len({row["prompt_id"] for row in rows}) == 6
    assert len(rows) == 6 * 3
    study, trial = (open_run(found.path / name) for name in ("study", "trial"))
    keys = {str(parse(row["intervention"])): key for key, row in trial.recipes.items()}
    for row in rows:
        for run, key, side in (
            (study, None, "before"),
            (trial, keys[row["setting"]], "after"),
        ):
            wanted = run.image(row["prompt_id"], row["seed"], recipe=key)
            assert Image.open(io.BytesIO(row[side])).convert("RGB").tobytes() == wanted.tobytes()
        outcome = value(found, row["setting"], "memorized", "copies").outcome
        at = found.truth.prompt_id.index(row["prompt_id"])
        assert row["copied"]
        assert row["copies"] == bool(outcome.values["copies"][at, row["seed"]])
        assert row["right"] is None


def test_thresholds_are_of_half_of_the_controls_and_checked_on_the_others(found):
    half = found.truth.half(0)
    controls = ~found.truth.memorized
    setting = controls & half if (controls & half).sum() >= 5 else controls
    run = open_run(found.path / "study")
    gram, keys = run.gram(law="path", recipe=next(iter(run.recipes)))
    scores = (gram.square({"x0_c": 1.0, "x0_u": -1.0})[:, 0] / gram.d).sqrt().numpy()
    whose = np.asarray(keys["prompt_id"])
    mean = np.array([scores[whose == name].mean() for name in found.truth.prompt_id])
    limit = np.quantile(mean[setting], 0.95)
    assert found.thresholds["threshold"] == pytest.approx(limit)
    resting = controls & ~setting
    assert found.held_out == (resting.sum(), (mean[resting] > limit).sum())
    assert f"{found.held_out[1]} of {found.held_out[0]} that did not set it do" in summary(found)


def test_what_was_planted_and_is_no_copy_is_not_ordinary(found, prompts):
    """Thresholds come from controls alone, as far as a list knows them."""
    listed = read_prompts(prompts)
    known = [replace(one, group="control") if at >= 10 else one for at, one in enumerate(listed)]
    assert _ordinary(found.truth, PromptList.of(known)).tolist() == [False] * 10 + [True] * 6
    few = [replace(one, group="control") if at >= 14 else one for at, one in enumerate(listed)]
    assert _ordinary(found.truth, PromptList.of(few)).tolist() == [False] * 8 + [True] * 8


def test_an_interrupted_comparison_goes_on(found, model, prompts, monkeypatch, tmp_path):
    out, done = tmp_path / "out", []
    inner = TrialWorker.gather

    def stop(self, unit):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(unit.name)
        return inner(self, unit)

    with monkeypatch.context() as patch:
        patch.setattr(TrialWorker, "gather", stop)
        with pytest.raises(KeyboardInterrupt):
            go(model, prompts, out)
    asked = []

    def count(self, unit):
        asked.append(unit.name)
        return inner(self, unit)

    monkeypatch.setattr(TrialWorker, "gather", count)
    again = go(model, prompts, out)
    assert not set(done) & set(asked)
    for metric in ("reproduced", "severity", "network_calls"):
        for method in ("static", "gated"):
            rows = [value(one, method, "memorized", metric) for one in (found, again)]
            assert rows[0].value == rows[1].value


def test_effects_are_those_of_the_record(found):
    run = open_run(found.path / "trial")
    effects = {
        (row["prompt_id"], row["seed"], row["recipe"]): row
        for row in run.table("effects").to_pylist()
    }
    assert len(effects) == 16 * SEEDS * 3
    gram, keys = open_run(found.path / "study").gram(law="path", guidance=7.5)
    told = mechanism_of(gram)
    # The perfect memorizer: the estimate under guidance is u + g(x - u), whose weight on x is > 1.
    whose = np.asarray(keys["prompt_id"])
    mine = np.isin(whose, [f"q{at:02d}" for at in range(8)])
    assert (told["k"][mine] > 5).all()
    weights = gram.states().fit("x", ["target", "x_T"]).weights
    above = (weights[..., 0] - gram.states().level.alpha).max(dim=1).values
    np.testing.assert_allclose(told["w0"], above.numpy())


def test_all_stands_for_every_method_that_needs_no_file():
    names = {one.name for one in chosen(("all",))}
    assert names == {name for name, kind in all_mitigations().items() if not kind.files}
    both = chosen(("guard", "embedding_noise+guidance_interval"))
    assert [str(one) for one in both][1].startswith("embedding_noise(strength=0.1)+guidance")
    assert set(both.values()) == {False}
    assert chosen(("guard(strength=2)", "guard:3")) == {
        parse("guard"): True,
        parse("guard:3"): True,
    }


def test_options_are_split_outside_brackets_and_checked():
    asked = Comparing.of_options({"mitigations": "guard(strength=1,factor=0.5), tangential"})
    assert asked.mitigations == ("guard(strength=1,factor=0.5)", "tangential")
    with pytest.raises(InputError, match="name what is compared"):
        Comparing(intervention=parse("tangential"))
    with pytest.raises(InputError, match="Did you mean"):
        chosen(("tangentiel",))


def test_a_study_that_cannot_be_paired_is_refused(found, model, prompts, tmp_path):
    run = open_run(found.path / "study")
    with pytest.raises(InputError, match="seeds"):
        go(model, prompts, tmp_path, run=run, seeds=3)
    with pytest.raises(InputError, match="another model"):
        go(load_model("oracle:mixture"), prompts, tmp_path, run=run)
    with pytest.raises(InputError, match="holds guidance"):
        go(model, prompts, tmp_path, run=run, guidance=3.0)
    fewer = prompts.with_name("fewer.jsonl")
    fewer.write_text("\n".join(prompts.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(InputError, match="16 prompts"):
        go(model, fewer, tmp_path, run=run)


def test_nothing_memorized_is_said_before_the_sampling(model, prompts, tmp_path):
    strangers = prompts.with_name("strangers.jsonl")
    strangers.write_text("\n".join(prompts.read_text().splitlines()[8:]) + "\n")
    with pytest.raises(InputError, match="needs both classes"):
        go(model, strangers, tmp_path / "out")
    assert not (tmp_path / "out" / "trial").exists()
