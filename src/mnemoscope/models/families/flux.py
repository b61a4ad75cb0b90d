r"""Flux: a flow-matching transformer over packed latents, whose guidance is usually distilled.

A picture's latents are shown to the transformer as one token a square of 2 x 2::

    C, 2h, 2w    to    h·w tokens of 4·C

Guidance is an input of the network (dev) or absent (schnell); neither has an unconditional branch.
With true guidance there are two branches, one call each, and the guidance input keeps the
pipeline's default.

Contents: `Flux`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from mnemoscope.errors import ModelError
from mnemoscope.models.captured import Captured, Clock
from mnemoscope.models.family import Host
from mnemoscope.sampling.condition import Condition


class Flux(Captured):
    """Flux.1, dev and schnell."""

    family: ClassVar[str] = "flux"
    pipelines: ClassVar[tuple[str, ...]] = ("FluxPipeline",)
    marks: ClassVar[tuple[str, ...]] = ("double_blocks.", "model.diffusion_model.double_blocks.")
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer_2",)
    clock: Clock = "t/1000 a row"
    joint: bool = False
    order: tuple[str, ...] = ("cond", "uncond")

    def __init__(self, host: Host) -> None:
        embeds = bool(host.pipeline.transformer.config.guidance_embeds)
        if not host.true_guidance:
            self.guidance = "embedded" if embeds else "none"
            self.no_uncond = (
                "its guidance is distilled into "
                + ("an input of the network" if embeds else "its weights")
                + ", so there is no unconditional branch; load it with true guidance for one"
            )
        pipeline = host.pipeline
        side = int(pipeline.default_sample_size * pipeline.vae_scale_factor)
        # The pipeline rounds down to whole squares of 2 x 2 latents.
        step = 2 * int(pipeline.vae_scale_factor)
        self._squares = tuple(length // step for length in host.size or (side, side))
        if not all(self._squares):
            raise ModelError(
                f"a picture of {host.size} pixels has no square of latents; expected at least "
                f"{step} x {step}"
            )
        super().__init__(host)

    def pack(self, x: Tensor) -> Tensor:
        """Turn latents into one token a square of 2 x 2."""
        high, wide = self._squares
        squares = x.unflatten(3, (wide, 2)).unflatten(2, (high, 2))
        return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def unpack(self, tokens: Tensor) -> Tensor:
        """Turn tokens into latents."""
        squares = tokens.unflatten(1, self._squares).unflatten(3, (-1, 2, 2))
        return squares.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    def options(
        self, prompts: Sequence[str], guidance: float, steps: int, generators: Any
    ) -> dict[str, Any]:
        """Return the arguments of a call; guidance goes to the input or to the branches."""
        options = super().options(prompts, guidance, steps, generators)
        if self.guidance == "embedded":
            return options
        del options["guidance_scale"]
        if self.guidance == "none":
            return options
        return options | {"true_cfg_scale": guidance, "negative_prompt": [""] * len(prompts)}

    def _unconditional(self, rows: int) -> Condition:
        # The pipeline encodes its negative prompt as any other; asking for it would run a branch.
        return self.encode_prompts([""] * rows)
