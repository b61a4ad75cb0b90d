r"""An explanation says which tokens and which places of a prompt's samples are memorized.

Formulas, means over seeds::

    attribution_j       ||d ||gap|| / d e_j||, first call, e_j the embedding of token j
    attention_j         cross-attention to token j under the prompt, first and last call
    squared gap         sum over channels of gap² / sigma², last call
    curvature           relu( sum over channels of diag(d gap / dx) ), last call
    bright ending       cross-attention to the end token, last call

Attribution is taken at the first call, where the state is noise and depends on no guidance. The
released code goes on along a path whose guidance scale is 1 - g, because it swaps the branches.

Contents: `explain`; what it returns is `mnemoscope.reporting.explanation.Explanation`.
"""

from typing import Any

import torch

from mnemoscope.collect import Collector
from mnemoscope.detectors.base import (
    Absent,
    Curvature,
    EndAttention,
    Maps,
    Pictures,
    TokenAttention,
)
from mnemoscope.errors import ModelError
from mnemoscope.models.base import Model
from mnemoscope.data.prompts import Prompt
from mnemoscope.reporting.explanation import Explanation, Token


def explain(
    model: Model,
    prompt: str | Prompt,
    *,
    seeds: int = 4,
    guidance: float = 7.5,
    steps: int = 50,
    scheduler: str = "ddim",
    seed: int = 0,
    probes: int = 16,
) -> Explanation:
    """Explain one prompt.

    Args:
        model: The model.
        prompt: The prompt.
        seeds: Samples.
        guidance: Guidance scale.
        steps: Sampler updates.
        scheduler: Sampler.
        seed: Seed that all noise derives from.
        probes: Random vectors of the curvature's estimate.

    Returns:
        Tokens and maps.

    Raises:
        ModelError: If the model is not guided by token embeddings.
    """
    whole = prompt if isinstance(prompt, Prompt) else Prompt("prompt", prompt)
    attention, curvature = TokenAttention(None), Curvature(probes)
    pieces = (Maps("last"), curvature, EndAttention(), attention, Pictures("final"))
    collector = Collector(
        model,
        [whole],
        pieces,
        seeds=seeds,
        guidance=guidance,
        steps=steps,
        scheduler=scheduler,
        seed=seed,
    )
    attribution = collector.token_gradients([whole])[0].mean(dim=0)
    found = collector.gather([whole]).pieces
    last = found[Maps("last")]
    made: dict[str, Any] = {
        "squared gap": last.gap[0].double().square().sum(dim=1) / last.level.sigma**2,
        "curvature": found[curvature],
        "bright ending": found[EndAttention()],
    }
    if not isinstance(made["curvature"], Absent):
        made["curvature"] = made["curvature"][0].double().sum(dim=1).clamp_min(0)
    if not isinstance(made["bright ending"], Absent):
        made["bright ending"] = made["bright ending"][0]
    pictures = found[Pictures("final")]
    if isinstance(pictures, Absent):
        raise ModelError(f"{model.name!r}: {pictures.reason}")
    seen = found[attention]
    end = min(model.token_counts([whole.text])[0] + 1, model.window - 1)
    texts = _texts(model, whole.text, end)
    nothing = torch.full((model.window,), torch.nan)
    per_call = None if isinstance(seen, Absent) else seen[0].mean(dim=(0, 2))
    first, final = (nothing, nothing) if per_call is None else (per_call[0], per_call[-1])
    tokens = tuple(
        Token(at, texts[at], float(attribution[at]), float(first[at]), float(final[at]))
        for at in range(end + 1)
    )
    return Explanation(
        whole.text,
        tokens,
        float(attribution[end + 1 :].sum()),
        {name: value for name, value in made.items() if not isinstance(value, Absent)},
        {name: value.reason for name, value in made.items() if isinstance(value, Absent)},
        pictures[0],
        model.window if collector.truncated[0] else None,
    )


def _texts(model: Model, prompt: str, end: int) -> list[str]:
    tokenizer = getattr(getattr(model, "pipeline", None), "tokenizer", None)
    if tokenizer is None:
        return [""] * (end + 1)
    ids = tokenizer(prompt, truncation=True, max_length=model.window).input_ids
    texts = [str(tokenizer.decode([piece])).strip() for piece in ids]
    return [*texts, *[""] * (end + 1 - len(texts))]
