r"""A codec turns images into latents of about unit variance, and back.

Formulas, with an image in [0, 1]::

    pixels        latents = 2·image - 1
    autoencoder   latents = (mode(encode(2·image - 1)) - shift)·scale
                  image   = (decode(latents / scale + shift) + 1) / 2

The autoencoder's configuration names scale and shift; some give a mean and a standard deviation of
each channel instead, with shift = mean and scale = scaling_factor / std.

Contents: `Codec`, `Pixels`, `Autoencoder`, `resized`.
"""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mnemoscope.errors import ModelError

DECODED_AT_ONCE = 8
"""Images an autoencoder's call; bounds memory: a 512-pixel image needs about 1 GB of it."""


@runtime_checkable
class Codec(Protocol):
    """Images in [0, 1] to latents and back."""

    def encode(
        self, images: Float[Tensor, "image 3 height width"]
    ) -> Float[Tensor, "image *latent"]:
        """Encode images of the model's size."""
        ...

    def decode(
        self, latents: Float[Tensor, "image *latent"]
    ) -> Float[Tensor, "image 3 height width"]:
        """Decode latents to images in [0, 1]; differentiable in latents that ask for it."""
        ...


class Pixels:
    """Pixels are their own latents.

    Args:
        channels: 3, or 1 for a model of grey pictures.
        device: Where the model runs.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        if channels not in (1, 3):
            raise ModelError(f"a model of {channels} channels has no pictures; expected 1 or 3")
        self.channels = channels
        self.device = device

    def encode(
        self, images: Float[Tensor, "image 3 height width"]
    ) -> Float[Tensor, "image *latent"]:
        """Return 2·image - 1, the mean of the channels for grey pictures."""
        own = images.float() if self.channels == 3 else images.float().mean(dim=1, keepdim=True)
        return (2 * own - 1).to(self.device)

    def decode(
        self, latents: Float[Tensor, "image *latent"]
    ) -> Float[Tensor, "image 3 height width"]:
        """Return (latents + 1) / 2, clamped to [0, 1]."""
        images = (latents.float() / 2 + 0.5).clamp(0, 1)
        return images.expand(-1, 3, *images.shape[2:])


class Autoencoder:
    """A pipeline's autoencoder, with the scale its latents are sampled in.

    Args:
        vae: The autoencoder.
        device: Where it runs.
    """

    def __init__(self, vae: Any, device: torch.device) -> None:
        self.vae = vae
        self.device = device
        config = vae.config
        shift, scale = config.get("shift_factor"), config.get("scaling_factor")
        self.shift: Any = 0.0 if shift is None else shift
        self.scale: Any = 1.0 if scale is None else scale
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            self.shift = torch.tensor(mean, device=device)[:, None, None]
            self.scale = self.scale / torch.tensor(std, device=device)[:, None, None]

    @torch.no_grad()
    def encode(
        self, images: Float[Tensor, "image 3 height width"]
    ) -> Float[Tensor, "image *latent"]:
        """Return the mode of the posterior, scaled."""
        parts = [
            _mode(self.vae.encode((2 * part - 1).to(self.device, self.vae.dtype))).float()
            for part in images.split(DECODED_AT_ONCE)
        ]
        # Without a shift nothing is subtracted, so that zeros keep their sign.
        latents = torch.cat(parts)
        return (latents - self.shift if self._shifted else latents) * self.scale

    def decode(
        self, latents: Float[Tensor, "image *latent"]
    ) -> Float[Tensor, "image 3 height width"]:
        """Decode latents to images in [0, 1]; differentiable in latents that ask for it."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and latents.requires_grad):
            own = latents.to(self.device, torch.float32) / self.scale
            own = own + self.shift if self._shifted else own
            parts = [
                self.vae.decode(part.to(self.vae.dtype), return_dict=False)[0].float()
                for part in own.split(DECODED_AT_ONCE)
            ]
            return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)

    @property
    def _shifted(self) -> bool:
        return isinstance(self.shift, Tensor) or self.shift != 0


def _mode(encoded: Any) -> Tensor:
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mode()
    for name in ("latents", "latent"):
        if hasattr(encoded, name):
            return getattr(encoded, name)
    raise ModelError(
        f"the autoencoder returned {type(encoded).__name__}; expected a distribution or latents"
    )


def resized(
    images: Float[Tensor, "image 3 height width"], size: tuple[int, int]
) -> Float[Tensor, "image 3 high wide"]:
    """Bring images in [0, 1] to a size, directly, by Lanczos, with no crop.

    Args:
        images: The images.
        size: Height and width.
    """
    return torch.stack([_resized(image, size) for image in images])


def _resized(
    image: Float[Tensor, "3 height width"], size: tuple[int, int]
) -> Float[Tensor, "3 high wide"]:
    if tuple(image.shape[1:]) == size:
        return image.float().cpu()
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    sized = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(sized)).permute(2, 0, 1).float() / 255
