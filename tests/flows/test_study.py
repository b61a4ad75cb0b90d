"""Whole studies: what they leave, kills and resumption, broken networks, batch sizes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from PIL import Image

from mnemoscope.core.level import Level
from mnemoscope.errors import InputError, ModelError, RunError
from mnemoscope.flows.study import Study, StudyWorker, run, study_prompts
from mnemoscope.lab.prompts import embedded_prompts
from mnemoscope.mitigations.guidance_interval import GuidanceInterval
from mnemoscope.models import load_model
from mnemoscope.runs.folder import Writer, open_run
from mnemoscope.sampling.hooks import Intervention

ROOT = Path(__file__).parents[2]

EXACT = ("recipes", "prompts", "references", "samples", "null")
RECORD = ("gram", "convergence", "similarities", "severity", "scores", "curves", "statistics")

KEYS = ("recipe", "prompt_id", "seed", "law", "call", "measure", "relation", "reference_id",
        "detector")  # fmt: skip


class Wrapped:
    """A model's denoiser with another behaviour."""

    def __init__(self, model):
        self.inner = model.denoiser
        model.denoiser = self

    def __getattr__(self, name):
        return getattr(self.inner, name)


def prompt_file(folder, planted=3, others=3):
    """Write a prompt list for the memorizer: prompts it knows with their image, and others."""
    folder.mkdir(parents=True, exist_ok=True)
    model = load_model("oracle:memorizer")
    rows = []
    for k, prompt in enumerate(model.prompts[: planted + others]):
        pixels = model.decode(model.denoiser.means[k][None].float())[0]
        array = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / f"{k}.png")
        text = prompt if k < planted else f"nothing known {k}"
        rows.append({"prompt_id": f"p{k}", "prompt": text, "images": [f"{k}.png"]})
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return prompt_file(tmp_path_factory.mktemp("prompts"))


def small(prompts, out, **changes):
    values = {
        "model": "oracle:memorizer",
        "prompts": prompts,
        "seeds": 3,
        "steps": 6,
        "out": out,
        "device": "cpu",
    }
    return Study(**(values | changes))


def sorted_by_key(table):
    """Sort a table by what names its rows: how a list was cut into units decides on the order."""
    keys = [(name, "ascending") for name in KEYS if name in table.column_names]
    return table.sort_by(keys) if keys and "prompt_id" in table.column_names else table


def assert_same(ours, theirs, tolerance=0.0):
    """Demand the same rows, times aside, and numbers within a tolerance."""
    for name in (*EXACT, *RECORD):
        a, b = sorted_by_key(ours.table(name)), sorted_by_key(theirs.table(name))
        assert a.num_rows == b.num_rows, name
        assert a.num_rows or name == "null", name
        for column in a.column_names:
            if column in ("seconds", "image"):
                continue
            x, y = a[column].to_pylist(), b[column].to_pylist()
            if all(isinstance(v, float) or v is None for v in x + y):
                size = max((abs(v) for v in x if v is not None and np.isfinite(v)), default=0.0)
                # Every detector has a unit of its own.
                own = name == "scores"
                np.testing.assert_allclose(
                    np.array(x, float),
                    np.array(y, float),
                    rtol=40 * tolerance if own else 0,
                    atol=tolerance if own else tolerance * max(1.0, size),
                    err_msg=f"{name}.{column}",
                )
            else:
                assert x == y, f"{name}.{column}"


@pytest.fixture(scope="module")
def whole(prompts, tmp_path_factory):
    return run(small(prompts, tmp_path_factory.mktemp("whole") / "run"))


def test_memorizer_is_found_out(whole):
    """The closed form says which prompts are memorized: the three it knows."""
    severity = whole.table("severity").filter(pc.field("measure") == "l2").to_pylist()
    mean = {(row["prompt_id"], row["guidance"]): row["mean"] for row in severity}
    assert all(mean[prompt, 1.0] > 0.97 for prompt in ("p0", "p1", "p2"))
    assert all(mean[prompt, 1.0] < 0.75 for prompt in ("p3", "p4", "p5"))
    assert whole.manifest.status == "complete"
    assert whole.manifest.samples == {"ok": 6 * 3 * 2}
    assert whole.table("checks").num_rows > 0


