"""A LoRA is filtered by its base: what lies along the base's main directions stays.

Contents: `Filtering`, `filter_lora`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save

from mnemoscope.errors import InputError, RunError
from mnemoscope.flows.options import brought, values_of
from mnemoscope.models.adapter import PRINCIPAL, channels_of, filtered
from mnemoscope.models.load import load_adapted
from mnemoscope.models.source import Source
from mnemoscope.options import option
from mnemoscope.runs.records import write_atomically


@dataclass(frozen=True)
class Filtering:
    """What to filter. Every field is an option of `mnemoscope lora filter`."""

    model: str = option("embedded:base", "The base: a diffusers folder, a file, or a hub id.")
    lora: str | None = option(None, "LoRA to filter, a .safetensors file.")
    variant: str | None = option(None, "Variant of the base's weight files, such as fp16.")
    strength: float = option(0.5, "Share of the LoRA's squared norm that is taken out.")
    principal: float = option(
        PRINCIPAL, "Share of the squared norm of the base's weights that its main directions hold."
    )
    out: str | Path = option("filtered.safetensors", "File of what is left, a LoRA of diffusers.")

    def __post_init__(self) -> None:
        """Bring values to their type and refuse those that mean nothing.

        Raises:
            InputError: If a value is out of range.
        """
        brought(self)
        for name in ("strength", "principal"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InputError(f"{name} {value} given; expected a share from 0 to 1")
        if Path(self.out).suffix != ".safetensors":
            raise InputError(f"out {str(self.out)!r} given; expected a name with .safetensors")

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> "Filtering":
        """Make it of options as text."""
        return cls(**values_of(cls, options))


def filter_lora(asked: Filtering) -> str:
    """Filter a LoRA and write what is left.

    Args:
        asked: What to filter.

    Returns:
        What was taken out, in words.

    Raises:
        InputError: If there is nothing to filter.
        ModelError: If base or LoRA cannot be loaded, or are not of the same architecture.
        RunError: If the file cannot be written.
    """
    pipeline = load_adapted(Source(model=asked.model, lora=asked.lora, variant=asked.variant))
    channels = channels_of(pipeline, asked.principal)
    held = filtered(channels, asked.strength)
    try:
        write_atomically(Path(asked.out), save(held))
    except OSError as error:
        raise RunError(
            f"cannot write {str(asked.out)!r}: {error.strerror or error}; make room or choose "
            "another place"
        ) from error
    count = sum(len(one.values) for one in channels)
    anchored = sum(float(one.anchored @ one.values.square()) for one in channels)
    energy = sum(float(one.values.square().sum()) for one in channels)
    return (
        f"{len(channels)} layers, {count} channels; weighted by their squared norm they lie "
        f"{anchored / energy if energy else 0.0:.2f} along the base (0 as by chance, 1 within its "
        f"main directions); {asked.strength:.0%} taken out, the least anchored first"
    )
