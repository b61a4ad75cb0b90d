"""The rows of a unit: priced as the network is called, the same however they are batched."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mnemoscope.data.prompts import read_prompts
from mnemoscope.data.references import References
from mnemoscope.flows.scores import choose
from mnemoscope.flows.study import Study, StudyWorker
from mnemoscope.models import load_model
from mnemoscope.sampling.loop import generators_of
from mnemoscope.similarity import get_similarity
from tests.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def tiny():
    return load_model(tiny_pipeline(), device="cpu")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Three prompts with an image, of which the last is a control, and one without."""
    folder = tmp_path_factory.mktemp("list")
    pixels = torch.randint(0, 256, (3, 16, 16, 3), generator=torch.Generator().manual_seed(2))
    for at, picture in enumerate(pixels):
        Image.fromarray(picture.byte().numpy()).save(folder / f"{at}.png")
    (folder / "list.jsonl").write_text(
        '{"prompt": "a picture 0", "images": ["0.png"], "prompt_id": "p0"}\n'
        '{"prompt": "a picture 1", "images": ["1.png"], "prompt_id": "p1"}\n'
        '{"prompt": "control", "images": ["2.png"], "prompt_id": "c", "group": "control"}\n'
        '{"prompt": "no picture", "prompt_id": "n"}\n'
    )
    return read_prompts(folder / "list.jsonl")


def worker_of(model, prompts, tick=None, **changes):
    options = {
        "model": model.name,
        "seeds": 2,
        "guidance": (7.5,),
        "steps": 4,
        "seed": 3,
        "similarity": ("l2",),
        "batch": 8,
        "out": "nowhere/at/all",
    }
    study = Study(**(options | changes))
    worker = StudyWorker(study, model, choose(study.detectors), tick)
    measures = {"l2": get_similarity("l2")}
    worker.know(prompts, References(prompts, model.image_size), measures)
    return worker


def rows_of(worker, prompts):
    """Return the rows of all units together, by table."""
    tables = {}
    for unit in worker.units(prompts):
        for name, rows in worker.reduce(unit, worker.gather(unit)).items():
            tables[name] = tables.get(name, []) + rows.to_pylist()
    return tables


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "ddpm"])
def test_final_sample_is_that_of_the_unmodified_pipeline(tiny, prompts, scheduler):
    worker = worker_of(tiny, prompts, scheduler=scheduler)
    known = list(prompts)
    keys = [(p, s) for p in range(len(known)) for s in range(2)]
    recipe = worker.first.recipe
    host = tiny.host_latents(
        [known[p].text for p, _ in keys],
        worker.first.scheduler,
        4,
        7.5,
        generators_of([recipe.sample_seed(known[p].prompt_id, p, s) for p, s in keys]),
    )
    path = rows_of(worker, prompts)["gram"]
    last = [row["x_0·x_0"] for row in path if row["law"] == "path" and row["call"] == 0]
    expected = host.flatten(1).double().square().sum(dim=1).tolist()
    assert last == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("noise", ["independent", "shared"])
@pytest.mark.parametrize("detectors", [("free",), ("free", "bright_ending", "flipd", "sharpness")])
def test_network_calls_are_as_priced(tiny, prompts, noise, detectors):
    told = []
    worker = worker_of(tiny, prompts, told.append, noise=noise, detectors=detectors)
    if noise == "shared":
        worker.first.unconditional_of_seeds(0)
        told.clear()
    rows_of(worker, prompts)
    forward = worker.calls(prompts)
    if "flipd" in detectors:
        # A forward-mode derivative counts as a call, and is none of its own.
        forward -= 2 * 2 * 3 + 2 * 2 * 4
    assert sum(told) == forward


