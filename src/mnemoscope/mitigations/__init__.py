"""A mitigation is an intervention that keeps a model from reproducing its training data.

One file a method; each defines a concrete subclass of `mnemoscope.sampling.hooks.Intervention`.

Contents: `all_mitigations`, `get_mitigation`, `parse`.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from mnemoscope.errors import InputError, did_you_mean
from mnemoscope.registry import classes, named, pick
from mnemoscope.sampling.hooks import Intervention

_CALL = re.compile(r"\s*([\w:.-]+)\s*(?:\((.*)\))?\s*", re.DOTALL)


@cache
def _known() -> Mapping[str, type[Intervention]]:
    return named(((kind.name, kind) for kind in classes(__name__, Intervention)), "mitigation")


def all_mitigations() -> Mapping[str, type[Intervention]]:
    """Return every mitigation by name."""
    return _known()


def get_mitigation(name: str) -> type[Intervention]:
    """Return a mitigation by its name.

    Raises:
        InputError: If there is none of that name.
    """
    return pick(name, _known(), "mitigation")


def parse(text: str) -> Intervention:
    """Make an intervention of what a command line says: a name, and settings in brackets.

    Args:
        text: Such as "guidance_interval" or "guidance_interval(start=0.2,stop=0.9)".

    Raises:
        InputError: If the name or a setting is unknown, or a value does not fit.

    >>> parse("guidance_interval(start=0.25)").start
    0.25
    """
    found = _CALL.fullmatch(text)
    if found is None:
        raise InputError(
            f"intervention {text!r} given; expected a name with settings, such as "
            "'guidance_interval(start=0.2)'"
        )
    kind = get_mitigation(found[1])
    known = {setting.name: setting for setting in fields(kind)}
    given: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in (found[2] or "").split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise InputError(f"intervention {text!r}: expected setting=value, got {part!r}")
        if name not in known:
            raise InputError(f"intervention {text!r}: " + did_you_mean(name, known, "setting"))
        if name in given:
            raise InputError(f"intervention {text!r}: {name} is given twice")
        given[name] = _value(text, name, value, known[name].type)
    return kind(**given)


def _value(text: str, name: str, value: str, kind: Any) -> Any:
    if kind is bool and value in ("True", "False", "true", "false"):
        return value.lower() == "true"
    try:
        return value if kind is str else kind(value)
    except (TypeError, ValueError) as error:
        expected = getattr(kind, "__name__", str(kind))
        raise InputError(
            f"intervention {text!r}: {name} must be {expected}, got {value!r}"
        ) from error
