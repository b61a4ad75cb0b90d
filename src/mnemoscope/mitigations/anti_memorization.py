r"""Anti-memorization guidance: away from the nearest reference, wherever the estimate nears it.

Formulas, at a call of time t, with D the decoder, f the descriptor of a picture, n the reference
whose descriptor is nearest, y that of the first call by its caption, and Δ = eps_c - eps_u::

    s      = <f(D(x0_g)), f(n)>                    similarity of the guided clean estimate
    limit  = floor + 0.1·exp(-0.005·t)
    s1     = clip(strength·(g - 1)·s / 0.5, 0, g - 1)               less of the prompt
    s2     = clip(strength·(g - 1 - s1)·s / 0.3, 0, g - 1 - s1)     away from its caption
    guided = eps_u + (g - s1)·Δ - s2·(eps_y - eps_u)                where s > limit
    guided += sigma·100·strength·(s' - floor)·exp((1000 - t)/170)·grad_x s'
                                                   where s' > limit, of what was guided so far
    guided = eps_u + g·Δ                           elsewhere

The gradient goes through decoder and descriptor, not through the network. Descriptors are SSCD's,
for which the published floor is, or without its file the pixels less their mean, by which unrelated
pictures are more alike: the floor is then to be set. The authors' code searches LAION online, and
takes s1 off wherever s > 0; y is here that of the first call, so that it is a branch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from mnemoscope.core.predict import Prediction
from mnemoscope.data.images import fit
from mnemoscope.data.prompts import Prompt, read_prompts
from mnemoscope.data.references import References
from mnemoscope.errors import InputError, ModelError
from mnemoscope.mitigations.base import Bounds, Mitigation
from mnemoscope.sampling.condition import Condition, cat
from mnemoscope.sampling.hooks import Decode, Latents, Start, Step
from mnemoscope.similarity.sscd import PRESETS, load_sscd, prepare

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
"""Endings of the files that a folder of references is searched for."""

PRESET = "official_320"
"""How pictures are prepared for SSCD."""


@dataclass(frozen=True)
class AntiMemorization(Mitigation):
    """Guide away from the nearest reference and its caption, and less towards the prompt.

    Attributes:
        strength: What all three weights are multiplied by.
        references: Training images: a folder of pictures, or a prompt file that names them.
        sscd: TorchScript file of SSCD; pixels are compared where not given.
        floor: Similarity from which it acts late on the path; a tenth more at the end of it.
    """

    name: ClassVar[str] = "anti_memorization"
    source: ClassVar[str] = "AMG, Chen et al. 2024, arXiv 2404.00922, the authors' code"
    strengths: ClassVar[tuple[float, ...]] = (0.25, 0.5, 1.0, 2.0)
    neutral: ClassVar[float | None] = 0.0
    branches_asked: ClassVar[tuple[str, ...]] = ("neighbour",)
    files: ClassVar[bool] = True
    bounds: ClassVar[Bounds] = {"floor": (-1.0, 1.0)}

    strength: float = 1.0
    references: str = ""
    sscd: str = ""
    floor: float = 0.3

    @property
    def calls_before(self) -> int:
        """Return the prompt and the blank one, whose guided estimate names the caption."""
        return 2

    def branches(self, start: Start) -> Mapping[str, Condition]:
        """Ask for the caption of the reference that the first call is nearest to."""
        blank = start.predict(start.noise, start.uncond, start.rows)
        pull = start.predict(start.noise, start.cond, start.rows).x0 - blank.x0
        named = blank.x0 + start.guidance * pull
        index, decode = self._index, _decoder(self, start.decode)
        with torch.no_grad():
            _, nearest = index.nearest(decode(named))
        captions = [index.captions[at] for at in nearest.tolist()]
        rows = [
            start.uncond.take([row]) if caption is None else start.encode([caption])
            for row, caption in enumerate(captions)
        ]
        return {"neighbour": cat(rows)}

    def guide(self, step: Step) -> Latents:
        """Guide away from what the estimate is nearest to."""
        plain = step.guided()
        if not self.strength:
            return plain
        index, decode = self._index, _decoder(self, step.decode)
        time = float(step.point.timestep)
        limit = self.floor + 0.1 * math.exp(-0.005 * time)
        alpha, sigma = (part.to(step.x) for part in step.point.level)
        most = max(step.guidance - 1, 0.0)

        def said(raw: Latents) -> Prediction:
            return Prediction.from_raw(step.kind, raw, step.x.to(raw), step.point.level)

        with torch.no_grad():
            near, _ = index.nearest(decode(said(plain).x0))
        less = (self.strength * most * near / 0.5).clamp(0, most)
        away = torch.minimum((self.strength * (most - less) * near / 0.3).clamp_min(0), most - less)
        bare = step.raw["uncond"]
        used = step.guided(step.guidance - less)
        used = used - step.each(away).to(used) * (step.raw["neighbour"] - bare)
        used = torch.where(step.each(near > limit), used, plain)
        if bool((near > limit).any()):
            of = said(used)
            still, uphill = index.climbed(of.x0, decode)
            weight = 100 * self.strength * (still - self.floor) * math.exp((1000 - time) / 170)
            moved = of.eps + sigma * step.each(weight).to(sigma) * uphill / alpha
            repelled = step.raw_of(Prediction((step.x - sigma * moved) / alpha, moved))
            acts = (near > limit) & (still > limit)
            used = torch.where(step.each(acts), repelled.to(used), used)
        return used

    @property
    def _index(self) -> "Index":
        if not self.references:
            raise InputError(
                f"{self.name} steers away from training images; name them, as "
                f"'{self.name}(references=FOLDER)'"
            )
        return index_of(self.references, self.sscd)


def _decoder(asking: Mitigation, decode: Decode | None) -> Decode:
    if decode is None:
        raise ModelError(f"{asking.name} looks at pictures, and latents cannot be decoded here")
    return decode


class Index:
    """References ready to be compared with pictures, and climbed towards.

    Args:
        references: The references.
        captions: Caption of each; None where it has none.
        sscd: File of SSCD; empty for pixels.
    """

    def __init__(self, references: References, captions: list[str | None], sscd: str) -> None:
        self.captions = captions
        self._references = references
        self._network = load_sscd(PRESET, Path(sscd)).network if sscd else None
        self._held: dict[tuple[int, int], Float[Tensor, "reference feature"]] = {}

    def describe(
        self, images: Float[Tensor, "image 3 height width"]
    ) -> Float[Tensor, "image feature"]:
        """Return unit descriptors of pictures, differentiable."""
        images = images.float().cpu()
        if self._network is not None:
            return normalize(self._network(prepare(images, PRESETS[PRESET])), dim=1)
        flat = images.flatten(1)
        return normalize(flat - flat.mean(dim=1, keepdim=True), dim=1)

    def nearest(
        self, images: Float[Tensor, "image 3 height width"]
    ) -> tuple[Float[Tensor, " image"], Int[Tensor, " image"]]:
        """Return the similarity of each picture to its nearest reference, and which that is."""
        height, width = images.shape[-2:]
        if (height, width) not in self._held:
            size = (height, width)
            with torch.no_grad():
                self._held[size] = torch.cat(
                    [self.describe(fit(r.pixels, size)[None]) for r in self._references]
                )
        likeness = self.describe(images) @ self._held[height, width].mT
        found, at = likeness.max(dim=1)
        return found.to(images.device), at

    def climbed(self, x0: Latents, decode: Decode) -> tuple[Float[Tensor, " sample"], Latents]:
        """Return the similarity of clean latents to what is nearest, and its gradient there."""
        with torch.enable_grad():
            leaf = x0.detach().requires_grad_()
            found, _ = self.nearest(decode(leaf))
            (uphill,) = torch.autograd.grad(found.sum(), leaf)
        return found.detach(), uphill


@lru_cache(maxsize=2)
def index_of(path: str, sscd: str) -> Index:
    """Read references and make them ready; the last two indices are held.

    Args:
        path: A folder of pictures, or whatever `read_prompts` takes.
        sscd: File of SSCD; empty for pixels.

    Raises:
        InputError: If there is no picture, or one cannot be read.
        ModelError: If the network cannot be used.
    """
    if Path(sscd).suffix == ".onnx":
        raise ModelError(f"{sscd!r} has no gradient; give SSCD's TorchScript file")
    folder = Path(path)
    loose = folder.is_dir() and not any(folder.glob("metadata.*"))
    prompts = _loose(folder) if loose else tuple(read_prompts(path))
    told = {prompt.prompt_id: "" if loose else prompt.text for prompt in prompts}
    references = References(prompt for prompt in prompts if prompt.group != "control")
    if not references.entries:
        raise InputError(
            f"no training image in {path!r}; expected a folder of {', '.join(PICTURES)}, or a "
            "prompt file whose prompts name theirs"
        )
    captions = [told[entry.prompt_ids[0]] or None for entry in references.entries]
    return Index(references, captions, sscd)


def _loose(folder: Path) -> tuple[Prompt, ...]:
    """Return the pictures of a folder as prompts that say nothing."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)
    return tuple(Prompt(str(file), str(file), images=(file,)) for file in files)
