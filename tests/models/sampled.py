"""Sampling a batch as the tests of models do: every branch, recorded, in the host's batch."""

from mnemoscope.core.record import Recorder
from mnemoscope.sampling.loop import Branches, generators_of, initial_noise, sample


def ours(model, prompts, scheduler, guidance):
    """Return the final latents of our loop, recording switched on."""
    count = len(prompts)
    generators = generators_of(range(count))
    noise = initial_noise(generators, model.latent_shape)
    uncond = model.encode_blank(count) if model.has_uncond else None
    branches = Branches(model.encode_prompts(prompts, guidance), uncond)
    recorder = Recorder()
    scale = guidance if model.has_uncond else 1.0
    sampled = sample(
        model.denoiser, scheduler, noise, branches, scale, generators, observers=[recorder]
    )
    assert sampled.ok.all()
    assert len(recorder.calls) == len(scheduler.timesteps)
    return sampled.latents
