r"""An explanation says which tokens and which places of a prompt's samples are memorized.

Formulas, means over seeds::

    attribution_j       ||d ||gap|| / d e_j||, first call, e_j the embedding of token j
    attention_j         cross-attention to token j under the prompt, first and last call
    squared gap         sum over channels of gap² / sigma², last call
    curvature           relu( sum over channels of diag(d gap / dx) ), last call
    bright ending       cross-attention to the end token, last call

Attribution is taken at the first call, where the state is noise and depends on no guidance. The
released code goes on along a path whose guidance scale is 1 - g, because it swaps the branches.

Contents: `Token`, `Explanation`, `explain`.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

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
from mnemoscope.prompts import Prompt
from mnemoscope.runs import write_atomically


@dataclass(frozen=True)
class Token:
    """One position of the text encoder's window.

    Attributes:
        position: The position, from 0.
        text: The token; "" where the model does not tell.
        attribution: How strongly the gap norm hangs on its embedding.
        attention_first: Attention to it at the first call; NaN without cross-attention.
        attention_last: Attention to it at the last call.
    """

    position: int
    text: str
    attribution: float
    attention_first: float
    attention_last: float


@dataclass(frozen=True)
class Explanation:
    """Tokens and places.

    Attributes:
        prompt: The prompt.
        tokens: All positions up to the first end token.
        rest: Attribution of all positions behind it together, the padding.
        maps: Maps by name; one missing could not be made, `missing` says why.
        missing: Why a map is missing, by name.
        pictures: The samples, RGB from 0 to 1.
    """

    prompt: str
    tokens: tuple[Token, ...]
    rest: float
    maps: Mapping[str, Float[Tensor, "seed _ _"]]
    missing: Mapping[str, str]
    pictures: Float[Tensor, "seed 3 rows columns"]

    def image(self, name: str) -> Image.Image:
        """Draw a map over the samples: rows of sample, map, and sample where the map is bright.

        The brightness runs from a map's smallest to its largest value, over all seeds.
        """
        values = self.maps[name]
        low, high = values.min(), values.max()
        bright = ((values - low) / (high - low).clamp_min(1e-12)).float()[:, None]
        sized = F.interpolate(bright, self.pictures.shape[-2:], mode="bilinear")
        grey = sized.expand(-1, 3, -1, -1)
        rows = torch.cat([self.pictures, grey, self.pictures * (0.15 + 0.85 * sized)], dim=2)
        sheet = torch.cat(list(rows.clamp(0, 1)), dim=2)
        return Image.fromarray((sheet.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))

    def write(self, folder: str | Path) -> None:
        """Write tokens.csv and a PNG a map."""
        folder = Path(folder)
        text = io.StringIO()
        writer = csv.writer(text)
        names = [field.name for field in fields(Token)]
        writer.writerow(names)
        writer.writerows([getattr(token, name) for name in names] for token in self.tokens)
        write_atomically(folder / "tokens.csv", text.getvalue().encode("utf-8", "replace"))
        for name in self.maps:
            sink = io.BytesIO()
            self.image(name).save(sink, "PNG")
            write_atomically(folder / f"{name.replace(' ', '-')}.png", sink.getvalue())


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
    )


def _texts(model: Model, prompt: str, end: int) -> list[str]:
    tokenizer = getattr(getattr(model, "pipeline", None), "tokenizer", None)
    if tokenizer is None:
        return [""] * (end + 1)
    ids = tokenizer(prompt, truncation=True, max_length=model.window).input_ids
    texts = [str(piece) for piece in tokenizer.convert_ids_to_tokens(ids)]
    return [*texts, *[""] * (end + 1 - len(texts))]
