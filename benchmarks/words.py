r"""How well scores of a prompt's words say what a word does to the finished sample.

Truth, for word j, with s over seeds and w over words that no score has seen::

    truth_j = mean_{s,w} || x_0(p; s) - x_0(w_j(p); s) ||

Scores, all at the first call::

    left out         ||eps_c(p) - eps_c(p without j)|| / ||gap||, what `explain` tells
    3 other words    the same, mean over three other words in the place of j
    8 other words    the same over eight
    input            || d||gap|| / d e_j ||, e_j the word's input embedding
    output           || d||gap|| / d h_j ||, h_j the text encoder's state at the word

What is told is Spearman's correlation over the words of a prompt, its mean over prompts and a 95 %
bootstrap interval over prompts; at random it is 0. The truth depends on which words are put in: its
halves, of two words each, are held against one another ("truth, halves"). With r their correlation
a perfect score reaches about sqrt(2r / (1 + r)) (Spearman & Brown). The embedded model's words are
one token each.

    python -m benchmarks.words
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mnemoscope.core.stats import spearman
from mnemoscope.data.prompts import Prompt
from mnemoscope.flows.words import without, words_of
from mnemoscope.lab.planted import LEVELS
from mnemoscope.lab.prompts import embedded_prompts
from mnemoscope.models import load_model
from mnemoscope.ranking.markdown import table
from mnemoscope.sampling.loop import Branches, generators_of, initial_noise, sample

PLANTED, CONTROLS = 24, 16
SEEDS, STEPS, GUIDANCE = 3, 12, 7.5
SEEN, MORE, UNSEEN = 3, 8, 4
BATCH = 96
DRAWS = 2000

Scores = dict[str, list[float]]


def chosen() -> list[Prompt]:
    """Return verbatim prompts of the three highest levels, then controls, evenly over the list."""
    prompts = embedded_prompts()
    high = sorted(LEVELS)[-3:]
    planted = sorted(
        (p for p in prompts if p.family == "verbatim" and p.level in high),
        key=lambda p: p.prompt_id,
    )
    controls = [p for p in prompts if p.group == "control"]

    def some(of: list[Prompt], many: int) -> list[Prompt]:
        return [of[at] for at in np.linspace(0, len(of) - 1, many).round().astype(int)]

    return some(planted, PLANTED) + some(controls, CONTROLS)


def replaced(text: str, pool: Sequence[str], seed: int, many: int) -> list[list[str]]:
    """Return the prompt with each of some words in the place of each of its own."""
    places = words_of(text)
    others = [word for word in pool if word not in {place.text for place in places}]
    rng = np.random.default_rng(seed)
    return [
        [text[: p.start] + word + text[p.end :] for word in rng.permutation(others)[:many]]
        for p in places
    ]


@torch.no_grad()
def finished(model: Any, texts: Sequence[str], noise: Tensor) -> Tensor:
    """Return final latents, one row a text and one column a seed."""
    jobs = [(text, seed) for text in texts for seed in range(SEEDS)]
    drawn: list[Tensor] = []
    for start in range(0, len(jobs), BATCH):
        part = jobs[start : start + BATCH]
        branches = Branches(
            model.encode_prompts([text for text, _ in part], GUIDANCE),
            model.encode_blank().expand(len(part)),
        )
        at = torch.tensor([seed for _, seed in part])
        generators = generators_of(range(len(part)))
        scheduler = model.make_scheduler("auto", STEPS)
        made = sample(model.denoiser, scheduler, noise[at], branches, GUIDANCE, generators)
        drawn.append(made.latents.flatten(1))
    return torch.cat(drawn).unflatten(0, (len(texts), SEEDS))


@torch.no_grad()
def first(model: Any, texts: Sequence[str], noise: Tensor, timestep: Tensor) -> Tensor:
    """Return noise estimates at the first call, one row a text and one column a seed."""
    condition = model.encode_prompts(list(texts))
    rows = torch.arange(len(texts)).repeat_interleave(SEEDS)
    x = noise.repeat(len(texts), 1, 1, 1)
    found = [
        model.denoiser(x[part], timestep, condition.take(rows[part]))
        for part in torch.arange(len(rows)).split(BATCH)
    ]
    return torch.cat(found).flatten(1).unflatten(0, (len(texts), SEEDS))


def gradients(pipe: Any, text: str, noise: Tensor, timestep: Tensor) -> dict[str, Tensor]:
    """Return the length of the gap norm's gradient at each position of the window."""
    kept: list[Tensor] = []

    def watch(_module: Any, _args: Any, out: Tensor) -> Tensor:
        kept.append(out.detach().requires_grad_())
        return kept[-1]

    told = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}
    ids, blank = (pipe.tokenizer(words, **told).input_ids for words in (text, ""))
    with torch.no_grad():
        off = pipe.text_encoder(blank)[0].expand(SEEDS, -1, -1)
        eps_u = pipe.unet(noise, timestep, off).sample
    handle = pipe.text_encoder.get_input_embeddings().register_forward_hook(watch)
    try:
        states = pipe.text_encoder(ids)[0]
    finally:
        handle.remove()
    eps_c = pipe.unet(noise, timestep, states.expand(SEEDS, -1, -1)).sample
    gap = (eps_c - eps_u).flatten(1).norm(dim=1).mean()
    at_input, at_output = torch.autograd.grad(gap, [kept[0], states])
    return {"input": at_input[0].norm(dim=1), "output": at_output[0].norm(dim=1)}


