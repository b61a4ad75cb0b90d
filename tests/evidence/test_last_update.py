"""Evidence of a whole path takes the update after its last call, and says what failed there."""

import pytest
import torch

from mnemoscope.data.prompts import Prompt
from mnemoscope.evidence import Bank, gather
from mnemoscope.evidence.gather import sit
from mnemoscope.evidence.pieces.change_norms import ChangeNorms
from mnemoscope.evidence.pieces.path import PathRecord
from mnemoscope.evidence.pieces.pictures import Pictures
from mnemoscope.flows.detect import detect
from mnemoscope.models import load_model
from mnemoscope.sampling.loop import generators_of
from mnemoscope.sampling.recipe import Recipe
from tests.tiny import tiny_pipeline

TEXTS = ["a picture", "another one"]
PROMPTS = [Prompt(f"p{at}", text) for at, text in enumerate(TEXTS)]
STEPS, SEEDS = 4, 2


@pytest.fixture(scope="module")
def model():
    return load_model(tiny_pipeline(), device="cpu")


@pytest.fixture
def bank(model):
    return Bank(model, Recipe(scheduler="ddim", steps=STEPS, guidance=7.5), SEEDS, batch=4)


@pytest.mark.parametrize("length", [None, STEPS])
def test_pictures_and_the_last_change_are_those_of_the_finished_path(model, bank, length):
    pieces = [Pictures(), ChangeNorms(None), PathRecord(length)]
    sitting = sit(bank, PROMPTS, range(2), pieces)
    found = gather(sitting, pieces)
    seeds = [bank.recipe.sample_seed(PROMPTS[p].prompt_id, p, s) for p, s in sitting.keys]
    texts = [TEXTS[p] for p, _ in sitting.keys]
    host = model.host_latents(texts, bank.scheduler, STEPS, 7.5, generators_of(seeds))
    pictures = model.decode(host).unflatten(0, (2, SEEDS))
    torch.testing.assert_close(found[Pictures()], pictures, rtol=0, atol=1e-5)
    before = sitting.tape.x[:, -1]
    wanted = (host.flatten(1) - before).double().norm(dim=1).unflatten(0, (2, SEEDS))
    torch.testing.assert_close(found[ChangeNorms(None)].state[:, :, -1], wanted)
    # The state before the update is another picture, so the test can fail.
    earlier = model.decode(before.unflatten(1, model.latent_shape)).unflatten(0, (2, SEEDS))
    assert float((earlier - pictures).abs().max()) > 5e-5


def test_what_is_not_finite_at_the_last_call_alone_is_said(model, monkeypatch):
    victim = model.encode_prompts([TEXTS[1]]).embedding[0]
    inner, last = model.denoiser, int(model.make_scheduler("ddim", STEPS).timesteps[-1])

    class Failing:
        kind = inner.kind
        joint, order, network = inner.joint, inner.order, inner.network

        def __call__(self, x, timestep, condition):
            out = inner(x, timestep, condition).clone()
            if int(timestep) == last:
                hit = (condition.embedding == victim).flatten(1).all(dim=1)
                out[hit] = torch.nan
            return out

    monkeypatch.setattr(type(model), "denoiser", property(lambda self: Failing()))
    names = ["generate_and_cluster", "seed_agreement", "gap_norm:all"]
    found = detect(model, PROMPTS, detectors=names, seeds=SEEDS, steps=STEPS)
    for row in found.table.to_pylist():
        if row["prompt_id"] == "p0":
            assert row["reason"] is None
        else:
            assert row["reason"] == "the score is not finite"
            assert row["score"] is None
