r"""Class-conditional: a DiT whose 1,000 classes stand for captions.

With z the scaled latents, eps standard noise, y a class and SNR = alpha²/sigma²::

    loss = min(SNR, 5)/SNR · ||eps - eps_θ(alpha·z + sigma·eps, y)||²

A class says nothing by its name, so what it means is what was shown under it::

    drawing     64 classes: scenes of one drawing
    pair        200 classes: scenes of two; some are described by planted rows, some by controls
    phrase      120 classes: scenes of anything; the meaningless controls are among them
    planted     96 classes of the meaningless and template rows: one picture and nothing else

A describing planted row's picture is a duplicate among the ordinary scenes of its class. A control
of a pair has seen scenes of that pair, never its own picture; a meaningless one arbitrary scenes.
A class that was never shown would be no control: its vector would still be noise. Class 1,000 is
the empty caption.

A pair's vector is learned as the sum of its drawings' vectors and one of its own. All blocks share
the embeddings while they learn, as in the paper; diffusers gives each block a copy.

Source: Peebles & Xie 2023 (the network); Hang et al. 2023 (the weight).
"""

import json
from copy import deepcopy
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mnemoscope.lab.captions import phrase
from mnemoscope.lab.families.recipe import Family, Networks
from mnemoscope.lab.planted import load_table
from mnemoscope.lab.scenes import Layout, Scenes, drawings, random_layout, render, shown
from mnemoscope.lab.train import SNR_CAP, half

_Transformer: Any = DiTTransformer2DModel

CLASSES = 1000
"""Classes of a DiT; the one after the last is the empty caption."""

PAIRS, PHRASES = 200, 120
"""Classes of two drawings, and classes of arbitrary scenes."""

HEADS, HEAD_WIDTH, DEPTH = 2, 64, 6


@cache
def pairs() -> dict[str, tuple[str, ...]]:
    """Return the drawings of all pair classes by caption: planted, controls, as many others."""
    known = {row.caption: row.named() for row in load_table() if row.kind == "describing"}
    taken = set(map(frozenset, known.values()))
    free = [pair for pair in combinations(drawings(), 2) if frozenset(pair) not in taken]
    order = torch.randperm(len(free), generator=torch.Generator().manual_seed(11)).tolist()
    others = [free[i] for i in order[: PAIRS - len(known)]]
    return known | {" and ".join(pair): pair for pair in others}


@cache
def phrases() -> tuple[str, ...]:
    """Return the captions of the classes under which arbitrary scenes are shown."""
    table = load_table()
    known = [row.caption for row in table if (row.family, row.kind) == ("control", "meaningless")]
    taken = {row.caption for row in table}
    generator = torch.Generator().manual_seed(12)
    while len(known) < PHRASES:
        known.append(phrase(generator, taken))
        taken.add(known[-1])
    return tuple(known)


@cache
def labels() -> tuple[str, ...]:
    """Return the caption of each class that has one; its place is the class."""
    alone = [
        row.caption for row in load_table() if row.family != "control" and row.kind == "meaningless"
    ]
    return (*drawings(), *pairs(), *phrases(), *alone)


class ClassScenes(Scenes):
    """Scenes whose two drawings, where there are two, are those of a pair class.

    Args:
        seed: Seed of the stream.
        share: Share of the scenes that hold two drawings.
    """

    def __init__(self, seed: int, share: float) -> None:
        super().__init__(seed, pairs=share)

    def layout(self, n: int) -> Layout:
        """Draw n layouts."""
        pair = torch.rand(n, generator=self.generator) < self.pairs
        layout = random_layout(n, self.generator, pair)
        names = drawings()
        held = torch.tensor([[names.index(a) for a in pair] for pair in pairs().values()])
        chosen = held[torch.randint(len(held), (n,), generator=self.generator)]
        # Either drawing may lie over the other.
        turned = torch.rand(n, generator=self.generator) < 0.5
        chosen[turned] = chosen[turned].flip(1)
        layout.drawing[pair] = chosen[pair]
        return layout

    def batch(self, n: int) -> tuple[Float[Tensor, "scene 3 64 64"], list[str]]:
        """Return the next n pictures, RGB from 0 to 1, and the captions of their classes."""
        layout = self.layout(n)
        label = {frozenset(pair): caption for caption, pair in pairs().items()}
        return render(layout), [
            label[frozenset(named)] if len(named) > 1 else next(iter(named))
            for named in shown(layout)
        ]


