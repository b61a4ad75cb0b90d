r"""An explanation says which tokens and which places of a prompt's samples are memorized.

Formulas, means over seeds::

    attribution_j       ||d ||gap|| / d e_j||, first call, e_j the embedding of token j
    attention_j         cross-attention to token j under the prompt, first and last call
    squared gap         sum over channels of gap² / sigma², last call
    curvature           relu( sum over channels of diag(d gap / dx) ), last call
    bright ending       cross-attention to the end token, last call

Attribution is taken at the first call, where the state is noise and depends on no guidance. The
released code goes on along a path whose guidance scale is 1 - g, because it swaps the branches.

Contents: `Explaining`, `explain`; what it returns is an `Explanation`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mnemoscope.core.explanation import Explanation, Token
from mnemoscope.data.prompts import Prompt, named
from mnemoscope.errors import InputError, ModelError, did_you_mean
from mnemoscope.evidence import Absent, Bank
from mnemoscope.evidence.gather import gather, sit
from mnemoscope.evidence.pieces.curvature import Curvature
from mnemoscope.evidence.pieces.end_attention import EndAttention
from mnemoscope.evidence.pieces.maps import Maps
from mnemoscope.evidence.pieces.pictures import Pictures
from mnemoscope.evidence.pieces.token_attention import TokenAttention
from mnemoscope.evidence.pieces.token_gradient import TokenGradient
from mnemoscope.flows.options import (
    brought,
    listed,
    name_of,
    of_one_kind,
    opened,
    recipe_of,
    values_of,
)
from mnemoscope.models.source import Source
from mnemoscope.options import option
from mnemoscope.sampling.recipe import Recipe


@dataclass(frozen=True)
class Explaining(Recipe, Source):
    """What to explain. Every field is an option of `mnemoscope explain`."""

    noise: str = option("shared", "Initial noise, as for detect.")
    prompt: tuple[str, ...] = option((), "Prompt; give it several times for several.")
    prompts: str | Path | None = option(None, "Prompt file; the embedded model brings its own.")
    ids: tuple[str, ...] = option((), "Which of the list's prompts, prompt_id, comma-separated.")
    out: str | Path = option("runs/explained", "Folder of the results.")
    seeds: int = option(4, "Samples a prompt.")
    probes: int = option(16, "Random vectors of the curvature's estimate.")
    batch: int | None = option(None, "Samples a batch; chosen by size where not given.")

    def __post_init__(self) -> None:
        """Bring values to their type and refuse those that mean nothing.

        Raises:
            InputError: If a value is out of range, or it is not clear which prompts are meant.
        """
        super().__post_init__()
        if isinstance(self.prompt, str):
            object.__setattr__(self, "prompt", (self.prompt,))
        brought(self)
        if self.probes < 1:
            raise InputError(f"probes {self.probes} given; expected at least 1")
        of_one_kind(self)
        if Path(self.out).is_file():
            raise InputError(f"{str(self.out)!r} is a file; give a folder with --out")

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> "Explaining":
        """Make it of options in which several values are one text with commas.

        Raises:
            InputError: If a value does not fit.
        """
        given = dict(options)
        given["prompt"] = tuple(given.get("prompt") or ())
        return cls(**values_of(cls, given))

    def chosen(self) -> list[Prompt]:
        """Return the prompts to explain: those given, or those of a list that are named.

        Raises:
            InputError: If none was named, or one is not in the list.
        """
        if self.prompt:
            return list(named(self.prompt))
        if not self.ids:
            raise InputError(
                "no prompt was named; give --prompt TEXT, or --ids of a list's prompts"
            )
        known = {one.prompt_id: one for one in listed(self.prompts, self.model)}
        for name in self.ids:
            if name not in known:
                raise InputError(did_you_mean(name, known, "prompt"))
        return [known[name] for name in self.ids]


def explain(
    model: Any,
    prompt: str | Prompt,
    **options: Any,
) -> Explanation:
    """Explain one prompt.

    Args:
        model: The model, its name, or a pipeline object.
        prompt: The prompt.
        **options: Fields of `Explaining`: seeds, guidance, steps, scheduler, seed, probes ...

    Returns:
        Tokens and maps.

    Raises:
        ModelError: If the model is not guided by token embeddings.
    """
    asked = Explaining(model=name_of(model), **options)
    known = opened(model, asked)
    whole = named([prompt])[0]
    bank = Bank(known, recipe_of(asked, known), asked.seeds, asked.batch)
    attention, curvature = TokenAttention(None), Curvature(asked.probes)
    gradient = TokenGradient()
    pieces = (gradient, Maps("last"), curvature, EndAttention(), attention, Pictures("final"))
    found = gather(sit(bank, [whole], [0], pieces), pieces).pieces
    if isinstance(found[gradient], Absent):
        raise ModelError(
            f"{known.name!r} is not guided by token embeddings ({found[gradient].reason}); token "
            "attribution needs a model with cross-attention to text and an unconditional branch"
        )
    attribution = found[gradient][0].mean(dim=0)
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
        raise ModelError(f"{known.name!r}: {pictures.reason}")
    seen = found[attention]
    texts = known.token_texts(whole.text)
    end = min(known.token_counts([whole.text])[0] + 1, known.window - 1)
    texts = [*texts, *[""] * (end + 1 - len(texts))]
    nothing = torch.full((known.window,), torch.nan)
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
        known.window if known.truncated([whole.text])[0] else None,
    )
