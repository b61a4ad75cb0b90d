"""What the options of several flows share: reading them from text, and naming a model and a list.

Contents: `values_of`, `brought`, `given`, `resolved`, `recipe_of`, `similarity_of`, `listed`,
`loaded`, `name_of`, `opened`, `as_model`, and `Named`, a model for another process.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mnemoscope.data.prompts import SUFFIXES, Prompt, PromptList, named, read_prompts
from mnemoscope.errors import InputError, ModelError
from mnemoscope.lab.prompts import embedded_prompts
from mnemoscope.mitigations import parse
from mnemoscope.models.base import Model
from mnemoscope.models.load import load_model
from mnemoscope.models.source import Source
from mnemoscope.runs.executors import Execution, executor_of
from mnemoscope.sampling.hooks import Intervention
from mnemoscope.sampling.recipe import Recipe
from mnemoscope.similarity import Similarity, get_similarity

PATHS = (
    "prompts", "dataset", "held_out", "out", "sscd", "lora", "vae", "save", "ordinary", "study",
    "clip",
)  # fmt: skip
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
        return _numbers(of.name, value)
    if of.type == tuple[int, ...]:
        return _whole(of.name, value)
    return value


def _whole(name: str, text: str) -> tuple[int, ...]:
    numbers = _numbers(name, text)
    if any(number != int(number) for number in numbers):
        raise InputError(f"{name} {text!r} given; expected whole numbers separated by commas")
    return tuple(map(int, numbers))


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, parts(text)))
    except ValueError as error:
        raise InputError(f"{name} {text!r} given; expected numbers such as 1,7.5") from error


def parts(text: str) -> tuple[str, ...]:
    """Split a text at its commas, those in brackets aside.

    >>> parts("l2, tiled_l2")
    ('l2', 'tiled_l2')
    >>> parts("guard(strength=2,factor=0.3), magnitude_aware")
    ('guard(strength=2,factor=0.3)', 'magnitude_aware')
    """
    return tuple(part.strip() for part in _COMMA.split(text) if part.strip())


_COMMA = re.compile(r",(?![^()]*\))")


def brought(options: Any) -> None:
    """Bring the values of a frozen dataclass of options to their types, and refuse what is none.

    Raises:
        InputError: If a number is too small, several values repeat one or are none, the model is
            no name, or there is no such executor.
    """
    for f in fields(options):
        value = getattr(options, f.name)
        if f.name == "model" and isinstance(value, Path):
            object.__setattr__(options, f.name, str(value))
        elif f.name == "model" and not isinstance(value, str):
            raise InputError(
                f"a {type(value).__name__} was given as the model's name; options name a model, "
                "and what is loaded already is handed over beside them: "
                "run(Study(...), model=load_model(pipe)), detect(pipe, ...), explain(pipe, ...)"
            )
        if f.name in PATHS and value is not None:
            object.__setattr__(options, f.name, str(value))
        if f.type == Intervention | None and isinstance(value, str):
            object.__setattr__(options, f.name, parse(value))
        if f.type == tuple[float, ...] and isinstance(value, str):
            object.__setattr__(options, f.name, _numbers(f.name, value))
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
    if isinstance(options, Execution):
        executor_of(options)


def of_one_kind(options: Any) -> None:
    """Refuse prompts that are given in two ways, and blank ones.

    Raises:
        InputError: If they are.
    """
    rivals = [f"--{name}" for name in ("prompts", "ids") if hasattr(options, name)]
    if options.prompt and any(getattr(options, name[2:]) for name in rivals):
        raise InputError(f"--prompt was given with {' or '.join(rivals)}; give one or the other")
    if any(not text.strip() for text in options.prompt):
        raise InputError("a blank --prompt was given; expected text")


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


def similarity_of(name: str, sscd: str | Path | None) -> Similarity:
    """Return a measure by its name; the file is that of SSCD's network, for those that have it."""
    return get_similarity(name, weights=sscd if name.startswith("sscd") else None)


def loaded(options: Source) -> Model:
    """Load the model that options name."""
    return load_model(Source(**{f.name: getattr(options, f.name) for f in fields(Source)}))


def name_of(model: Any) -> str:
    """Return what a model is called: its name, or the kind of a pipeline object."""
    if isinstance(model, str | Path):
        return str(model)
    if isinstance(model, Source):
        return model.model
    return str(getattr(model, "name", type(model).__name__))


def opened(model: Any, options: Source) -> Model:
    """Return a model: loaded by its name as options say, or made of what is loaded already.

    Raises:
        ModelError: If there is no such model, or options ask something of one that is loaded.
    """
    if isinstance(model, str | Path):
        return loaded(options)
    if isinstance(model, Source):
        return load_model(model)
    held = {f.name for f in fields(Source)} - {"model"}
    if asked := sorted(held & given(options).keys()):
        raise ModelError(
            f"{name_of(model)!r} is loaded already; give {', '.join(asked)} to load_model"
        )
    return as_model(model)


@dataclass(frozen=True)
class Named:
    """A model for another process: where it is loaded from, and which weights are expected.

    Attributes:
        source: Where it comes from.
        digest: SHA-256 of its weights.
    """

    source: Source
    digest: str

    @classmethod
    def of(cls, model: Model) -> "Named":
        """Name a model.

        Raises:
            ModelError: If it was made of a live object.
        """
        if model.source is None:
            raise ModelError(
                f"{name_of(model)!r} was made of a live object, and another process has nothing "
                "to load it from; give the model by its name, or --executor inline"
            )
        return cls(model.source, model.digest)

    def load(self) -> Model:
        """Load the model.

        Raises:
            ModelError: If it is not there, or is another.
        """
        model = load_model(self.source)
        if model.digest != self.digest:
            raise ModelError(
                f"{self.source.model!r} has other weights in a worker's process than in its "
                "driver's; give all machines the same files"
            )
        return model


def as_model(model: Any) -> Model:
    """Return what is loaded already as a model."""
    return model if isinstance(model, Model) else load_model(model)


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
        path = Path(prompts)
        if not path.exists() and path.suffix.lower() not in SUFFIXES:
            raise InputError(
                f"no prompt file or folder {str(prompts)!r}; give a text itself with --prompt, and "
                "in Python as a list"
            )
        return read_prompts(path)
    if prompts is not None:
        return PromptList.of(named(prompts))
    if model.startswith("embedded"):
        return PromptList.of(embedded_prompts())
    meant = get_close_matches(model, ("embedded", "embedded:base"), n=1)
    hint = f" Did you mean {meant[0]!r}?" if meant else ""
    raise InputError(
        f"model {model!r} brings no prompts of its own; give a file with --prompts.{hint}"
    )