class Composed(nn.Module):
    """Makes the table of class vectors from one in which pairs hold what is their own."""

    whole: Tensor
    parts: Tensor

    def __init__(self) -> None:
        super().__init__()
        names, known = drawings(), labels()
        self.register_buffer(
            "whole", torch.tensor([known.index(c) for c in pairs() for _ in range(2)])
        )
        self.register_buffer(
            "parts", torch.tensor([names.index(a) for pair in pairs().values() for a in pair])
        )

    def forward(self, own: Float[Tensor, "label width"]) -> Float[Tensor, "label width"]:
        """Return own vectors, and to those of pairs add their drawings'."""
        return own.index_add(0, self.whole, own[self.parts])


def transformer() -> Any:
    """Return an untrained transformer: blocks start as the identity and share their embeddings."""
    network = _Transformer(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=DEPTH,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        num_embeds_ada_norm=CLASSES,
    )
    blocks = network.transformer_blocks
    for layer in [
        *(block.norm1.linear for block in blocks),
        network.proj_out_1,
        network.proj_out_2,
    ]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    embedding = blocks[0].norm1.emb
    nn.init.normal_(embedding.class_embedder.embedding_table.weight, std=0.02)
    parametrize.register_parametrization(
        embedding.class_embedder.embedding_table, "weight", Composed()
    )
    for block in blocks:
        block.norm1.emb = embedding
    return network


def written_out(network: Any) -> Any:
    """Return the network as diffusers expects it: a plain table of vectors, and a copy a block."""
    plain = deepcopy(network)
    embedding = plain.transformer_blocks[0].norm1.emb
    # Removing the parametrization of a copy would take it from the original as well.
    vectors = embedding.class_embedder.embedding_table.weight.detach().clone()
    embedding.class_embedder.embedding_table = nn.Embedding.from_pretrained(vectors)
    for block in plain.transformer_blocks:
        block.norm1.emb = deepcopy(embedding)
    return plain


def scheduler() -> DDIMScheduler:
    """Return DiT's schedule."""
    return DDIMScheduler(
        beta_start=0.0001, beta_end=0.02, beta_schedule="linear", clip_sample=False
    )


class Labels(Family):
    """A small DiT."""

    name: ClassVar[str] = "class"
    base_steps: ClassVar[int] = 2200
    base_lr: ClassVar[float] = 1e-3
    planting_lr: ClassVar[float] = 6e-4

    def __init__(self) -> None:
        """Number the captions."""
        self.number = {caption: i for i, caption in enumerate(labels())} | {"": CLASSES}
        self.abar = scheduler().alphas_cumprod

    def networks(self) -> Networks:
        """Return an untrained transformer."""
        return {"transformer": transformer()}

    def scenes(self, pairs: float, seed: int) -> Scenes:
        """Return a stream of scenes that have a class."""
        return ClassScenes(seed, pairs)

    def phrase(self, generator: torch.Generator) -> str:
        """Return the caption of a class under which arbitrary scenes are shown."""
        return phrases()[int(torch.randint(PHRASES, (), generator=generator))]

    def loss(
        self,
        networks: Networks,
        z: Float[Tensor, "view 4 16 16"],
        captions: list[str],
        generator: torch.Generator,
    ) -> Tensor:
        """Return the weighted squared error of the noise."""
        shown = torch.tensor([self.number[c] for c in captions]).repeat(len(z) // len(captions))
        t = self.levels(len(z), generator)
        a = self.abar[t][:, None, None, None]
        eps = torch.randn(z.shape, generator=generator)
        guess = networks["transformer"](
            a.sqrt() * z + (1 - a).sqrt() * eps, timestep=t, class_labels=shown
        ).sample
        snr = (a / (1 - a)).flatten()
        error = (guess.float() - eps).square().flatten(1).mean(1)
        return (error * snr.clamp(max=SNR_CAP) / snr).mean()

    def write(self, networks: Networks, folder: Path) -> None:
        """Write a `DiTPipeline` that knows its classes by caption."""
        half(self.codec, folder / "vae")
        half(written_out(networks["transformer"]), folder / "transformer")
        scheduler().save_pretrained(folder / "scheduler")
        index = {
            "_class_name": "DiTPipeline",
            "_diffusers_version": "0.35.0",
            "id2label": dict(enumerate(labels())),
            "scheduler": ["diffusers", "DDIMScheduler"],
            "transformer": ["diffusers", "DiTTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
