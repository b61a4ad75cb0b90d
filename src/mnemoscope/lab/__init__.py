"""The lab is a small Stable Diffusion whose training data, and so whose memories, are known.

Contents: `scenes` draws captioned pictures without end, `planted` holds the pictures that were
shown again and again, `train` makes the model from both, `lora` trains an adapter on its base,
`judge` says what a picture shows, `evaluate` measures what the model kept. The finished model lies
in `assets`. `small` trains small denoisers from scratch, `kept` looks at a planting on its way,
`laws` says what both show.
"""

from mnemoscope.models.shipped import ASSETS, BASE_UNET_DIR, MODEL_DIR

__all__ = ["ARTWORK_DIR", "ASSETS", "BASE_UNET_DIR", "JUDGE_FILE", "MODEL_DIR"]

ARTWORK_DIR = ASSETS / "artwork"
JUDGE_FILE = ASSETS / "judge.safetensors"
