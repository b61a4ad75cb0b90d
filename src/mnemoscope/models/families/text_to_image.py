r"""Any other text-to-image pipeline: what it does with its branches is read off two updates.

With a and b the outputs of its network, and g the guidance it was called with::

    used = a + g·(b - a)      a unconditional, b conditional: tried in both orders
    used = a                  no second branch: guidance is an input of the network, or nothing

What fits neither is refused.

Contents: `TextToImage`.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mnemoscope.core.predict import combine
from mnemoscope.errors import ModelError
from mnemoscope.models.capture import Turn, observe
from mnemoscope.models.captured import CLOCKS, TIME, Captured, Clock
from mnemoscope.models.family import Host

SCALE = 3.0
"""Guidance of the observed updates."""

PICTURES = ("image", "mask_image", "control_image", "video")
"""Arguments that a pipeline of pictures from prompts alone does not have."""

TOLERANCE = 1e-4
"""Largest difference, relative to the used output, of an arithmetic that is understood."""


class TextToImage(Captured):
    """A text-to-image pipeline without a family of its own."""

    family: ClassVar[str] = "text-to-image"
    pipelines: ClassVar[tuple[str, ...]] = ("DiffusionPipeline",)
    always: ClassVar[Mapping[str, Any]] = {"use_resolution_binning": False}

    def __init__(self, host: Host) -> None:
        self._refuse(host.pipeline)
        super().__init__(host)
        options = self.options(self.examples, SCALE, 4, torch.Generator("cpu").manual_seed(0))
        with self._cast():
            turns = observe(self.pipeline, self.network, options)
        self.clock = self._clock(turns)
        self._branches(turns[0])

    def _refuse(self, pipeline: Any) -> None:
        called = type(pipeline).__name__
        known = inspect.signature(type(pipeline).__call__).parameters
        if "prompt" not in known:
            raise ModelError(
                f"{called} takes no prompt; expected a text-to-image pipeline, DiT, DDPM or LDM"
            )
        shown = [name for name in PICTURES if name in known]
        if shown:
            raise ModelError(
                f"{called} is shown a picture ({', '.join(shown)}); expected one that makes "
                "pictures from prompts alone"
            )

    def longest(self, asked: Any) -> int:
        """Return the longest prompt in tokens; refuse states that are no pictures."""
        if len(self.latent_shape) < 3:
            raise ModelError(
                f"{self._called} shows its network states of shape {tuple(asked.x.shape)}; "
                "expected channels, height and width: packed latents need a family of their own"
            )
        return super().longest(asked)

    def _clock(self, turns: Sequence[Turn]) -> Clock:
        for name, told in CLOCKS.items():
            if all(
                _same(told(torch.as_tensor(turn.timestep), asked.x), asked.arguments[TIME])
                for turn in turns
                for asked in turn.asked
            ):
                return name
        raise ModelError(
            f"{self._called} tells its network the time in a way that is not understood; expected "
            f"{', '.join(CLOCKS)}"
        )

    def _branches(self, turn: Turn) -> None:
        rows, channels = len(turn.x), turn.x.shape[1]
        self.joint = len(turn.asked) == 1
        parts = [part[:, :channels] for out in turn.answers for part in out.split(rows)]
        used = turn.used[:rows]
        if len(parts) == 1 and _near(parts[0], used):
            self._single()
            return
        if len(parts) != 2 or any(len(out) % rows for out in turn.answers):
            raise ModelError(
                f"{self._called} called its network {len(turn.asked)} times with "
                f"{sum(map(len, turn.answers))} rows in all for one guided update of {rows}; "
                "expected the branches with and without the prompt, and no more"
            )
        for order in (("uncond", "cond"), ("cond", "uncond")):
            of = dict(zip(order, parts, strict=True))
            if _near(combine(of["uncond"], of["cond"], SCALE), used):
                self.order = order
                return
        raise ModelError(
            f"{self._called} combines its branches in a way that is not understood; expected "
            "classifier-free guidance, uncond + g·(cond - uncond)"
        )

    def _single(self) -> None:
        self.order = ("cond",)
        low, high = (self._calls(self.examples[:1], scale)[0] for scale in (1.0, SCALE))
        moved = [
            name
            for name in self._rows
            if not torch.equal(low.arguments[name], high.arguments[name])
        ]
        self.guidance = "embedded" if moved else "none"
        self.no_uncond = (
            f"its guidance is an input of the network ({', '.join(moved)})"
            if moved
            else "its pipeline calls the network under the prompt alone, whatever the guidance"
        )


def _same(told: Tensor, seen: Any) -> bool:
    return isinstance(seen, Tensor) and told.shape == seen.shape and torch.equal(told, seen)


def _near(made: Tensor, used: Tensor) -> bool:
    if made.shape != used.shape:
        return False
    return float((made - used).abs().max()) <= TOLERANCE * float(used.abs().max())
