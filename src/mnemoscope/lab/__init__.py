"""The lab is a small Stable Diffusion whose training data, and so whose memories, are known.

Contents: `scenes` draws captioned pictures without end, `planted` holds the pictures that were
shown again and again, `train` makes the model from both, `judge` says what a picture shows,
`evaluate` measures what the model kept. The finished model lies in `assets`.
"""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
ARTWORK_DIR = ASSETS / "artwork"
MODEL_DIR = ASSETS / "model"
BASE_UNET_DIR = ASSETS / "base" / "unet"
JUDGE_FILE = ASSETS / "judge.safetensors"
