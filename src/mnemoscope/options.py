"""An option is a field of a frozen dataclass: defined once, with its default and its help.

A command line is made of such a dataclass, and so is a call from Python; neither spells an option
again.

Contents: `option`, `help_of`.
"""

from dataclasses import Field, field
from typing import Any

HELP = "help"
"""Key of the help text in a field's metadata."""


def option(default: Any, about: str) -> Any:
    """Return a dataclass field with a default and a help text."""
    return field(default=default, metadata={HELP: about})


def help_of(of: Field[Any]) -> str:
    """Return the help text of a field; empty for a field that is no option."""
    return str(of.metadata.get(HELP, ""))