def test_rows_do_not_depend_on_how_they_are_batched(tiny, prompts):
    one, many = (rows_of(worker_of(tiny, prompts, batch=b), prompts) for b in (1, 8))
    assert one.keys() == many.keys()
    for name, rows in one.items():
        others = many[name]
        if name == "gram":
            rows, others = (sorted(r, key=lambda row: row["law"]) for r in (rows, others))
        assert len(rows) == len(others), name
        for column in rows[0]:
            a, b = ([row[column] for row in r] for r in (rows, others))
            if column in ("seconds", "image"):
                continue
            if all(value is None or isinstance(value, float) for value in a):
                x, y = (np.array(v, float) for v in (a, b))
                size = max(1.0, np.nanmax(np.abs(x), initial=0))
                tolerance = 2e-4 if name == "scores" else 2e-5
                np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * size, err_msg=column)
            else:
                assert a == b, (name, column)


def test_own_and_nearest_are_told_apart(tiny, prompts):
    """The nearest image is never the prompt's own, and never one that was not trained on."""
    worker = worker_of(tiny, prompts)
    rows = rows_of(worker, prompts)["similarities"]
    names = {
        prompt: worker.references.ids(prompt)[0] if worker.references.ids(prompt) else None
        for prompt in ("p0", "p1", "c", "n")
    }
    counts = Counter(row["relation"] for row in rows)
    # Three with an image of their own, which they are swapped among, and one without.
    assert counts == {"own": 3 * 2, "nearest": 4 * 2, "typical": 4 * 2, "other": 3 * 2}
    for row in rows:
        own = names[row["prompt_id"]]
        match row["relation"]:
            case "own":
                assert row["reference_id"] == own
            case "nearest":
                assert row["reference_id"] in {names["p0"], names["p1"]} - {own}
            case "other":
                place = worker.swapped[row["prompt_id"]]
                assert row["reference_id"] == worker.references.entries[place].reference_id != own
            case _:
                assert row["reference_id"] in set(names.values()) - {own}
    nearest, typical = (
        {(row["prompt_id"], row["seed"]): row["value"] for row in rows if row["relation"] == kind}
        for kind in ("nearest", "typical")
    )
    assert all(typical[key] <= nearest[key] for key in nearest if key[0] in ("p0", "p1", "n"))
    assert sorted(worker.swapped) == ["c", "p0", "p1"]
    assert len(set(worker.swapped.values())) == 3


def test_a_model_without_an_unconditional_branch_has_half_a_record(prompts):
    model = load_model("oracle:memorizer")
    model.has_uncond, model.guidance, model.no_uncond = False, "none", "one branch alone"
    worker = worker_of(model, prompts, guidance=(1.0,))
    tables = rows_of(worker, prompts)
    assert {row["law"] for row in tables["gram"]} == {"path"}
    assert all(row["v_u·v_u"] is None for row in tables["gram"])
    assert all(row["v_c·v_c"] is not None for row in tables["gram"])
    assert {row["network_calls"] for row in tables["samples"]} == {4}
    reasons = {row["detector"]: row["reason"] for row in tables["scores"]}
    assert reasons["gap_norm"] == "one branch alone"
    assert reasons["seed_agreement"] is None


def test_probes_are_made_once_for_all_scales(tiny, prompts):
    worker = worker_of(tiny, prompts, guidance=(1.0, 7.5))
    rows = [row for row in rows_of(worker, prompts)["gram"] if row["law"] != "path"]
    assert {row["recipe"] for row in rows} == {None}
    keys = [(row["prompt_id"], row["seed"], row["law"], row["call"]) for row in rows]
    assert len(keys) == len(set(keys))
    assert {key[0] for key in keys if key[2] == "forward"} == {"p0", "p1", "c"}
    assert {key[0] for key in keys if key[2] == "noise"} == {"p0", "p1", "c", "n"}


def test_the_price_is_said_in_words(tiny, prompts):
    worker = worker_of(tiny, prompts, guidance=(1.0, 7.5))
    told = worker.price(prompts)
    assert told.startswith("4 prompts x 2 seeds x 2 guidance scales, ")
    assert f"{worker.calls(prompts) + 256:,} network calls, about " in told
    assert told.endswith("on cpu")


def test_units_of_a_worker_are_values(tiny, prompts):
    worker = worker_of(tiny, prompts, batch=2)
    units = list(worker.units(prompts))
    assert len(units) == worker.count(prompts) == 4
    assert replace(units[0]) == units[0]