def test_record_agrees_with_the_closed_form(whole):
    """Without guidance the memorizer's path is w0·x + wT·x_T with the exact weights."""
    gram, keys = whole.gram("path", 1.0)
    known = torch.from_numpy(np.isin(keys["prompt_id"], ["p0", "p1", "p2"]))
    fit = gram.select(known).states().fit("x", on=("target", "x_T"))
    w0, wT = whole.exact
    expected = torch.stack([w0, wT], dim=-1).expand_as(fit.weights)
    # The target's picture is rounded to 8 bits, 1/510 of its range.
    torch.testing.assert_close(fit.weights, expected, atol=5e-3, rtol=0)


def test_probes_are_independent_of_guidance_and_on_the_sub_grid(whole):
    for law in ("forward", "noise"):
        gram, keys = whole.gram(law)
        assert keys["call"].tolist() == [0, 5]
        assert len(keys["seed"]) == 6 * 3
        assert gram.rms("v_g").isnan().all()
    gram, _ = whole.gram("forward")
    alpha, sigma = gram.level
    expected = gram.square({"target": alpha, "x_T": sigma})
    torch.testing.assert_close(gram.square("x"), expected, rtol=1e-5, atol=1e-5)


def test_mean_of_the_memorizer_is_that_of_its_targets(whole):
    model = load_model("oracle:memorizer")
    expected = model.denoiser.means[:-1].mean(dim=0).flatten().float()
    # 256 draws, each pulled off the mean by alpha_T = 0.07 of the spread.
    torch.testing.assert_close(whole.mean, expected, atol=0.02, rtol=0)


def test_manifest_fits(whole):
    assert (whole.path / "manifest.json").stat().st_size <= 4096


def test_same_seed_same_tables(prompts, tmp_path, whole):
    assert_same(run(small(prompts, tmp_path / "again")), whole)


def test_other_seed_other_noise(prompts, tmp_path, whole):
    other = run(small(prompts, tmp_path / "other", seed=1))
    assert other.table("gram")["x·x"].to_pylist() != whole.table("gram")["x·x"].to_pylist()


@pytest.mark.parametrize("batch", [1, 5])
def test_tables_do_not_depend_on_batch_size(prompts, tmp_path, whole, batch):
    assert_same(run(small(prompts, tmp_path / "run", batch=batch)), whole, tolerance=5e-6)


@pytest.mark.parametrize("scheduler", ["ddpm", "euler-ancestral"])
def test_injected_noise_does_not_depend_on_batch_size(prompts, tmp_path, scheduler):
    one, many = (
        run(small(prompts, tmp_path / str(b), batch=b, scheduler=scheduler, guidance=(7.5,)))
        for b in (1, 8)
    )
    assert_same(one, many, tolerance=5e-6)


def test_shared_noise_is_shared_among_prompts(prompts, tmp_path):
    gram, keys = run(small(prompts, tmp_path / "run", noise="shared", guidance=(1.0,))).gram("path")
    start = gram.square("x_T")[:, 0]
    for seed in range(3):
        assert len(set(start[torch.from_numpy(keys["seed"] == seed)].tolist())) == 1


def test_complete_run_is_not_run_again(prompts, tmp_path, whole, monkeypatch):
    lines = []
    monkeypatch.setattr(StudyWorker, "gather", None)
    again = run(small(prompts, whole.path, batch=2), notify=lines.append)
    assert again.manifest.samples == whole.manifest.samples
    assert "2 of 2 units" in lines[1]


