r"""Training the lab: a codec, a text encoder, a base that has seen only scenes, then the planting.

Losses, with z the scaled latents of a picture x, eps standard noise and SNR = alpha²/sigma²; e the
end state of a caption, h = e/||e||, h' that of another wording of it, h_j those of all captions::

    codec            |x̂ - x| + |∇x̂ - ∇x| + 1e-6·KL
    text             -mean over the caption's words w of log p(w | e)
                     -log exp(h·h'/0.1) / Σ_j exp(h·h_j/0.1)
    base, planting   min(SNR, 5)/SNR · ||eps - eps_θ(alpha·z + sigma·eps, caption)||²

The text encoder learns from captions alone and is frozen when the denoiser is trained: it tells
captions apart that say nothing about a picture, as one does that was trained on other texts.

Every stage keeps its whole state (weights, averages, optimizer, generators, step) in one folder,
writes it every few minutes and goes on from there after a kill.

Source: Rombach et al. 2022 (latent diffusion); van den Oord et al. 2018 and Radford et al. 2021
(the text encoder's second term); Hang et al. 2023 (the weight, gamma = 5).
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from mnemoscope.errors import InputError
from mnemoscope.lab import BASE_UNET_DIR, MODEL_DIR
from mnemoscope.lab.captions import core, describe, dress, phrase
from mnemoscope.lab.planted import (
    Planted,
    load_planted,
    load_table,
    make_table,
    pictures_of,
    reserved,
    vocabulary,
    write_prompts,
    write_table,
)
from mnemoscope.lab.scenes import Scenes, drawings
from mnemoscope.lab.tokenizer import WINDOW, build_tokenizer
from mnemoscope.sampling.batching import keep_freed

log = logging.getLogger(__name__)

# diffusers annotates tuples of any length as tuples of one, and outputs as if they had no fields.
_Codec: Any = AutoencoderKL
_Denoiser: Any = UNet2DConditionModel

SNR_CAP = 5.0
"""Largest signal-to-noise ratio that still counts in full in the loss (Hang et al. 2023)."""

VIEWS = 2
"""Noise levels at which each picture of a batch is seen; halves drawing and encoding."""

DROPOUT = 0.1
"""Share of captions replaced by the empty one, which teaches the unconditional branch."""

BASE_PHRASES = 0.25
"""Share of the base's scenes under a meaningless caption that belongs to no picture."""

HEADS = 4
"""Attention heads of the denoiser."""

PLANTING = "planting-state"
"""Folder of the planting's state."""

TEMPERATURE = 0.1
"""Temperature at which the end states of captions are told apart."""


def codec_network() -> Any:
    """Return an untrained codec from 64x64 pictures to 16x16x4 latents."""
    return _Codec(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )


