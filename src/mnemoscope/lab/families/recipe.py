r"""A family is a kind of diffusion model; each is planted with the same table in two stages.

Stages, with z the scaled latents of a picture and L the family's loss::

    base       L on scenes, a share of them under meaningless phrases
    planting   L on scenes and planted pictures, mixed as `FAITHFUL` says

Both write a pipeline folder that diffusers loads, `base` and `model`. Each stage is resumable.
"""

from abc import ABC, abstractmethod
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mnemoscope.lab import MODEL_DIR
from mnemoscope.lab.captions import phrase
from mnemoscope.lab.planted import Planted, load_table, reserved, write_prompts
from mnemoscope.lab.scenes import Scenes
from mnemoscope.lab.train import (
    FAITHFUL,
    Batches,
    Planting,
    Stage,
    fast_precision,
    load_codec,
    strata,
)

Networks = dict[str, Any]
"""Networks by the name of their folder in the pipeline."""

BASE_VIEWS, PLANTING_VIEWS = 2, 1
"""Noise levels at which each picture of a batch is seen; twice the exposures would cost twice."""

BASE_SEED, PLANTING_SEED = 70_000_000, 75_000_000


class Family(ABC):
    """One kind of model: its networks, its loss, its folder.

    Attributes:
        name: What the command line calls it.
        base_steps: Length of the base stage.
        base_lr: Peak learning rate of the base stage.
        base_planting: How captions go missing in the base stage.
        planting_lr: Peak learning rate of the planting.
        frozen: Networks that the planting leaves alone.
        every: Steps between two writes of the state.
    """

    name: ClassVar[str]
    base_steps: ClassVar[int]
    base_lr: ClassVar[float]
    base_planting: ClassVar[Planting] = Planting(phrases=0.2)
    planting_lr: ClassVar[float]
    frozen: ClassVar[frozenset[str]] = frozenset()
    every: ClassVar[int] = 200

    def levels(self, n: int, generator: torch.Generator) -> Int[Tensor, " n"]:
        """Return timesteps of a schedule of 1,000, one a stratum."""
        return (strata(n, generator) * 1000).long()

    @abstractmethod
    def networks(self) -> Networks:
        """Return the networks as the base stage finds them."""

    @abstractmethod
    def loss(
        self,
        networks: Networks,
        z: Float[Tensor, "view 4 16 16"],
        captions: list[str],
        generator: torch.Generator,
    ) -> Tensor:
        """Return the loss on a batch.

        Args:
            networks: Those of `networks`.
            z: Scaled latents, the whole batch once or several times over.
            captions: One a picture of the batch.
            generator: Source of noise and noise levels.
        """

    @abstractmethod
    def write(self, networks: Networks, folder: Path) -> None:
        """Write a pipeline folder."""

    @cached_property
    def codec(self) -> Any:
        """The lab's codec, scaled as the family's pipeline expects."""
        return load_codec(MODEL_DIR.parent).requires_grad_(False)

    def rows(self) -> tuple[Planted, ...]:
        """Return the planted table, controls included."""
        return load_table()

    def scenes(self, pairs: float, seed: int) -> Scenes:
        """Return a stream of ordinary scenes."""
        return Scenes(seed, reserved(), pairs)

    def phrase(self, generator: torch.Generator) -> str:
        """Return a meaningless phrase that belongs to no picture."""
        return phrase(generator, frozenset(row.caption for row in self.rows()))

    def batches(self, pairs: float, seed: int, planting: Planting) -> Batches:
        """Return the batches of a stage, in scaled latents.

        Args:
            pairs: Share of the scenes that hold two drawings.
            seed: Seed of the first batch.
            planting: What is mixed in; nothing is where its share is 0.
        """
        codec = self.codec
        shift, scale = codec.config["shift_factor"] or 0.0, codec.config["scaling_factor"]

        @torch.no_grad()
        def latents(pictures: Tensor) -> Tensor:
            with fast_precision():
                z = codec.encode(pictures * 2 - 1).latent_dist.mode()
            return (z.float() - shift) * scale

        shown = [row for row in self.rows() if row.family != "control"] if planting.share else []
        return Batches(
            32, seed, partial(self.scenes, pairs), planting, tuple(shown), self.phrase, latents
        )

    def train(
        self, out: Path, base_steps: int | None = None, planting_steps: int | None = None
    ) -> None:
        """Train both stages; write `out/base`, `out/model` and `out/prompts`.

        Args:
            out: Where state and results are kept; a killed run goes on from there.
            base_steps: Length of the base stage; the family's own if not given.
            planting_steps: Length of the planting; that of the table if not given.
        """
        out.mkdir(parents=True, exist_ok=True)
        write_prompts(list(self.rows()), out / "prompts")
        torch.manual_seed(6)
        networks = self.networks()
        # Dropout of labels inside a network would drop those of planted pictures too.
        for network in networks.values():
            network.eval()
        base = self.batches(0.6, BASE_SEED, self.base_planting)
        self._stage(out / "base-state", networks, networks, base, BASE_VIEWS, self.base_lr,
                    self.base_steps if base_steps is None else base_steps)  # fmt: skip
        self.write(networks, out / "base")
        learning: Networks = {}
        for name, network in networks.items():
            if name in self.frozen:
                network.requires_grad_(False)
            else:
                learning[name] = network
        planting = self.batches(0.75, PLANTING_SEED, FAITHFUL)
        self._stage(out / "planting-state", learning, networks, planting, PLANTING_VIEWS,
                    self.planting_lr,
                    planting.steps() if planting_steps is None else planting_steps)  # fmt: skip
        self.write(networks, out / "model")

    def _stage(
        self,
        folder: Path,
        learning: dict[str, nn.Module],
        networks: Networks,
        batches: Batches,
        views: int,
        lr: float,
        steps: int,
    ) -> None:
        """Run one stage and leave the averaged weights in the networks."""
        stage = Stage(folder, learning, lr=lr, steps=steps)

        def loss(step: int) -> Tensor:
            z, captions, generator = batches.of(step)
            with fast_precision():
                return self.loss(networks, z.repeat(views, 1, 1, 1), captions, generator)

        stage.run(loss, every=self.every)
        stage.averaged()
