"""A capture is what a pipeline asks of its network, kept at the moment of asking.

The pipeline itself is run, unmodified, until it calls its network: by then it has tokenized,
encoded, drawn noise and set its sampler up. A forward hook keeps the arguments and ends the run by
an exception that no pipeline catches. Hooks, sampler and settings are put back whatever happens.

Contents: `Asked`, `capture`, `observe`, `lent`, `final_states`, `nested`.
"""

import copy
import functools
import inspect
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mnemoscope.errors import ModelError


class _Enough(BaseException):
    """Ends a run; no `except Exception` on the way stops it."""


@dataclass(frozen=True, eq=False)
class Asked:
    """One call of a network.

    Attributes:
        state: Name of the argument that is the state.
        arguments: Arguments by name, those inside mappings by dotted names.
    """

    state: str
    arguments: Mapping[str, Any]

    @property
    def x(self) -> Any:
        """Return the state."""
        return self.arguments[self.state]


@dataclass(frozen=True, eq=False)
class Turn:
    """What happened between two updates of a sampler.

    Attributes:
        asked: Calls of the network.
        answers: Its outputs.
        used: What the sampler was given.
        timestep: Timestep the sampler was told.
        x: State the sampler was given.
    """

    asked: list[Asked]
    answers: list[Tensor]
    used: Tensor
    timestep: Any
    x: Tensor