def test_price_comes_first_and_counts_calls(prompts, tmp_path):
    model = load_model("oracle:memorizer")
    rows = 0
    lines = []

    class Counting(Wrapped):
        def __call__(self, x, timestep, condition):
            nonlocal rows
            rows += len(x)
            return self.inner(x, timestep, condition)

    Counting(model)
    study = small(prompts, tmp_path / "run", batch=4)
    run(study, model=model, notify=lines.append)
    warm_up = 2 * 2 * 4
    assert lines[0].startswith("6 prompts x 3 seeds x 2 guidance scales, ")
    assert f"{rows - warm_up:,} network calls" in lines[0]


def test_kill_and_resume_gives_the_same_tables(tmp_path, prompts):
    """Kill the process with SIGKILL once a unit is on disk, then give the same command again."""
    code = (
        "import sys, time\n"
        "from tests.flows.test_study import many\n"
        "from mnemoscope.flows.study import StudyWorker\n"
        "whole = StudyWorker.gather\n"
        "def slow(*args):\n"
        "    time.sleep(0.3)\n"
        "    return whole(*args)\n"
        "StudyWorker.gather = slow\n"
        "many(sys.argv[1], sys.argv[2])\n"
    )
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", code, str(prompts), str(folder)], cwd=ROOT)
    try:
        deadline = time.monotonic() + 120
        while len(list((folder / "commits").glob("0*.json"))) < 2:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    torn = open_run(folder)
    assert torn.manifest.status == "started"
    done = sum(unit.startswith("0") for unit in torn.commits())
    assert 2 <= done < 6
    resumed = many(prompts, folder)
    assert resumed.manifest.status == "complete"
    assert resumed.manifest.started == torn.manifest.started
    assert_same(resumed, many(prompts, tmp_path / "straight"))


def many(prompts, out, **changes):
    """Run a study of six units: two prompts a batch, two guidance scales."""
    return run(small(prompts, out, batch=6, **changes))


def test_interruption_is_noted_and_resumed(prompts, tmp_path, whole):
    model = load_model("oracle:memorizer")
    calls = 0

    class Interrupted(Wrapped):
        def __call__(self, x, timestep, condition):
            nonlocal calls
            calls += len(x) < 64
            if calls == 18:
                raise KeyboardInterrupt
            return self.inner(x, timestep, condition)

    Interrupted(model)
    with pytest.raises(KeyboardInterrupt):
        run(small(prompts, tmp_path / "run"), model=model)
    assert open_run(tmp_path / "run").manifest.status == "interrupted"
    assert_same(run(small(prompts, tmp_path / "run")), whole)