def measured(
    model: Any, text: str, pool: Sequence[str], at: int
) -> tuple[list[float], Scores, float]:
    """Return the truth of each word, what each score says, and how far the truth's halves agree."""
    places = words_of(text)
    noise = initial_noise(generators_of([1000 * at + s for s in range(SEEDS)]), model.latent_shape)
    timestep = model.make_scheduler("auto", 50).timesteps[0]
    others = replaced(text, pool, at, MORE + UNSEEN)
    seen = [text for made in others for text in made[:MORE]]
    unseen = [text for made in others for text in made[MORE:]]
    final = finished(model, [text, *unseen], noise)
    drawn = (final[1:] - final[0]).norm(dim=2).unflatten(0, (len(places), UNSEEN)).mean(2)
    truth, one, other = (part.mean(1) for part in (drawn, drawn[:, ::2], drawn[:, 1::2]))
    eps = first(model, [text, *without(text), *seen], noise, timestep)
    moved = (eps[1:] - eps[0]).norm(dim=2).mean(1)
    change = moved[len(places) :].unflatten(0, (len(places), MORE))
    found = gradients(model.pipeline, text, noise, timestep)
    scores: Scores = {
        "left out": moved[: len(places)].tolist(),
        f"{SEEN} other words": change[:, :SEEN].mean(1).tolist(),
        f"{MORE} other words": change.mean(1).tolist(),
        **{name: score[1 : 1 + len(places)].tolist() for name, score in found.items()},
    }
    agreement = float(spearman(one.numpy(), other.numpy()))
    return truth.tolist(), scores, agreement


def told(values: Sequence[float]) -> str:
    """Say a mean over prompts with its interval."""
    known = np.array(values)
    rng = np.random.default_rng(0)
    means = known[rng.integers(0, len(known), (DRAWS, len(known)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{known.mean():.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    """Measure and print."""
    model: Any = load_model("embedded")
    prompts = chosen()
    texts = [prompt.text for prompt in embedded_prompts()]
    pool = sorted({place.text for text in texts for place in words_of(text)})
    found: dict[str, list[float]] = {}
    for at, prompt in enumerate(tqdm(prompts, unit="prompt", disable=not sys.stderr.isatty())):
        truth, scores, agreement = measured(model, prompt.text, pool, at)
        for name, score in scores.items():
            rho = spearman(np.array(truth), np.array(score))
            found.setdefault(name, []).append(float(rho))
        found.setdefault("truth, halves", []).append(agreement)
    rows = [
        [name, told(rhos), told(rhos[:PLANTED]), told(rhos[PLANTED:])]
        for name, rhos in found.items()
    ]
    every = f"all {len(prompts)}"
    print(table(["score", every, f"{PLANTED} planted", f"{CONTROLS} controls"], rows))


if __name__ == "__main__":
    main()
