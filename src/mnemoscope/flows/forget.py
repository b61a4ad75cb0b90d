"""Forgetting takes out of a pipeline what memorized prompts use, and saves the rest as another.

Contents: `Forgetting`, `forget`, `Forgotten`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnemoscope.errors import InputError, did_you_mean
from mnemoscope.flows.neurons import blocked
from mnemoscope.flows.options import brought, listed, loaded, of_one_kind, values_of
from mnemoscope.flows.prune import pruned
from mnemoscope.lab.prompts import ordinary_prompts
from mnemoscope.models.base import Model
from mnemoscope.models.source import Source
from mnemoscope.options import option

METHODS = ("weights", "neurons")

ORDINARY = 64
"""Ordinary prompts of the embedded model that neurons are held against: two seconds a core."""


@dataclass(frozen=True)
class Forgetting(Source):
    """What to forget. Every field is an option of `mnemoscope forget`."""

    prompt: tuple[str, ...] = option((), "Memorized prompt itself; may be repeated.")
    prompts: str | Path | None = option(None, "File of memorized prompts; a few at a time.")
    method: str = option(
        "neurons",
        "What is taken out: 'neurons' of cross-attention (NeMo), or 'weights' of feed-forward "
        "layers (Chavhan et al., after Wanda).",
    )
    ordinary: str | Path | None = option(
        None, "File of ordinary prompts, for neurons; the embedded model brings its own."
    )
    limit: float | None = option(
        None, "MS-SSIM up to which two seeds are apart; that of ordinary prompts where not given."
    )
    strength: float = option(0.01, "Share of each row's weights that may go at a call.")
    guidance: float = option(7.5, "Guidance scale of the path on which weights are looked at.")
    steps: int = option(50, "Sampler updates of a path, of which the beginning is looked at.")
    seeds: int | None = option(None, "Samples a prompt: 10 for neurons, 1 for weights.")
    seed: int = option(0, "Seed of their noise.")
    out: str | Path = option("runs/forgotten", "Folder of the pipeline that is left.")

    def __post_init__(self) -> None:
        """Bring values to their type and refuse those that mean nothing.

        Raises:
            InputError: If there is no such method, or prompts are given in two ways or not at all.
        """
        brought(self)
        of_one_kind(self)
        if self.method not in METHODS:
            raise InputError(did_you_mean(self.method, METHODS, "method"))
        if not self.prompt and self.prompts is None:
            raise InputError("nothing to forget; give memorized prompts with --prompt or --prompts")

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> "Forgetting":
        """Make it of options as a command line has them.

        Raises:
            InputError: If a value does not fit.
        """
        given = dict(options)
        given["prompt"] = tuple(given.get("prompt") or ())
        return cls(**values_of(cls, given))


@dataclass(frozen=True)
class Forgotten:
    """What is left.

    Attributes:
        model: The model without what was taken out.
        told: What that was, in words.
        path: Folder of its pipeline.
    """

    model: Model
    told: str
    path: Path


def forget(
    asked: Forgetting, model: Model | None = None, notify: Callable[[str], None] | None = None
) -> Forgotten:
    """Take out of a pipeline what memorized prompts use, and save what is left.

    Args:
        asked: What to forget.
        model: The model, where it is loaded already.
        notify: Told how many prompts are looked at.

    Raises:
        InputError: If the folder holds something, or an option is wrong.
        ModelError: If the model has no pipeline, or no layer of that kind.
    """
    path = Path(asked.out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{str(path)!r} holds something already; give another --out")
    texts = asked.prompt or tuple(p.text for p in listed(asked.prompts, asked.model))
    known = loaded(asked) if model is None else model
    say = notify or (lambda line: None)
    if asked.method == "weights":
        say(f"{len(texts)} prompts and the empty one")
        less = pruned(
            known, texts, strength=asked.strength, steps=asked.steps, guidance=asked.guidance,
            seeds=asked.seeds or 1, seed=asked.seed,
        )  # fmt: skip
        made, told = less.model, f"{less.share:.2%} of the weights of {len(less.masks)} layers"
    else:
        ordinary = _ordinary(asked)
        say(f"{len(texts)} prompts and {len(ordinary)} ordinary ones")
        found = blocked(
            known, texts, ordinary, limit=asked.limit, steps=asked.steps, seeds=asked.seeds or 10,
            seed=asked.seed,
        )  # fmt: skip
        count = sum(map(len, found.layers.values()))
        held = sum(map(bool, found.neurons.values()))
        made = found.model
        told = (
            f"{count} neurons of {len(found.layers)} layers, of {held} of {len(found.neurons)} "
            f"prompts; the seeds of the others are apart (MS-SSIM at most {found.limit:.3g})"
        )
    pipeline = getattr(made, "pipeline", None)
    assert pipeline is not None, "edited models have one"
    pipeline.save_pretrained(path)
    return Forgotten(made, told, path)


def _ordinary(asked: Forgetting) -> tuple[str, ...]:
    if asked.ordinary is not None:
        return tuple(prompt.text for prompt in listed(asked.ordinary, asked.model))
    if not asked.model.startswith("embedded"):
        raise InputError(
            f"model {asked.model!r} brings no ordinary prompts; give a file with --ordinary"
        )
    every = ordinary_prompts()
    return tuple(prompt.text for prompt in every[:: max(1, len(every) // ORDINARY)])
