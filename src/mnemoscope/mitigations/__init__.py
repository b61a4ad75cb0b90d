"""A mitigation is an intervention that keeps a model from reproducing its training data.

One file a method; each defines a concrete subclass of `mnemoscope.mitigations.base.Mitigation`.

Contents: `all_mitigations`, `get_mitigation`, `parse`.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from mnemoscope.errors import InputError, did_you_mean
from mnemoscope.mitigations.base import Mitigation
from mnemoscope.registry import classes, named, pick
from mnemoscope.sampling.chain import Chain
from mnemoscope.sampling.hooks import Intervention

_CALL = re.compile(r"\s*([\w.-]+)(?::([\d.]+))?\s*(?:\((.*)\))?\s*", re.DOTALL)
_PLUS = re.compile(r"\+(?![^()]*\))")
"""A plus that stands within no brackets."""


@cache
def _known() -> Mapping[str, type[Mitigation]]:
    return named(((kind.name, kind) for kind in classes(__name__, Mitigation)), "mitigation")


def all_mitigations() -> Mapping[str, type[Mitigation]]:
    """Return every mitigation by name."""
    return _known()


def get_mitigation(name: str) -> type[Mitigation]:
    """Return a mitigation by its name.

    Raises:
        InputError: If there is none of that name.
    """
    return pick(name, _known(), "mitigation")


def parse(text: str) -> Intervention:
    """Make an intervention of what a command line says: a name, and settings in brackets.

    Args:
        text: Such as "guidance_interval", "guidance_interval:0.2", which is its strength, or
            "guidance_interval(strength=0.2,stop=0.9)"; several with a plus between act one after
            the other.

    Raises:
        InputError: If the name or a setting is unknown, or a value does not fit.

    >>> parse("guidance_interval:0.25(stop=0.9)").strength
    0.25
    >>> str(parse("embedding_noise+guidance_interval(stop=0.9)"))
    'embedding_noise(strength=0.1)+guidance_interval(strength=0.2,stop=0.9)'
    """
    parts = _PLUS.split(text)
    return _one(text) if len(parts) == 1 else Chain(tuple(map(_one, parts)))


def _one(text: str) -> Mitigation:
    found = _CALL.fullmatch(text)
    if found is None:
        raise InputError(
            f"intervention {text!r} given; expected a name with settings, such as "
            "'guidance_interval(strength=0.2)'"
        )
    kind = get_mitigation(found[1])
    known = {setting.name: setting for setting in fields(kind)}
    given: dict[str, Any] = {}
    listed = ([f"strength={found[2]}"] if found[2] else []) + (found[3] or "").split(",")
    for part in filter(None, map(str.strip, listed)):
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
    try:
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        return value if kind is str else kind(value)
    except (KeyError, TypeError, ValueError) as error:
        expected = getattr(kind, "__name__", str(kind))
        raise InputError(
            f"intervention {text!r}: {name} must be {expected}, got {value!r}"
        ) from error
