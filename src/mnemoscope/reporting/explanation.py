r"""An explanation is shown as a page: which tokens and places of a prompt's samples are memorized.

Three forms of the same: a page in one HTML file, without scripts; the tokens as CSV; a PNG a map.
Prompt and tokens are hostile text: the page escapes them and spells out what cannot be seen, the
CSV keeps them from being formulas.

Contents: `write`, `page`, `picture`.
"""

import base64
import io
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from PIL import Image

from mnemoscope.core.explanation import Explanation
from mnemoscope.reporting.export import csv
from mnemoscope.reporting.page import PARTS, digest, environment
from mnemoscope.runs.records import write_atomically

CAPTIONS = {
    "squared gap": "The squared difference between the prediction with the prompt and the one "
    "without, over σ², summed over channels, at the last call (Wen et al. 2024; Kim & Lee 2026).",
    "curvature": "How much sharper the prompt makes the density around the sample: the positive "
    "part of the diagonal of the gap's Jacobian, by Hutchinson's estimator, at the last call "
    "(Kim & Lee 2026).",
    "bright ending": "Cross-attention to the end token at the last call, finest layers on the way "
    "down (Chen et al. 2025).",
}
"""What each map shows."""

SIDE = 128
"""Pixels a sample is at least shown with on the page."""


def picture(shown: Explanation, name: str) -> Image.Image:
    """Draw a map over the samples: rows of sample, map, and sample where the map is bright.

    The brightness runs from a map's smallest to its largest value, over all seeds.

    Source: ours.
    """
    values = shown.maps[name]
    low, high = values.min(), values.max()
    bright = ((values - low) / (high - low).clamp_min(1e-12)).float()[:, None]
    sized = F.interpolate(bright, shown.pictures.shape[-2:], mode="bilinear")
    grey = sized.expand(-1, 3, -1, -1)
    rows = torch.cat([shown.pictures, grey, shown.pictures * (0.15 + 0.85 * sized)], dim=2)
    sheet = torch.cat(list(rows.clamp(0, 1)), dim=2)
    return Image.fromarray((sheet.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


def page(shown: Explanation) -> str:
    """Return the page, HTML that fetches nothing and runs nothing.

    Source: ours.
    """
    style = (PARTS / "style.css").read_text("utf-8")
    larger = max(1, -(-SIDE // shown.pictures.shape[-1]))
    sheets = [
        {
            "name": name,
            "caption": CAPTIONS[name],
            "png": base64.b64encode(_png(picture(shown, name))).decode("ascii"),
            "width": larger * shown.pictures.shape[0] * shown.pictures.shape[-1],
            "low": float(shown.maps[name].min()),
            "high": float(shown.maps[name].max()),
        }
        for name in shown.maps
    ]
    columns = [
        (name, [float(getattr(token, name)) for token in shown.tokens])
        for name in ("attribution", "attention_first", "attention_last")
    ]
    # A meter needs a range; NaN and 0 have none.
    most = {name: max((v for v in values if v > 0), default=0.0) for name, values in columns}
    return (
        environment()
        .get_template("explanation.html.j2")
        .render(
            shown=shown,
            sheets=sheets,
            most=most,
            style=style,
            style_digest=digest(style),
        )
    )


def write(shown: Explanation, folder: str | Path) -> Path:
    """Write explanation.html, tokens.csv and a PNG a map.

    Returns:
        Path of the page.

    Raises:
        RunError: If the folder cannot be written.

    Source: ours.
    """
    folder = Path(folder)
    tokens = pa.Table.from_pylist([asdict(token) for token in shown.tokens])
    write_atomically(folder / "tokens.csv", csv(tokens).encode("utf-8", "replace"))
    for name in shown.maps:
        write_atomically(folder / f"{name.replace(' ', '-')}.png", _png(picture(shown, name)))
    target = folder / "explanation.html"
    write_atomically(target, page(shown).encode("utf-8", "replace"))
    return target


def _png(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()
