"""A judge says what a picture shows, and how it looks; it has never seen a sample.

Formulas, with f the judge's k features of a picture, m and S their mean and covariance over scenes,
and e_i, e_t the embeddings of a picture and of its caption by CLIP::

    right             whether every emoji that the caption names is among the five best of all
    scene_distance    sqrt((f - m)' S^-1 (f - m) / k)         about 1 for a scene
    alignment         <e_i, e_t> / (||e_i||·||e_t||)

Contents: `Judge`, `LabJudge`, `ClipJudge`, `judges_of`.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.data.prompts import Prompt
from mnemoscope.errors import InputError, ModelError, did_you_mean
from mnemoscope.lab.judge import features, mistaken, recognised
from mnemoscope.lab.scenes import Scenes

DESCRIBING = "describing"
"""Kind of a caption of the lab that names what it shows."""

JUDGES = ("auto", "lab", "none")

SCENES = 512
"""Scenes behind mean and covariance of the judge's 96 features: five a feature."""


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_SPREAD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of red, green and blue by which CLIP was trained (Radford 2021)."""


@runtime_checkable
class Judge(Protocol):
    """Whatever can say what pictures show."""

    @property
    def accuracy(self) -> str:
        """Return how far to trust it, in words."""
        ...

    def look(
        self, images: Float[Tensor, "image 3 height width"], prompts: Sequence[Prompt]
    ) -> Mapping[str, Float[np.ndarray, " image"]]:
        """Return metrics of pictures beside their captions; NaN where one cannot be told."""
        ...


class LabJudge:
    """The lab's judge of emoji."""

    @property
    def accuracy(self) -> str:
        """Return how often it is right and wrong on scenes it has not seen."""
        # Pairs, as planted scenes and controls are.
        scenes, captions = Scenes(92_000_000, pairs=1.0).batch(256)
        found = float(recognised(scenes, captions).float().mean())
        return (
            f"the lab's judge, which finds what {found:.1%} of fresh scenes show, and what another "
            f"caption names in {mistaken(scenes, captions):.1%}"
        )

    def look(
        self, images: Float[Tensor, "image 3 height width"], prompts: Sequence[Prompt]
    ) -> Mapping[str, Float[np.ndarray, " image"]]:
        """Return whether pictures show what describing captions name, and their strangeness."""
        right = np.full(len(prompts), np.nan)
        can = [at for at, prompt in enumerate(prompts) if prompt.kind == DESCRIBING]
        if can:
            captions = [prompts[at].text for at in can]
            right[can] = recognised(images[torch.tensor(can)], captions).double().numpy()
        mean, root = self._usual
        apart = torch.linalg.solve_triangular(
            root, (features(images).double() - mean).T, upper=False
        )
        return {"right": right, "scene_distance": apart.square().mean(dim=0).sqrt().numpy()}

    @cached_property
    def _usual(self) -> tuple[Float[Tensor, " feature"], Float[Tensor, "feature feature"]]:
        """Return mean and Cholesky root of the covariance of scenes' features."""
        drawn = Scenes(93_000_000, pairs=1.0)
        seen = torch.cat([features(drawn.batch(256)[0]) for _ in range(SCENES // 256)]).double()
        return seen.mean(dim=0), torch.linalg.cholesky(seen.T.cov())


class ClipJudge:
    """A CLIP model of the user's, loaded at the first look.

    Args:
        path: Its folder, as `transformers` saves it, tokenizer included.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        if not Path(path).is_dir():
            raise ModelError(
                f"no folder {self.path!r} of a CLIP model; give one that transformers has saved"
            )

    @property
    def accuracy(self) -> str:
        """Return what it is."""
        return f"cosine of CLIP's embeddings, {Path(self.path).name}"

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        # Takes a second to import, and few ask for it.
        from transformers import CLIPModel, CLIPTokenizer

        try:
            given: dict[str, Any] = {"local_files_only": True}
            model = CLIPModel.from_pretrained(self.path, use_safetensors=True, **given)
            return model.eval(), CLIPTokenizer.from_pretrained(self.path, **given)
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"{self.path!r} cannot be loaded as CLIP: {error}") from error

    @torch.no_grad()
    def look(
        self, images: Float[Tensor, "image 3 height width"], prompts: Sequence[Prompt]
    ) -> Mapping[str, Float[np.ndarray, " image"]]:
        """Return the cosine of each picture and its caption."""
        model, tokenizer = self._loaded
        texts = [prompt.text for prompt in prompts]
        words = tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
        seen = _as_clip_sees(images, int(model.config.vision_config.image_size))
        out = model(**words, pixel_values=seen)
        return {"alignment": (out.image_embeds * out.text_embeds).sum(dim=1).double().numpy()}


def _as_clip_sees(
    images: Float[Tensor, "image 3 height width"], side: int
) -> Float[Tensor, "image 3 side side"]:
    """Resize the short side bicubically, crop at the centre, and normalize."""
    high, wide = images.shape[2:]
    scale = side / min(high, wide)
    size = [max(side, round(high * scale)), max(side, round(wide * scale))]
    resized = torch.nn.functional.interpolate(images, size, mode="bicubic", antialias=True)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    cut = resized.clamp(0, 1)[:, :, top : top + side, left : left + side]
    mean, spread = (torch.tensor(each).view(3, 1, 1) for each in (CLIP_MEAN, CLIP_SPREAD))
    return (cut - mean) / spread


def judges_of(model: str, judge: str = "auto", clip: str | Path | None = None) -> tuple[Judge, ...]:
    """Return the judges of a model's pictures.

    Args:
        model: Name of the model.
        judge: "lab" for the lab's judge, "none" for nobody, "auto" for the lab's where the model
            is the embedded one.
        clip: Folder of a CLIP model, where there is one.

    Raises:
        InputError: If there is no such judge.
        ModelError: If there is no such folder.
    """
    if judge not in JUDGES:
        raise InputError(did_you_mean(judge, JUDGES, "judge"))
    lab = judge == "lab" or (judge == "auto" and model.startswith("embedded"))
    found: list[Judge] = [LabJudge()] if lab else []
    return (*found, ClipJudge(clip)) if clip is not None else tuple(found)
