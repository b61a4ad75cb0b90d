"""The errors mnemoscope raises on purpose: one root, one leaf a kind of mistake.

Every message says what was given, what was expected, and what to do next.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class MnemoscopeError(Exception):
    """Root of every error raised on purpose; the command line prints it and exits with 2."""


class InputError(MnemoscopeError, ValueError):
    """A prompt file, an image or an option cannot be used as it is."""


class ModelError(MnemoscopeError, ValueError):
    """A model cannot be loaded, or cannot do what was asked of it."""


class NeedsError(MnemoscopeError, LookupError):
    """An analysis or detector asked for evidence it did not declare or a run does not hold."""


class RunError(MnemoscopeError, RuntimeError):
    """A run folder is damaged, belongs to another study, or cannot be written."""


class OtherRunError(RunError):
    """A run folder holds another run than the one that is to go on in it."""


class MemorizingError(MnemoscopeError, RuntimeError):
    """A training was stopped because its model gives training images back."""


class RefusedError(MnemoscopeError, RuntimeError):
    """A guard refused to sample a prompt that looks memorized."""


LISTED = 24
"""Names that a message lists at most; who knows hundreds is not helped by all of them."""


def did_you_mean(given: str, known: Iterable[str], what: str) -> str:
    """Compose the message for an unknown name.

    Args:
        given: The name the user wrote.
        known: The names that exist.
        what: The kind of thing named, in the singular ("detector", "scheduler").

    Returns:
        One line that quotes the name, suggests the nearest known ones and lists them, or the first
        few of many.

    Source: ours.
    """
    names = sorted(known)
    close = get_close_matches(given, names, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
    rest = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"unknown {what} {given!r}.{hint} Known: {', '.join(names[:LISTED])}{rest}."