def flat(arguments: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield arguments by dotted names, those inside mappings one by one."""
    for name, value in arguments.items():
        if isinstance(value, Mapping) and value and all(isinstance(key, str) for key in value):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def nested(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments as a network takes them; the inverse of `flat`."""
    whole: dict[str, Any] = {}
    for name, value in arguments.items():
        *path, last = name.split(".")
        inside = whole
        for step in path:
            inside = inside.setdefault(step, {})
        inside[last] = value
    return whole


def inner(network: Any) -> Any:
    """Return the network inside a compiled one, or the network itself."""
    return getattr(network, "_orig_mod", network)


def _bound(network: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> Asked:
    signature = inspect.signature(type(inner(network)).forward)
    given = signature.bind(None, *args, **options).arguments
    names = list(signature.parameters)
    told = {name: value for name, value in given.items() if name != names[0]}
    return Asked(names[1], dict(flat(told)))


def first(out: Any) -> Any:
    """Return the prediction in what a network returned."""
    return out[0] if isinstance(out, (tuple, list)) else getattr(out, "sample", out)


@contextmanager
def quiet() -> Generator[None]:
    """Silence loading bars and advice of diffusers and transformers."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    before = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before[0])
        transformers_logging.set_verbosity(before[1])
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def lent(pipeline: Any, scheduler: Any = None) -> Generator[Any]:
    """Lend a pipeline a copy of a scheduler, and silence it.

    Args:
        pipeline: The pipeline; its own scheduler is put back afterwards.
        scheduler: What to copy; the pipeline's own where not given.

    Yields:
        The copy, which the pipeline uses meanwhile.
    """
    own, bars = pipeline.scheduler, dict(getattr(pipeline, "_progress_bar_config", {}))
    had = hasattr(pipeline, "_progress_bar_config")
    copied = copy.deepcopy(own if scheduler is None else scheduler)
    pipeline.scheduler = copied
    pipeline.set_progress_bar_config(disable=True)
    try:
        with quiet():
            yield copied
    finally:
        pipeline.scheduler = own
        if had:
            pipeline.set_progress_bar_config(**bars)
        else:
            del pipeline._progress_bar_config


def _run(pipeline: Any, options: Mapping[str, Any]) -> None:
    """Run a pipeline until somebody has seen enough.

    Raises:
        ModelError: If it fails before that.
    """
    try:
        with torch.no_grad():
            pipeline(**options)
    except _Enough:
        pass
    except Exception as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ModelError(
            f"{type(pipeline).__name__} failed before it called its network: {told}; it was given "
            f"{', '.join(sorted(options))} and may need more than that"
        ) from error


def capture(
    pipeline: Any,
    network: Any,
    options: Mapping[str, Any],
    scheduler: Any = None,
    *,
    calls: int = 1,
) -> tuple[list[Asked], Any]:
    """Run a pipeline until it calls its network, and keep what it asks.

    Args:
        pipeline: The pipeline.
        network: Its network.
        options: Arguments of its call.
        scheduler: Scheduler to lend it; its own where not given.
        calls: Which call of the network ends the run; it is not evaluated, those before are.

    Returns:
        The calls, and the scheduler as the pipeline has set it up.

    Raises:
        ModelError: If the pipeline fails, or ends before it has called its network so often.
    """
    seen: list[Asked] = []

    def enter(module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        seen.append(_bound(module, args, given))
        if len(seen) == calls:
            raise _Enough

    with lent(pipeline, scheduler) as copied:
        # Before any other hook, so that what is kept is what the pipeline said.
        handle = network.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
        try:
            _run(pipeline, options)
        finally:
            handle.remove()
    if len(seen) < calls:
        raise ModelError(
            f"{type(pipeline).__name__} called its {type(network).__name__} {len(seen)} times; "
            f"expected at least {calls}"
        )
    return seen, copied


def observe(pipeline: Any, network: Any, options: Mapping[str, Any], turns: int = 2) -> list[Turn]:
    """Run a pipeline for a few updates and keep what it asks, is answered and makes of it.

    Args:
        pipeline: The pipeline.
        network: Its network.
        options: Arguments of its call.
        turns: Updates to watch.

    Returns:
        What happened before each update.

    Raises:
        ModelError: If the pipeline fails, or makes fewer updates.
    """
    asked: list[Asked] = []
    answers: list[Tensor] = []
    seen: list[Turn] = []

    def answered(module: Any, args: tuple[Any, ...], given: dict[str, Any], out: Any) -> None:
        asked.append(_bound(module, args, given))
        answers.append(first(out))

    with lent(pipeline) as copied:
        step = copied.step

        # Pipelines look at the signature to see what a scheduler takes.
        @functools.wraps(step)
        def shown(model_output: Any, timestep: Any, sample: Any, *args: Any, **given: Any) -> Any:
            seen.append(Turn([*asked], [*answers], model_output, timestep, sample))
            asked.clear()
            answers.clear()
            if len(seen) == turns:
                raise _Enough
            return step(model_output, timestep, sample, *args, **given)

        copied.step = shown
        handle = network.register_forward_hook(answered, with_kwargs=True)
        try:
            _run(pipeline, options)
        finally:
            handle.remove()
    if len(seen) < turns:
        raise ModelError(
            f"{type(pipeline).__name__} made {len(seen)} updates of its scheduler; "
            f"expected at least {turns}"
        )
    return seen


def final_states(
    pipeline: Any,
    scheduler: Any,
    options: Mapping[str, Any],
    generators: list[torch.Generator],
) -> Tensor:
    """Run an unmodified pipeline to its last update and return the state that arrives at.

    Args:
        pipeline: The pipeline.
        scheduler: Scheduler to lend it.
        options: Arguments of its call.
        generators: Generators of its samples. A pipeline that tells its scheduler of none would
            draw injected noise from the global one; it is drawn from these instead.

    Returns:
        The states, as many rows as the pipeline keeps.
    """
    last: list[Tensor] = []
    with lent(pipeline, scheduler) as copied:
        step = copied.step
        takes = "generator" in inspect.signature(step).parameters

        @functools.wraps(step)
        def shown(model_output: Any, timestep: Any, sample: Any, *args: Any, **given: Any) -> Any:
            if takes and not args and given.get("generator") is None:
                # A pipeline that carries a copy of each sample draws for the copies as well.
                spare = [torch.Generator() for _ in range(len(sample) - len(generators))]
                given["generator"] = [*generators, *spare]
            out = step(model_output, timestep, sample, *args, **given)
            last[:] = [first(out) if isinstance(out, tuple) else out.prev_sample]
            return out

        copied.step = shown
        with torch.no_grad():
            pipeline(**options)
    return last[0]
