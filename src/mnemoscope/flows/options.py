"""What the options of several flows share: reading them from text, and naming a model and a list.

Contents: `values_of`, `given`, `resolved`, `recipe_of`, `listed`, `loaded`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mnemoscope.data.prompts import Prompt, PromptList, read_prompts
from mnemoscope.errors import InputError
from mnemoscope.lab.prompts import embedded_prompts
from mnemoscope.mitigations import parse
from mnemoscope.models.base import Model
from mnemoscope.models.load import load_model
from mnemoscope.models.source import Source
from mnemoscope.sampling.hooks import Intervention
from mnemoscope.sampling.recipe import Recipe

PATHS = ("prompts", "out", "sscd", "lora", "vae", "save")
"""Options that name a file or folder."""


def values_of(kind: type[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Bring options that are text to the types of a dataclass's fields.

    Several values are one text with commas; an intervention is its name with settings.

    Raises:
        InputError: If a value does not fit.
    """
    known = {f.name: f for f in fields(kind)}
    return {name: _value(known[name], value) for name, value in options.items()}


def _value(of: Field[Any], value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str):
        return value
    if of.type == Intervention | None:
        return parse(value)
    if of.type == tuple[str, ...]:
        return parts(value)
    if of.type == tuple[float, ...]:
        try:
            return tuple(map(float, parts(value)))
        except ValueError as error:
            raise InputError(
                f"{of.name} {value!r} given; expected numbers such as 1,7.5"
            ) from error
    return value


def parts(text: str) -> tuple[str, ...]:
    """Split a text at its commas.

    >>> parts("l2, tiled_l2")
    ('l2', 'tiled_l2')
    """
    return tuple(part.strip() for part in text.split(",") if part.strip())


def brought(options: Any) -> None:
    """Bring the values of a frozen dataclass of options to their types, and refuse what is none.

    Raises:
        InputError: If a number is too small, or several values repeat one or are none.
    """
    for f in fields(options):
        value = getattr(options, f.name)
        if f.name in PATHS and value is not None:
            object.__setattr__(options, f.name, str(value))
        if f.type == Intervention | None and isinstance(value, str):
            object.__setattr__(options, f.name, parse(value))
        if f.type == tuple[float, ...] and isinstance(value, int | float):
            object.__setattr__(options, f.name, (float(value),))
        if f.type == tuple[str, ...] and isinstance(value, str):
            object.__setattr__(options, f.name, parts(value))
        many = getattr(options, f.name)
        if f.type in (tuple[float, ...], tuple[str, ...]):
            object.__setattr__(options, f.name, tuple(many))
            if (not many and f.default) or len(set(many)) < len(many):
                raise InputError(f"{f.name} {many!r} is empty or repeats a value")
    for name in ("seeds", "batch", "subset"):
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise InputError(f"{name} {value} given; expected at least 1")


def plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, tuple):
        return [plain(part) for part in value]
    return str(value) if isinstance(value, Intervention | Path) else value


def resolved(options: Any) -> dict[str, Any]:
    """Return every option with its value, as JSON has it."""
    return {f.name: plain(getattr(options, f.name)) for f in fields(options)}


def given(options: Any) -> dict[str, Any]:
    """Return the options that differ from their defaults, as JSON has them."""
    return {
        f.name: plain(getattr(options, f.name))
        for f in fields(options)
        if f.default is not MISSING and getattr(options, f.name) != f.default
    }


def recipe_of(options: Any, model: Model, **changes: Any) -> Recipe:
    """Return the recipe that options describe, its sampler named."""
    held = {f.name: getattr(options, f.name) for f in fields(Recipe)} | changes
    recipe = Recipe(**held)
    return replace(recipe, scheduler=model.scheduler) if recipe.scheduler == "auto" else recipe


def loaded(options: Source) -> Model:
    """Load the model that options name."""
    return load_model(Source(**{f.name: getattr(options, f.name) for f in fields(Source)}))


def listed(
    prompts: str | Path | PromptList | Sequence[str | Prompt] | None, model: str
) -> PromptList:
    """Return a list of prompts: a file's, one in memory, or that of the embedded model.

    Args:
        prompts: What was given; None for the prompts that the model brings.
        model: Name of the model.

    Raises:
        InputError: If the model brings none, or there is no prompt.
    """
    if isinstance(prompts, PromptList):
        return prompts
    if isinstance(prompts, str | Path):
        return read_prompts(prompts)
    if prompts is not None:
        return PromptList.of(_named(prompts))
    if model.startswith("embedded"):
        return PromptList.of(embedded_prompts())
    meant = get_close_matches(model, ("embedded", "embedded:base"), n=1)
    hint = f" Did you mean {meant[0]!r}?" if meant else ""
    raise InputError(
        f"model {model!r} brings no prompts of its own; give a file with --prompts.{hint}"
    )


def _named(prompts: Iterable[str | Prompt]) -> tuple[Prompt, ...]:
    """Return prompts with names; a text is named by its place."""
    found = tuple(
        prompt if isinstance(prompt, Prompt) else Prompt(f"p{at:05d}", prompt)
        for at, prompt in enumerate(prompts)
    )
    if not found:
        raise InputError("no prompt given; expected at least one")
    return found
