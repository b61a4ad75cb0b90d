"""Quantities across seeds, and a unit of work against the host pipeline's own answer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from mnemoscope.sampling.loop import generators_of
from mnemoscope.models import load_model
from mnemoscope.plan import make_library, make_plan
from mnemoscope.data.prompts import Prompt
from mnemoscope.unit import across_seeds, run_unit
from tests.tiny import tiny_folder


@settings(max_examples=20, deadline=None)
@given(seeds=st.integers(2, 6), d=st.integers(2, 9), salt=st.integers(0, 2**31))
def test_across_seeds_equals_numpy_and_scipy(seeds, d, salt):
    vectors = torch.randn(seeds, 3, d, generator=torch.Generator().manual_seed(salt))
    found = across_seeds(vectors)
    for call in range(3):
        v = vectors[:, call].double().numpy()
        spectrum = np.linalg.eigvalsh(np.cov(v, rowvar=False))
        expected = {
            "variance": v.var(axis=0, ddof=1).mean(),
            "distance": pdist(v).mean() / np.sqrt(d),
            "cosine": 1 - pdist(v, "cosine").mean(),
            "rank": spectrum.sum() ** 2 / (spectrum**2).sum(),
        }
        for name, value in expected.items():
            assert found[name][call].item() == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_nearly_equal_seeds_keep_their_digits():
    """A common part a million times the spread must not eat the spread."""
    spread = torch.randn(4, 1, 50)
    spread -= spread.mean(dim=0)
    shift = 2.0**20
    steps = (spread * 2**10).round() / 2**3
    near = across_seeds(steps + shift)
    far = across_seeds(steps)
    for name in ("variance", "distance", "rank"):
        torch.testing.assert_close(near[name], far[name], rtol=1e-9, atol=0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load_model(str(tiny_folder(tmp_path_factory.mktemp("tiny"))), device="cpu")


def plan_of(model, prompts, **changes):
    options = {
        "seeds": 2,
        "guidance": (7.5,),
        "steps": 4,
        "scheduler": "ddim",
        "seed": 3,
        "shared_noise": False,
        "probes": True,
        "similarity": ("l2",),
        "sscd": None,
        "batch": 3,
    }
    library = make_library(prompts, model.image_size)
    return make_plan(model, prompts, library, **(options | changes))


def prompts_with_images(size=16):
    return tuple(
        Prompt(f"p{k}", f"a picture {k}", images=(torch.rand(3, size, size),)) for k in range(2)
    )


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "ddpm"])
def test_final_sample_is_that_of_the_unmodified_pipeline(tiny, scheduler):
    prompts = prompts_with_images()
    plan = plan_of(tiny, prompts, scheduler=scheduler, batch=4)
    parts = run_unit(tiny, plan, plan.units[0])
    keys = [(p, s) for p in range(2) for s in range(2)]
    host = tiny.host_latents(
        [prompts[p].text for p, _ in keys],
        plan.scheduler,
        4,
        7.5,
        generators_of([plan.sample_seed(prompts[p].prompt_id, s) for p, s in keys]),
    )
    path = parts["gram"].to_pylist()
    last = [row["x_0·x_0"] for row in path if row["law"] == "path" and row["call"] == 0]
    expected = host.flatten(1).double().square().sum(dim=1).tolist()
    assert last == pytest.approx(expected, rel=1e-12)


def test_network_calls_are_as_priced(tiny):
    prompts = (*prompts_with_images(), Prompt("p2", "no picture"))
    plan = plan_of(tiny, prompts)
    told = []
    run_unit(tiny, plan, plan.units[0], told.append)
    assert sum(told) == plan.network_calls(plan.units[0], 2)


def test_unit_does_not_depend_on_how_it_is_batched(tiny):
    prompts = prompts_with_images()
    one, many = (
        run_unit(tiny, plan, plan.units[0])
        for plan in (plan_of(tiny, prompts, batch=b) for b in (1, 4))
    )
    for name, table in one.items():
        for column in table.column_names:
            a, b = table[column].to_pylist(), many[name][column].to_pylist()
            if column == "seconds" or column == "image":
                continue
            if a and isinstance(a[0], float):
                a, b = (np.array(v, float) for v in (a, b))
                size = max(1.0, np.nanmax(np.abs(a), initial=0))
                np.testing.assert_allclose(a, b, rtol=0, atol=5e-6 * size, err_msg=column)
            else:
                assert a == b, (name, column)


def test_model_without_an_unconditional_branch():
    model = load_model("oracle:memorizer", device="cpu")
    model.has_uncond = False
    prompts = (Prompt("p0", "target 0"), Prompt("p1", "target 1"))
    plan = plan_of(model, prompts, guidance=(1.0,))
    parts = run_unit(model, replace(plan, mean=None), plan.units[0])
    rows = parts["gram"].to_pylist()
    assert {row["law"] for row in rows} == {"path"}
    assert all(row["eps_u·eps_u"] is None for row in rows)
    assert all(row["eps_c·eps_c"] is not None for row in rows)
    assert parts["samples"]["network_calls"].to_pylist() == [4] * 4


def test_own_and_nearest_are_told_apart(tiny):
    """The nearest image is never the prompt's own, and never one that was not trained on."""
    prompts = (
        *prompts_with_images(),
        Prompt("c", "control", images=(torch.rand(3, 16, 16),), group="control"),
    )
    plan = plan_of(tiny, prompts)
    rows = run_unit(tiny, plan, plan.units[0])["similarities"].to_pylist()
    names = [reference.reference_id for reference in plan.library.references]
    assert len(rows) == 3 * 2 * 2
    for row in rows:
        own = names[int(row["prompt_id"] == "p1") if row["prompt_id"] != "c" else 2]
        if row["relation"] == "own":
            assert row["reference_id"] == own
        else:
            assert row["reference_id"] not in (own, names[2])
