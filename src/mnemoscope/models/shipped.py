"""The model that ships inside: where its parts lie."""

from pathlib import Path

ASSETS = Path(__file__).parents[1] / "lab" / "assets"
MODEL_DIR = ASSETS / "model"
BASE_UNET_DIR = ASSETS / "base" / "unet"
"""Its denoiser before it was shown its planted images."""
EVALUATION = ASSETS / "evaluation.json"
"""What it kept of its planted images."""
CALIBRATION = ASSETS / "calibration.json"
"""Above which first-step score its prompts are suspicious."""