def test_damaged_unit_runs_again(prompts, tmp_path, whole):
    folder = tmp_path / "run"
    run(small(prompts, folder))
    part = next((folder / "gram").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(RunError, match="run the study again"):
        open_run(folder).gram("path", 1.0)
    assert_same(run(small(prompts, folder)), whole)
    assert list((folder / "gram").glob("*.corrupt"))


def test_full_disk_is_told_and_resumed(prompts, tmp_path, whole, monkeypatch):
    append = Writer.append

    def full(self, unit, parts):
        if unit.startswith("000000-g7.5"):
            raise RunError("cannot write: No space left on device")
        append(self, unit, parts)

    monkeypatch.setattr(Writer, "append", full)
    with pytest.raises(RunError, match="No space"):
        run(small(prompts, tmp_path / "run"))
    monkeypatch.setattr(Writer, "append", append)
    held = open_run(tmp_path / "run")
    assert held.manifest.status == "interrupted"
    assert held.table("samples").num_rows == 18
    assert_same(run(small(prompts, tmp_path / "run")), whole)


class Broken(Wrapped):
    """A denoiser that fails from some level on, for the states of one belief."""

    def __init__(self, model, how):
        self.how = how
        self.victim = model.encode_prompts([model.prompts[1]]).parts["log_weights"][0]
        super().__init__(model)

    def __call__(self, x, timestep, condition):
        out = self.inner(x, timestep, condition)
        hit = (condition.parts["log_weights"] == self.victim).all(dim=1)
        if not bool(hit.any()) or int(timestep) > 500:
            return out
        if self.how == "raise":
            raise RuntimeError("out of memory")
        out = out.clone()
        out[hit] = torch.nan if self.how == "nan" else torch.inf
        return out


@pytest.mark.parametrize("how", ["nan", "inf", "raise"])
def test_broken_network_marks_excludes_and_counts(prompts, tmp_path, whole, how):
    model = load_model("oracle:memorizer")
    Broken(model, how)
    done = run(small(prompts, tmp_path / "run"), model=model)
    status = "error" if how == "raise" else "nonfinite"
    assert done.manifest.samples == {"ok": 30, status: 6}
    bad = done.table("samples").filter(pc.field("status") == status).to_pylist()
    assert {row["prompt_id"] for row in bad} == {"p1"}
    for row in bad:
        assert row["image"] is None
        assert ("out of memory" if how == "raise" else "at call 2") in row["reason"]
    for name in ("gram", "similarities", "convergence"):
        rows = done.table(name)
        if name == "gram":
            rows = rows.filter(pc.field("law") == "path")
        assert "p1" not in rows["prompt_id"].to_pylist()
    severity = done.table("severity").to_pylist()
    assert all(row["share"] is None for row in severity if row["prompt_id"] == "p1")
    # The others are what they would have been.
    ours, _ = done.gram("path", 7.5)
    theirs, keys = whole.gram("path", 7.5)
    others = torch.from_numpy(keys["prompt_id"] != "p1")
    close = {"rtol": 5e-6, "atol": 5e-4, "equal_nan": True}
    torch.testing.assert_close(ours.products, theirs.products[others], **close)


def test_other_study_is_refused(prompts, whole):
    with pytest.raises(RunError, match="steps: 6 there, 7 here"):
        run(small(prompts, whole.path, steps=7))


def test_study_is_hashable_and_brings_values_to_their_type(tmp_path):
    study = Study.of_options({"guidance": "1, 7.5", "similarity": "l2", "out": tmp_path})
    assert study.guidance == (1.0, 7.5)
    assert study.similarity == ("l2",)
    assert study.out == str(tmp_path)
    assert hash(study) == hash(replace(study))
    assert Study(seeds=3).given() == {"seeds": 3}


def loose(**changes):
    """Make a study as outside the tests, whose type checks refuse what is no tuple."""
    study = object.__new__(Study)
    for f in fields(Study):
        object.__setattr__(study, f.name, changes.get(f.name, f.default))
    study.__post_init__()
    return study


def test_a_single_value_need_be_no_tuple():
    assert loose(guidance=7.5) == loose(guidance="7.5") == Study(guidance=(7.5,))
    assert loose(guidance="1, 7.5", detectors="gap_norm").guidance == (1.0, 7.5)
    assert loose(detectors="gap_norm").detectors == ("gap_norm",)
    assert loose(model=Path("a/b")).model == "a/b"
    with pytest.raises(InputError, match=r"run\(Study\(...\), model=load_model\(pipe\)\)"):
        loose(model=object())


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"guidance": ()}, "empty"),
        ({"guidance": (1.0, 1.0)}, "repeats"),
        ({"guidance": (0.5,)}, "1 or more"),
        ({"guidance": (float("nan"),)}, "1 or more"),
        ({"seeds": 0}, "at least 1"),
        ({"batch": 0}, "at least 1"),
        ({"noise": "share"}, "Did you mean 'shared'"),
    ],
)
def test_values_out_of_range_are_refused(changes, word):
    with pytest.raises(InputError, match=word):
        Study(**changes)


def test_guidance_that_is_no_number_is_refused():
    with pytest.raises(InputError, match=r"expected numbers such as 1,7\.5"):
        Study.of_options({"guidance": "1,x", "similarity": "l2"})


