r"""A calibration is the score above which a prompt is suspicious, set on ordinary prompts.

Formulas, with s the scores of n ordinary prompts, no image of theirs being known to the model::

    threshold     the k-th smallest of s, k = ceil((1 - FPR)·(n + 1))
    fpr           the share of further ordinary prompts above it: at most FPR on average
    fingerprint   SHA-256 over the denoiser's parameters: names, shapes, evenly spaced entries

A score is of the noise level at which the first step stands, and that depends on the sampler and
on how many steps it makes: the threshold holds for runs that begin at the same level.

A score averages over the samples of a prompt, so a threshold is of a number of samples. One that
was set for fewer serves more: their mean strays less.

Contents: `Threshold`, `Calibration`, `fingerprint`.

Source: split conformal calibration (Vovk et al. 2005).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from mnemoscope.errors import InputError
from mnemoscope.runs.folder import write_atomically

SCHEMA = 1

ENTRIES = 64
"""Entries of each parameter that the fingerprint looks at."""

LARGEST = 1 << 20
"""Bytes of the largest file that is read as a calibration."""


@dataclass(frozen=True)
class Threshold:
    """What is suspicious for some number of samples.

    Attributes:
        seeds: Samples a prompt.
        value: The threshold.
        low: Lower end of its 95 % bootstrap interval over prompts.
        high: Upper end.
        n: Ordinary prompts it was set on.
    """

    seeds: int
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Calibration:
    """Thresholds of a detector on a model.

    Attributes:
        detector: Name of the detector.
        fpr: Wanted share of ordinary prompts above the threshold.
        alpha: Weight of the clean image at the first step, unit form.
        thresholds: One a number of samples, fewest first.
        model: Name, digest and fingerprint of the model.
        recipe: How was sampled, as in table `recipes`.
        packages: Versions it was made with.
    """

    detector: str
    fpr: float
    alpha: float
    thresholds: tuple[Threshold, ...]
    model: Mapping[str, str] = field(default_factory=dict[str, str])
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])
    packages: Mapping[str, str] = field(default_factory=dict[str, str])

    def check(self, found: str, name: str) -> None:
        """Refuse another model.

        Args:
            found: Fingerprint of the model at hand.
            name: What it is called.

        Raises:
            InputError: If the calibration was made on another one.
        """
        known = self.model.get("fingerprint", "")
        if known != found:
            raise InputError(
                f"the calibration was made on {self.model.get('name', 'another model')!r} "
                f"(fingerprint {known[:12]}), and {name!r} has {found[:12]}; calibrate this one"
            )

    def write(self, path: str | Path) -> None:
        """Write it as JSON; the file is whole or absent."""
        told = {"schema": SCHEMA} | asdict(self)
        write_atomically(Path(path), (json.dumps(told, indent=2) + "\n").encode())

    @classmethod
    def read(cls, path: str | Path) -> "Calibration":
        """Read what `write` wrote.

        Raises:
            InputError: If it is no such file.
        """
        path = Path(path)
        try:
            if path.stat().st_size > LARGEST:
                raise ValueError(f"it has more than {LARGEST} bytes")
            told = json.loads(path.read_bytes())
            if told.pop("schema") != SCHEMA:
                raise ValueError("its schema is another")
            levels = tuple(Threshold(**level) for level in told.pop("thresholds"))
            if not levels or list(levels) != sorted(levels, key=lambda t: t.seeds):
                raise ValueError("it has no thresholds in the order of their samples")
            return cls(thresholds=levels, **told)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{str(path)!r} is no calibration ({error}); make one with `mnemoscope calibrate`"
            ) from error


@torch.no_grad()
def fingerprint(network: Any) -> str:
    """Return what tells a denoiser's weights apart from others, in whatever precision.

    Entries are compared in half precision, so the same weights loaded as float16 and as float32
    agree; those that went through bfloat16 do not.

    Args:
        network: A torch module; a closed form is told by its text.

    Source: ours.
    """
    whole = hashlib.sha256()
    network = getattr(network, "_orig_mod", network)
    if not hasattr(network, "named_parameters"):
        return hashlib.sha256(repr(network).encode()).hexdigest()
    for name, part in network.named_parameters():
        flat = part.detach().flatten()
        at = torch.linspace(0, max(flat.numel() - 1, 0), min(ENTRIES, flat.numel())).long()
        whole.update(f"{name} {tuple(part.shape)}".encode())
        whole.update(flat[at.to(flat.device)].half().cpu().numpy().tobytes())
    return whole.hexdigest()
