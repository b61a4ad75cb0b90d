"""Models turn prompts and noise into images by a denoiser, a conditioner and a codec.

`load_model` takes a name: `embedded`, `oracle:memorizer`, `oracle:gaussian`, `oracle:mixture`, a
local diffusers folder, a `.safetensors` checkpoint, or a hub id.
"""

from mnemoscope.models.base import SCHEDULERS, Model
from mnemoscope.models.load import load_model

__all__ = ["SCHEDULERS", "Model", "load_model"]
