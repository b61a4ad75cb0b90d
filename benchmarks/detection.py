"""The cost of detection: a first-step score against a whole pipeline, all detectors against one.

A released detector of the first step runs its pipeline to the end, prompt by prompt, and reads the
score on the way. Ours stops after the first call, whose unconditional half is computed once for all
prompts. Detectors of the whole path share one path, so that all of them cost little more than one.
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
FASTER, DEARER = 20, 1.1
ONE = "gap_norm:all"


def main() -> bool:
    """Measure, print, and return whether every limit is kept."""
    model: Any = load_model("embedded")
    prompts = embedded_prompts(PROMPTS // 2, PROMPTS // 2)
    pipeline = model.pipeline
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    path = [d for d in all_detectors()
            if d.kind == "prompt" and any(p.calls is None for p in d.needs.pieces)]  # fmt: skip

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
        Row(f"{len(path)} detectors of the path, against one", f"{every:.2f} s", f"{one:.2f} s",
            every / one, DEARER),
        Row("the same in network calls", f"{calls[0]}", f"{calls[1]}", calls[0] / calls[1], DEARER),
    ]  # fmt: skip
    return show(
        "Cost of detection, a prompt",
        rows,
        f"embedded model, {len(prompts)} prompts, {SEEDS} seeds, {STEPS} steps, g = {GUIDANCE}, "
        f"{torch.get_num_threads()} threads; the noise bank counts as ours; value = peer / ours in "
        "the first row, ours / peer below",
    )


if __name__ == "__main__":
    sys.exit(not main())