def test_unknown_names_are_refused_before_anything_is_written(prompts, tmp_path):
    for changes, error, word in (
        ({"model": "oracle:memoriser"}, ModelError, "Did you mean"),
        ({"scheduler": "dim"}, ModelError, "Did you mean 'ddim'"),
        ({"similarity": ("l3",)}, InputError, "Did you mean 'l2'"),
        ({"prompts": tmp_path / "none.txt"}, InputError, "no prompt file"),
        ({"prompts": None}, InputError, "brings no prompts"),
        ({"subset": 900}, InputError, "there are"),
        ({"levels": (5.0,)}, InputError, "levels"),
        ({"ids": ("nobody",)}, InputError, "unknown prompt"),
    ):
        with pytest.raises(error, match=word):
            run(replace(small(prompts, tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


def test_a_choice_of_prompts_is_spread_evenly_and_keeps_all_images():
    def chosen(**options):
        some, known = study_prompts(Study(model="embedded", **options))
        return list(some), known

    some, known = chosen(subset=12)
    assert [p.prompt_id for p in some] == [p.prompt_id for p in embedded_prompts(9, 3)]
    assert len(known) == len(embedded_prompts())
    some, _ = chosen(levels=(5.0, 6.0), subset=12, controls=4)
    planted = [prompt for prompt in some if prompt.group == "planted"]
    assert len(planted) == 8
    assert [prompt.group for prompt in some[8:]] == ["control"] * 4
    assert sorted(prompt.level for prompt in planted) == [5] * 4 + [6] * 4
    names = tuple(prompt.prompt_id for prompt in some[:3])
    some, whole = chosen(ids=names)
    assert tuple(prompt.prompt_id for prompt in some) == names
    assert len(whole) == len(known)


def test_prompts_without_images_have_what_needs_none(tmp_path):
    (tmp_path / "p.txt").write_text("target 0\nsomething else\n")
    done = run(small(tmp_path / "p.txt", tmp_path / "run"))
    assert done.table("similarities").num_rows == 0
    gram, _ = done.gram("path", 7.5)
    assert gram.square("target").isnan().all()
    assert torch.isfinite(gram.square("x_0")).all()
    assert isinstance(gram.level, Level)
    with pytest.raises(LookupError, match="forward"):
        done.gram("forward")


@pytest.mark.parametrize("batch", [1, 9])
def test_a_study_goes_on_with_another_batch(prompts, tmp_path, whole, batch):
    """Units stay as they were begun, or prompts would be lost or done twice."""
    append = Writer.append

    def full(self, unit, parts):
        if unit.startswith("000001"):
            raise RunError("cannot write: No space left on device")
        append(self, unit, parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "append", full)
        with pytest.raises(RunError, match="No space"):
            many(prompts, tmp_path / "run")
    again = run(small(prompts, tmp_path / "run", batch=batch))
    assert_same(again, whole, tolerance=5e-6)


def test_rows_made_beside_the_gathering_are_the_same(prompts, tmp_path, whole, monkeypatch):
    from mnemoscope.flows import study as module

    plain = module.executor_of

    def overlapping(asked):
        done = plain(asked)
        return lambda *given, overlap: done(*given, overlap=not overlap)

    monkeypatch.setattr(module, "executor_of", overlapping)
    assert_same(run(small(prompts, tmp_path / "run")), whole)


def test_tables_are_keyed_by_recipe(whole):
    recipes = {row["recipe"]: row for row in whole.table("recipes").to_pylist()}
    assert [row["guidance"] for row in recipes.values()] == [1.0, 7.5]
    assert {row["scheduler"] for row in recipes.values()} == {"ddim"}
    for name in ("samples", "gram", "convergence", "similarities", "severity", "scores"):
        rows = whole.table(name).select(["recipe", "guidance"]).to_pylist()
        assert all(
            row["recipe"] is None or recipes[row["recipe"]]["guidance"] == row["guidance"]
            for row in rows
        )
        assert {row["recipe"] for row in rows} >= set(recipes)


def test_detectors_score_what_a_study_gathers_anyway(prompts, tmp_path, whole):
    scores = whole.table("scores")
    names = set(scores["detector"].to_pylist())
    assert {"gap_norm", "gap_norm:all", "consensus_energy"} <= names
    assert not {"denoising_loss:caption", "sharpness"} & names
    assert scores.num_rows == 6 * 2 * len(names)
    known = pc.field("detector") == "gap_norm"
    rows = scores.filter(known & (pc.field("guidance") == 7.5)).to_pylist()
    values = {row["prompt_id"]: row["score"] for row in rows}
    assert min(values[p] for p in ("p0", "p1", "p2")) > max(values[p] for p in ("p3", "p4", "p5"))
    # The score is arithmetic on the record of the same samples.
    gram, keys = whole.gram("path", 7.5)
    norms = gram.square("gap")[:, 0].sqrt().numpy()
    for prompt, value in values.items():
        assert value == pytest.approx(norms[keys["prompt_id"] == prompt].mean(), rel=1e-5)
    bare = run(small(prompts, tmp_path / "run", detectors=("none",)))
    assert bare.table("scores").num_rows == 0


def test_filmstrips_are_kept_where_asked_for(prompts, tmp_path, whole):
    done = run(small(prompts, tmp_path / "run", filmstrip=3, guidance=(7.5,)))
    rows = done.table("filmstrips").to_pylist()
    assert len(rows) == 18
    assert {tuple(row["calls"]) for row in rows} == {(0, 2, 5)} or rows[0]["calls"][-1] == 5
    assert {tuple(row["branches"]) for row in rows} == {("unconditional", "conditional", "guided")}
    assert whole.table("filmstrips").num_rows == 0


# Interventions


def test_an_intervention_steers_a_study_and_is_part_of_its_recipe(prompts, tmp_path, whole):
    steered = run(
        small(prompts, tmp_path / "run", intervention=GuidanceInterval(0.5), guidance=(7.5,))
    )
    row = steered.table("recipes").to_pylist()[0]
    assert row["intervention"] == "guidance_interval(strength=0.5,stop=1.0)"
    assert steered.manifest.samples == {"ok": 18}
    gram, keys = steered.gram("path", 7.5)
    # Whom the model does not know has the same prediction in both branches.
    known = torch.from_numpy(np.isin(keys["prompt_id"], ["p0", "p1", "p2"]))
    before = (gram.square("v_g") == gram.square("v_c"))[known]
    assert before[:, :3].all()
    assert not before[:, 3:].any()
    with pytest.raises(RunError, match="intervention"):
        run(small(prompts, tmp_path / "run", guidance=(7.5,)))


def test_a_guide_that_breaks_marks_its_samples_and_the_study_goes_on(prompts, tmp_path, whole):
    class Breaking(Intervention):
        name = "breaking"
        source = "this test"

        def guide(self, step):
            used = step.guided()
            if step.point.call == 2:
                used[0] = torch.nan
            return used

    done = run(small(prompts, tmp_path / "run", intervention=Breaking(), guidance=(7.5,), batch=3))
    # The first sample of every batch of three.
    assert done.manifest.samples == {"ok": 12, "nonfinite": 6}
    bad = done.table("samples").filter(pc.field("status") == "nonfinite").to_pylist()
    assert all("at call 2" in row["reason"] for row in bad)
    gram, keys = done.gram("path", 7.5)
    assert sorted(set(keys["seed"].tolist())) == [1, 2]
    assert torch.isfinite(gram.square("x0_g")).all()


def test_a_hook_that_raises_stops_the_study_with_earlier_units_intact(prompts, tmp_path):
    calls = []

    class Raising(Intervention):
        name = "raising"
        source = "this test"

        def guide(self, step):
            calls.append(step.point.call)
            if len(calls) > 6:
                raise ValueError("of my own")
            return step.guided()

    study = small(prompts, tmp_path / "run", intervention=Raising(), guidance=(7.5,), batch=3)
    with pytest.raises(InputError, match="raising: its `guide` raised ValueError"):
        run(study)
    assert open_run(tmp_path / "run").table("samples").num_rows == 3
