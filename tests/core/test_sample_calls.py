"""Stopping a path early changes nothing of what was seen before."""

import pytest
import torch

from mnemoscope.core.record import Recorder
from mnemoscope.sampling.loop import generators_of, initial_noise, sample
from mnemoscope.models import load_model
from mnemoscope.models.base import SCHEDULERS


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_the_first_calls_are_those_of_the_whole_path(name):
    model = load_model("oracle:mixture")
    scheduler = model.make_scheduler(name, 8)
    tapes = []
    for calls in (3, None):
        generators = generators_of([0, 1])
        noise = initial_noise(generators, model.latent_shape)
        recorder = Recorder()
        cond, uncond = model.encode_prompts(["component 1"] * 2), model.encode_prompts([""] * 2)
        final = sample(
            model.denoiser,
            scheduler,
            noise,
            cond,
            uncond,
            3.0,
            generators,
            observers=[recorder],
            calls=calls,
        )
        tapes.append(recorder.trajectory(final.latents))
    assert tapes[0].x.shape[1] == 3
    assert torch.equal(tapes[0].x, tapes[1].x[:, :3])
    assert torch.equal(tapes[0].eps_g, tapes[1].eps_g[:, :3])
