"""Models turn prompts and noise into images by a denoiser, a conditioner and a codec.

`load_model` takes a name (`embedded`, `oracle:memorizer`, `oracle:gaussian`, `oracle:mixture`, a
local diffusers folder, a `.safetensors` checkpoint, or a hub id), a `Source`, or a pipeline object.
"""

from mnemoscope.models.base import SCHEDULERS, Model
from mnemoscope.models.load import load_model
from mnemoscope.models.source import Source

__all__ = ["SCHEDULERS", "Model", "Source", "load_model"]
