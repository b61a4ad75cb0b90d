"""The registry finds extensions: the files of a package, and what other distributions add to it.

A package `mnemoscope.detectors` takes every module in it and every module that an installed
distribution names under the entry point group `mnemoscope.detectors`. Nothing else is edited to add
one.

Contents: `modules`, `classes`, `named`, `pick`.
"""

from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from inspect import getmembers, isabstract, isclass
from pkgutil import iter_modules
from types import ModuleType
from typing import TypeVar

from mnemoscope.errors import InputError, did_you_mean

T = TypeVar("T")


def modules(package: str) -> tuple[ModuleType, ...]:
    """Return the modules of a package of extensions, those of other distributions last.

    Args:
        package: Its dotted name, which is the entry point group as well.

    Raises:
        InputError: If an entry point cannot be imported.
    """
    inside = import_module(package)
    found = [
        import_module(f"{package}.{module.name}")
        for module in iter_modules(inside.__path__)
        if module.name != "base"
    ]
    for point in sorted(entry_points(group=package), key=lambda point: point.name):
        try:
            added = point.load()
        except (ImportError, AttributeError) as error:
            raise InputError(
                f"extension {point.name!r} of {package} cannot be imported ({error}); "
                f"repair or remove the distribution that declares {point.value!r}"
            ) from error
        if not isinstance(added, ModuleType):
            raise InputError(
                f"extension {point.name!r} of {package} names {point.value!r}, which is no module"
            )
        found.append(added)
    return tuple(found)


def classes(package: str, base: type[T]) -> tuple[type[T], ...]:
    """Return the concrete subclasses of a base that the modules of a package define."""
    return tuple(
        kind
        for module in modules(package)
        for _, kind in getmembers(module, isclass)
        if issubclass(kind, base) and kind.__module__ == module.__name__ and not isabstract(kind)
    )


def named(items: Iterable[tuple[str, T]], what: str) -> Mapping[str, T]:
    """Return extensions by name, sorted.

    Raises:
        InputError: If two have the same name.
    """
    found: dict[str, T] = {}
    for name, item in items:
        if name in found:
            raise InputError(f"{what} {name!r} is defined twice")
        found[name] = item
    return {name: found[name] for name in sorted(found)}


def pick(name: str, known: Mapping[str, T], what: str) -> T:
    """Return an extension by name.

    Raises:
        InputError: If there is none of that name; the message suggests the nearest.
    """
    if name not in known:
        raise InputError(did_you_mean(name, known, what))
    return known[name]
