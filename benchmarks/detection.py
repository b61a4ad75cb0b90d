"""The cost of detection: a first-step score against a whole pipeline, all detectors against one.

A released detector of the first step runs its pipeline to the end, prompt by prompt, and reads the
score on the way. Whoever writes the same score by hand makes one call of both branches a prompt:
the fairer peer. Ours stops after the first call as well, joins prompts, and computes the
unconditional half once for all of them. Detectors of the whole path share one path, so that all of
them cost little more than one.
"""

import sys
from typing import Any

import torch
from diffusers import DDIMScheduler

from benchmarks.table import Row, seconds, show
from mnemoscope import detect, load_model
from mnemoscope.detectors import all_detectors
from mnemoscope.evidence import price
from mnemoscope.lab.prompts import embedded_prompts

PROMPTS, SEEDS, STEPS, GUIDANCE = 8, 4, 50, 7.5
FASTER, BY_HAND, DEARER = 20, 1.2, 1.15
ONE = "gap_norm:all"


def main() -> bool:
    """Measure, print, and return whether every limit is kept."""
    model: Any = load_model("embedded")
    prompts = embedded_prompts(PROMPTS // 2, PROMPTS // 2)
    pipeline = model.pipeline
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    path = [d for d in all_detectors()
            if d.kind == "prompt" and any(p.calls is None for p in d.needs.pieces)
            and not d.dear and not d.name.endswith(":earlier")]  # fmt: skip

    def score(detectors: list[str]) -> None:
        detect(model, prompts, detectors=detectors, seeds=SEEDS, steps=STEPS, guidance=GUIDANCE)

    def generate() -> None:
        for prompt in prompts:
            generators = [torch.Generator().manual_seed(seed) for seed in range(SEEDS)]
            pipeline(
                prompt.text,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                num_images_per_prompt=SEEDS,
                generator=generators,
            )

    @torch.no_grad()
    def by_hand() -> list[float]:
        scheduler = model.make_scheduler("ddim", STEPS)
        timestep, scores = scheduler.timesteps[0], list[float]()
        for prompt in prompts:
            noise = torch.randn(SEEDS, *model.latent_shape, generator=torch.Generator())
            texts = [""] * SEEDS + [prompt.text] * SEEDS
            ids = pipeline.tokenizer(
                texts, padding="max_length", truncation=True, return_tensors="pt",
                max_length=pipeline.tokenizer.model_max_length,
            ).input_ids  # fmt: skip
            states = pipeline.text_encoder(ids)[0]
            both = pipeline.unet(torch.cat([noise, noise]), timestep, states).sample
            uncond, cond = both.chunk(2)
            scores.append(float((cond - uncond).flatten(1).norm(dim=1).mean()))
        return scores

    hand = seconds(by_hand) / len(prompts)
    first = seconds(lambda: score(["gap_norm"])) / len(prompts)
    whole = seconds(generate) / len(prompts)
    one = seconds(lambda: score([ONE])) / len(prompts)
    every = seconds(lambda: score([d.name for d in path])) / len(prompts)
    calls = [
        price([p for d in some for p in d.needs.pieces], calls=STEPS, seeds=SEEDS).calls
        for some in (path, [d for d in path if d.name == ONE])
    ]
    rows = [
        Row("gap norm, against the pipeline's run", f"{first:.3f} s", f"{whole:.2f} s",
            whole / first, FASTER, at_most=False),
        Row("gap norm, against one call written by hand", f"{first:.3f} s", f"{hand:.3f} s",
            hand / first, BY_HAND, at_most=False),
        Row(f"{len(path)} detectors of the path, against one", f"{every:.2f} s", f"{one:.2f} s",
            every / one, DEARER),
        Row("the same in network calls", f"{calls[0]}", f"{calls[1]}", calls[0] / calls[1], DEARER),
    ]  # fmt: skip
    return show(
        "Cost of detection, a prompt",
        rows,
        f"embedded model, {len(prompts)} prompts, {SEEDS} seeds, {STEPS} steps, g = {GUIDANCE}, "
        f"{torch.get_num_threads()} threads; the noise bank counts as ours; value = peer / ours in "
        "the first two rows, ours / peer below",
    )


if __name__ == "__main__":
    sys.exit(not main())