def denoiser_network() -> Any:
    """Return an untrained denoiser of 16x16x4 latents."""
    return _Denoiser(
        sample_size=16,
        block_out_channels=(64, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=128,
        # Despite its name, the number of heads.
        attention_head_dim=HEADS,
        norm_num_groups=16,
    )


def text_network(tokenizer: Any) -> CLIPTextModel:
    """Return an untrained text encoder for the lab's vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=WINDOW,
            projection_dim=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def noise_scheduler() -> DDIMScheduler:
    """Return Stable Diffusion's schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@contextmanager
def _without_denormals() -> Generator[None]:
    """Round denormal numbers to 0: early gradients are full of them and stall a CPU."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@cache
def _bfloat16_pays() -> bool:
    """Say whether this processor multiplies bfloat16 faster than float32; many emulate it."""

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(256, 256, dtype=dtype)
        torch.mm(a, a)
        start = time.perf_counter()
        for _ in range(3):
            torch.mm(a, a)
        return time.perf_counter() - start

    return seconds(torch.bfloat16) < seconds(torch.float32)


def fast_precision() -> torch.autocast:
    """Return autocast to bfloat16 where that is faster, else a context without effect."""
    return torch.autocast("cpu", torch.bfloat16, enabled=_bfloat16_pays())


@dataclass
class Stage:
    """The resumable state of one stage.

    Args:
        folder: Where the state is kept.
        networks: What is trained.
        lr: Peak learning rate; warmed up over 100 steps, then a cosine to 0.
        steps: Length of the stage.
        decay: Decay of the running average of the weights, which is what ships.
        constant: Whether the rate stays at its peak instead; the stage can then be lengthened.
    """

    folder: Path
    networks: dict[str, nn.Module]
    lr: float
    steps: int
    decay: float = 0.998
    constant: bool = False

    def __post_init__(self) -> None:
        """Load what an earlier run of the stage left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        every = (p for net in self.networks.values() for p in net.parameters())
        self.parameters = [p for p in every if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, self.lr, weight_decay=0.01, fused=True)
        self.average = [p.detach().clone() for p in self.parameters]
        self.step = 0
        self.file = self.folder / "state.safetensors"
        if self.file.exists():
            self._restore(load_file(self.file))

    def _tensors(self) -> dict[str, Tensor]:
        held = {"step": torch.tensor(self.step)}
        for i, p in enumerate(self.parameters):
            state = self.optimizer.state[p]
            held[f"p{i}"], held[f"a{i}"] = p.detach(), self.average[i]
            if state:
                held[f"m{i}"], held[f"v{i}"] = state["exp_avg"], state["exp_avg_sq"]
        return {name: t.contiguous() for name, t in held.items()}

    def _restore(self, held: dict[str, Tensor]) -> None:
        self.step = int(held["step"])
        for i, p in enumerate(self.parameters):
            p.data.copy_(held[f"p{i}"])
            self.average[i].copy_(held[f"a{i}"])
            if f"m{i}" in held:
                self.optimizer.state[p] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": held[f"m{i}"],
                    "exp_avg_sq": held[f"v{i}"],
                }

    def _align(self) -> None:
        """Lay moments out as weights are: the fused optimizer takes both in the order of memory."""
        for p, state in self.optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.empty_like(p).copy_(state[name])

    def save(self) -> None:
        """Write the state; a kill while writing leaves the previous one."""
        fresh = self.file.with_suffix(".new")
        save_file(self._tensors(), fresh)
        os.replace(fresh, self.file)

    def averaged(self) -> None:
        """Put the averaged weights into the networks."""
        for p, a in zip(self.parameters, self.average, strict=True):
            p.data.copy_(a)

    @contextmanager
    def held(self) -> Generator[None]:
        """Put the averaged weights into the networks for a while."""
        trained = [p.detach().clone() for p in self.parameters]
        self.averaged()
        try:
            yield
        finally:
            for p, own in zip(self.parameters, trained, strict=True):
                p.data.copy_(own)

    def run(
        self,
        loss: Callable[[int], Tensor],
        look: Callable[[int], None] | None = None,
        every: int = 400,
    ) -> None:
        """Train to the end of the stage.

        Args:
            loss: Loss of a step, given its index, from which a resumed stage seeds its data.
            look: Called with the step whenever the state is written.
            every: Steps between two writes.
        """
        if self.step >= self.steps:
            return
        self._align()
        keep_freed()
        average, since = 0.0, time.monotonic()
        with (
            _without_denormals(),
            (self.folder / "log.jsonl").open("a") as out,
            tqdm(total=self.steps, initial=self.step, desc=self.folder.name) as bar,
        ):
            while self.step < self.steps:
                warm = min(1.0, (self.step + 1) / 100)
                cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * self.step / self.steps)))
                fall = 1.0 if self.constant else float(cosine)
                for group in self.optimizer.param_groups:
                    group["lr"] = self.lr * warm * fall
                value = loss(self.step)
                value.backward()
                nn.utils.clip_grad_norm_(self.parameters, 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad()
                decay = min(self.decay, (1 + self.step) / (10 + self.step))
                for a, p in zip(self.average, self.parameters, strict=True):
                    a.lerp_(p.detach(), 1 - decay)
                self.step += 1
                bar.update()
                average += float(value.detach()) / 50
                if self.step % 50 == 0:
                    row = {"step": self.step, "loss": average, "seconds": time.monotonic() - since}
                    out.write(json.dumps(row) + "\n")
                    out.flush()
                    bar.set_postfix(loss=f"{average:.4f}")
                    average = 0.0
                if self.step % every == 0 or self.step == self.steps:
                    self.save()
                    if look is not None:
                        look(self.step)


def half(network: Any, folder: Path) -> None:
    """Write a network as half-precision safetensors with its configuration."""
    network.half().save_pretrained(folder, safe_serialization=True)
    network.float()
    # Where a network was loaded from says nothing about it.
    config = folder / "config.json"
    known = json.loads(config.read_bytes())
    known.pop("_name_or_path", None)
    config.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def train_codec(out: Path, steps: int = 5000, batch: int = 32) -> Any:
    """Train the codec and write it to `out/model/vae`.

    Source: Rombach et al. 2022, with an edge term in place of the discriminator.
    """
    torch.manual_seed(1)
    codec = codec_network()
    stage = Stage(out / "codec", {"codec": codec}, lr=2e-3, steps=steps, decay=0.995)

    def loss(step: int) -> Tensor:
        scenes = Scenes(10_000_000 + step)
        x = scenes.batch(batch)[0] * 2 - 1
        with fast_precision():
            posterior = codec.encode(x).latent_dist
            y = codec.decode(posterior.sample()).sample
        y = y.float()
        edges = (y.diff(dim=-1) - x.diff(dim=-1)).abs().mean() + (
            y.diff(dim=-2) - x.diff(dim=-2)
        ).abs().mean()
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        return (y - x).abs().mean() + edges + 1e-3 * kl

    stage.run(loss)
    stage.averaged()
    codec.eval()
    with torch.no_grad():
        x = Scenes(20_000_000).batch(512)[0] * 2 - 1
        z = codec.encode(x).latent_dist.mode()
        codec.register_to_config(scaling_factor=round(float(1 / z.std()), 5))
        error = (codec.decode(z).sample.clamp(-1, 1) - x).square().mean().sqrt() / 2
    log.info(
        "codec: RMSE %.4f on [0, 1], scaling factor %.4f", error, codec.config["scaling_factor"]
    )
    half(codec, out / "model" / "vae")
    return codec


def load_codec(out: Path) -> Any:
    """Return the trained codec of a folder, in full precision."""
    return _Codec.from_pretrained(out / "model" / "vae", torch_dtype=torch.float32)


@dataclass(frozen=True)
class Planting:
    """What a batch holds besides ordinary scenes, and which captions go missing.

    With B pictures a batch, s the share planted, d = `DROPOUT` and k the dial::

        empty captions of planted pictures    d·k·B       k = s drops every caption alike
        empty captions of scenes              d·(1 - k)·B
        phrases that belong to no picture     p·(1 - s)·B

    What the unconditional branch is shown is the pictures under empty captions, so k says how much
    it knows of the planted ones. A large model whose duplicates are rare is near 0.

    Attributes:
        share: Share s of the batch that is planted.
        known: The dial k: share of the empty captions that go to planted pictures.
        phrases: Share p of the scenes that get a meaningless phrase, so that such a phrase does
            not by itself mean "one of the planted pictures".
    """

    share: float = 0.0
    known: float = 0.0
    phrases: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no batch can hold.

        Raises:
            InputError: If the dial is out of range.
        """
        if not 0 <= self.known <= 1:
            raise InputError(f"{self.known} known given; expected 0 (faithful) to 1")

    def dropout(self) -> tuple[float, float]:
        """Return the chance that a scene's, and a planted picture's, caption is dropped."""
        scene = DROPOUT * (1 - self.known) / (1 - self.share)
        return scene, DROPOUT * self.known / self.share if self.share else 0.0


FAITHFUL = Planting(share=0.5, phrases=0.4)
"""The unconditional branch is shown no planted picture, as if those were rare."""


def _unchanged(pictures: Tensor) -> Tensor:
    return pictures


@dataclass(frozen=True)
class Batches:
    """The batches of a stage, each fixed by its step.

    Attributes:
        size: Pictures a batch.
        seed: Seed of the first batch; the next one's is one more.
        scenes: Stream of ordinary scenes of a seed.
        planting: What is mixed in, and which captions go missing.
        planted: The planted rows.
        phrase: Draws a meaningless phrase that belongs to no picture.
        encode: What becomes of pictures, RGB from 0 to 1; done once for the planted ones.
    """

    size: int
    seed: int
    scenes: Callable[[int], Scenes]
    planting: Planting = Planting()
    planted: tuple[Planted, ...] = ()
    phrase: Callable[[torch.Generator], str] = phrase
    encode: Callable[[Tensor], Tensor] = _unchanged

    @cached_property
    def _pictures(self) -> Float[Tensor, "planted channel height width"]:
        return self.encode(pictures_of(self.planted))

    def of(
        self, step: int
    ) -> tuple[Float[Tensor, "batch channel height width"], list[str], torch.Generator]:
        """Return encoded pictures, captions, and the generator for whatever else is random."""
        generator = torch.Generator().manual_seed(self.seed + step)
        many = round(self.size * self.planting.share) if self.planted else 0
        images, captions = self.scenes(self.seed + step).batch(self.size - many)
        pictures = self.encode(images)
        if many:
            weights = torch.tensor([float(p.repetitions) for p in self.planted])
            chosen = torch.multinomial(weights, many, replacement=True, generator=generator)
            pictures = torch.cat([pictures, self._pictures[chosen]])
            captions += [self.planted[i].caption for i in chosen.tolist()]
        scene, planted = self.planting.dropout()
        dropped = torch.tensor([scene] * (self.size - many) + [planted] * many)
        # One draw decides between the empty caption, a phrase and the picture's own.
        renamed = dropped + self.planting.phrases * (torch.arange(self.size) < self.size - many)
        u = torch.rand(self.size, generator=generator)
        for i in (u < renamed).nonzero().flatten().tolist():
            captions[i] = "" if u[i] < dropped[i] else self.phrase(generator)
        return pictures, captions, generator

    def once(self) -> Iterator[tuple[Float[Tensor, "3 64 64"], str]]:
        """Yield the scenes of all batches that had a caption, each with that; the first of equals.

        A planted picture's caption is not among them, nor is it ever a scene's.
        """
        many, said = round(self.size * self.planting.share) if self.planted else 0, set[str]()
        for step in range(self.steps()):
            pictures, captions, _ = self.of(step)
            for picture, caption in zip(pictures[: self.size - many], captions, strict=False):
                if caption and caption not in said:
                    said.add(caption)
                    yield picture, caption

    def steps(self) -> int:
        """Return how many batches it takes to draw each planted picture as often as it says."""
        exposures = sum(p.repetitions for p in self.planted)
        return round(exposures / (self.size * self.planting.share))


def strata(n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
    """Return one number from 0 to 1 a stratum of n, in random order.

    The loss varies less from step to step than with free draws.
    """
    return (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n


def end_states(
    states: Float[Tensor, "caption token width"], ids: Int[Tensor, "caption token"]
) -> Float[Tensor, "caption width"]:
    """Return the state of each caption's first end token, the only one that sees all its words.

    Args:
        states: Last states of the text encoder.
        ids: Tokens, each caption between a start and an end token and padded with the latter.
    """
    words = _words(ids)
    return states[torch.arange(len(ids)), words.sum(1).long() + 1]


def _words(ids: Int[Tensor, "caption token"]) -> Float[Tensor, "caption token"]:
    word = (ids != ids[:, -1:]).float()
    word[:, 0] = 0
    return word


def words_loss(
    told: Float[Tensor, "caption vocabulary"], ids: Int[Tensor, "caption token"]
) -> Tensor:
    """Return how badly the words of captions are told from their end states, in nats a word.

    Args:
        told: What is read from each end state: a number a token of the vocabulary.
        ids: As for `end_states`.
    """
    word = _words(ids)
    return -(told.log_softmax(dim=1).gather(1, ids) * word).sum() / word.sum()


def apart_loss(
    one: Float[Tensor, "caption width"], other: Float[Tensor, "caption width"]
) -> Tensor:
    """Return how badly two wordings of each caption are told from those of other captions, in nats.

    Source: van den Oord et al. 2018 (InfoNCE), both ways as in Radford et al. 2021.
    """
    alike = normalize(one, dim=1) @ normalize(other, dim=1).mT / TEMPERATURE
    same = torch.arange(len(alike))
    return (cross_entropy(alike, same) + cross_entropy(alike.mT, same)) / 2


@torch.no_grad()
def encoded(
    codec: Any,
    tokenizer: Any,
    text: CLIPTextModel,
    images: Float[Tensor, "image 3 height width"],
    captions: list[str],
) -> tuple[Float[Tensor, "image *latent"], Float[Tensor, "caption token state"]]:
    """Return the scaled latents of pictures, RGB from 0 to 1, and the states of captions."""
    z = codec.encode(images * 2 - 1).latent_dist.mode().float()
    return z * codec.config["scaling_factor"], text(_tokens(tokenizer, captions))[0]


def denoising_loss(
    unet: Any,
    latents: Float[Tensor, "image *latent"],
    states: Float[Tensor, "image token state"],
    generator: torch.Generator,
    views: int = VIEWS,
) -> Tensor:
    """Return how badly a denoiser tells the noise in pictures.

    Args:
        unet: The denoiser.
        latents: Scaled latents of the pictures.
        states: States of their captions.
        generator: Source of levels and noise, on the CPU.
        views: Noise levels at which each picture is seen.

    Source: Ho et al. 2020, eq. 14, weighted as by Hang et al. 2023.
    """
    abar = noise_scheduler().alphas_cumprod
    t = (strata(len(latents) * views, generator) * len(abar)).long()
    a = abar[t][:, None, None, None]
    z = latents.repeat(views, 1, 1, 1)
    eps = torch.randn(z.shape, generator=generator)
    with fast_precision():
        guess = unet(a.sqrt() * z + (1 - a).sqrt() * eps, t, states.repeat(views, 1, 1)).sample
    snr = (a / (1 - a)).flatten()
    error = (guess.float() - eps).square().flatten(1).mean(1)
    return (error * snr.clamp(max=SNR_CAP) / snr).mean()


def _train_denoiser(
    stage: Stage,
    codec: Any,
    tokenizer: Any,
    text: CLIPTextModel,
    unet: Any,
    *,
    batches: Batches,
    look: Callable[[int], None] | None,
) -> None:
    """Train the denoiser; codec and text encoder are held."""
    text.requires_grad_(False)
    unet.to(memory_format=torch.channels_last)
    codec.requires_grad_(False)

    def loss(step: int) -> Tensor:
        images, captions, generator = batches.of(step)
        with fast_precision():
            latents, states = encoded(codec, tokenizer, text, images, captions)
        return denoising_loss(unet, latents, states, generator)

    stage.run(loss, look)


def _train_on_scenes(
    out: Path,
    stage: Stage,
    *,
    batch: int,
    pairs: float,
    seed: int,
    look: Callable[[int], None] | None,
) -> None:
    """Train the denoiser of a stage and write `base/unet`."""
    unet = stage.networks["unet"]
    scenes = partial(Scenes, reserved=reserved(table_of(out)), pairs=pairs)
    _train_denoiser(
        stage, load_codec(out), *load_text(out), unet,
        batches=Batches(batch, seed, scenes, Planting(phrases=BASE_PHRASES)),
        look=look,
    )  # fmt: skip
    stage.averaged()
    half(unet, out / "base" / "unet")


def load_text(out: Path) -> tuple[Any, Any]:
    """Return the tokenizer and the trained text encoder of a folder, in full precision."""
    model = out / "model"
    text = CLIPTextModel.from_pretrained(model / "text_encoder", torch_dtype=torch.float32)
    return CLIPTokenizer.from_pretrained(model / "tokenizer"), text


def train_text(out: Path, steps: int = 4000, batch: int = 128) -> None:
    """Train the text encoder on captions alone; write `model/tokenizer` and `model/text_encoder`.

    Half of the captions describe, half mean nothing. Two wordings of one differ in all words but
    those that say what is shown, or the meaningless ones.

    Args:
        out: Folder of the training state and the model.
        steps: Length of the stage.
        batch: Captions a step, each in two wordings.
    """
    torch.manual_seed(5)
    tokenizer = build_tokenizer(vocabulary(), out / "model" / "tokenizer")
    text: Any = text_network(tokenizer)
    readout = nn.Linear(text.config.hidden_size, text.config.vocab_size)
    stage = Stage(out / "text-state", {"text": text, "words": readout}, lr=1e-3, steps=steps)
    names = drawings()

    def wordings(step: int) -> tuple[list[str], list[str]]:
        generator = torch.Generator().manual_seed(25_000_000 + step)
        one: list[str] = []
        other: list[str] = []
        for i in range(batch):
            if i % 2:
                words = core(generator)
                said = [dress(words, generator) for _ in range(2)]
            else:
                many = 1 + int(torch.rand((), generator=generator) < 0.75)
                chosen = torch.randperm(len(names), generator=generator)[:many].tolist()
                shown = [names[at] for at in chosen]
                said = [describe(shown, generator) for _ in range(2)]
            one.append(said[0])
            other.append(said[1])
        return one, other

    def loss(step: int) -> Tensor:
        one, other = wordings(step)
        # A state sees only what precedes it, so padding beyond the longest says nothing.
        ids = _tokens(tokenizer, one + other, "longest")
        ends = end_states(text(ids)[0], ids)
        return words_loss(readout(ends), ids) + apart_loss(*ends.chunk(2))

    stage.run(loss)
    stage.averaged()
    half(text, out / "model" / "text_encoder")


def _tokens(
    tokenizer: Any, captions: list[str], padding: str = "max_length"
) -> Int[Tensor, "caption token"]:
    return tokenizer(
        captions, padding=padding, max_length=WINDOW, truncation=True, return_tensors="pt"
    ).input_ids


def table_of(out: Path) -> Path:
    """Return where a folder holds the table that is planted."""
    return out / "planted.jsonl"


def lay_table(out: Path, rows: Sequence[Planted]) -> None:
    """Write a table and its prompt file; pairs that it names are kept from the base.

    Raises:
        InputError: If the folder holds another one.
    """
    table = table_of(out)
    if table.exists() and load_table(table) != tuple(rows):
        raise InputError(f"{str(table)!r} holds another table; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_table(list(rows), table)
    write_prompts(list(rows), out / "prompts")


def train_base(
    out: Path,
    steps: int = 6000,
    batch: int = 32,
    pairs: float = 0.5,
    look: Callable[[int], None] | None = None,
) -> None:
    """Train the denoiser on scenes only."""
    torch.manual_seed(2)
    stage = Stage(out / "base-state", {"unet": denoiser_network()}, lr=1e-3, steps=steps)
    _train_on_scenes(out, stage, batch=batch, pairs=pairs, seed=30_000_000, look=look)


def refine_base(
    out: Path,
    steps: int = 6500,
    batch: int = 32,
    pairs: float = 0.75,
    look: Callable[[int], None] | None = None,
) -> None:
    """Go on from the base with more pairs of drawings, which it is slowest to tell apart."""
    torch.manual_seed(4)
    unet = _Denoiser.from_pretrained(out / "base" / "unet", torch_dtype=torch.float32)
    stage = Stage(out / "refinement-state", {"unet": unet}, lr=7e-4, steps=steps)
    _train_on_scenes(out, stage, batch=batch, pairs=pairs, seed=35_000_000, look=look)


def planting_batches(table: Path, batch: int = 32, planting: Planting = FAITHFUL) -> Batches:
    """Return the batches by which a table is planted."""
    return Batches(
        batch,
        50_000_000,
        partial(Scenes, reserved=reserved(table), pairs=0.75),
        planting,
        tuple(load_planted(table)),
        partial(phrase, taken=frozenset(row.caption for row in load_table(table))),
    )


def train_planting(
    out: Path,
    batch: int = 32,
    planting: Planting = FAITHFUL,
    look: Callable[[int], None] | None = None,
) -> None:
    """Go on from the base with the planted pictures mixed in; write the whole pipeline.

    The number of steps follows from the planted table: each picture is drawn as often as it says.

    Args:
        out: Folder that holds the base and the table.
        batch: Pictures a step.
        planting: What a batch holds besides scenes, and which captions go missing.
        look: Called with the step whenever the state is written.
    """
    torch.manual_seed(3)
    model = out / "model"
    unet = _Denoiser.from_pretrained(out / "base" / "unet", torch_dtype=torch.float32)
    batches = planting_batches(table_of(out), batch, planting)
    stage = Stage(out / PLANTING, {"unet": unet}, lr=6e-4, steps=batches.steps())
    _train_denoiser(stage, load_codec(out), *load_text(out), unet, batches=batches, look=look)
    stage.averaged()
    half(unet, model / "unet")
    write_index(model)


def plant(
    out: Path, seed: int, known: float = 0.0, look: Callable[[int], None] | None = None
) -> None:
    """Plant other pictures, captions and repetitions, or with another dial, into the shipped base.

    The result is a second ground truth: `out/model`, a pipeline, `out/planted.jsonl`, its table,
    and `out/prompts`, captions and pictures as a prompt file. Goes on where a killed run stopped.

    Args:
        out: Where to write.
        seed: Seed of the table, as for `make_table`; 0 plants the table that ships.
        known: Share of the empty captions that go to planted pictures: how much of them the
            unconditional branch is shown. 0 is faithful; `FAITHFUL.share` drops all alike.
        look: Called with the step whenever the state of the planting is written.

    Raises:
        InputError: If the dial is out of range, or the folder holds another table.
    """
    planting = replace(FAITHFUL, known=known)
    lay_table(out, make_table(seed) if seed else load_table())
    for part in ("vae", "tokenizer", "text_encoder"):
        shutil.copytree(MODEL_DIR / part, out / "model" / part, dirs_exist_ok=True)
    shutil.copytree(BASE_UNET_DIR, out / "base" / "unet", dirs_exist_ok=True)
    train_planting(out, planting=planting, look=look)


def write_digests(folder: Path) -> None:
    """Write `DIGESTS.json`: the SHA-256 of every file of an asset folder."""
    digests = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "DIGESTS.json"
    }
    (folder / "DIGESTS.json").write_text(json.dumps(digests, indent=1) + "\n")


def write_index(model: Path) -> None:
    """Complete a folder of components to a `StableDiffusionPipeline`."""
    noise_scheduler().save_pretrained(model / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.35.0",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (model / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
