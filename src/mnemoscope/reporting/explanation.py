r"""An explanation is shown as a page: which words and places of a prompt's samples are memorized.

Three forms of the same: a page in one HTML file, without scripts; words and positions as CSV; a PNG
a map. Prompt and tokens are hostile text: the page escapes them and spells out what cannot be seen,
the CSV keeps them from being formulas.

Contents: `read`, from a run folder; `write`, `page`, `picture`; `sentence`, the answer.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mnemoscope.core.explanation import Explanation, Part, Token, Word
from mnemoscope.data.images import decode
from mnemoscope.errors import RunError
from mnemoscope.reporting.export import csv
from mnemoscope.reporting.page import PARTS, digest, environment
from mnemoscope.reporting.text import number, percent, visible
from mnemoscope.runs.folder import Run
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

EDGES = (0.01, 0.99)
"""Quantiles that a map's colours run between: a few extreme places would darken all others."""

MAPPED = "viridis"
"""Colour map: even in brightness, and safe for colour-blind readers."""

TINTS = 10
"""Steps in which words are tinted."""

BRIGHT = 0.1
"""Share of a map's places whose share of the map is told."""

COLOURS: dict[Part, str] = {
    "begin": "var(--schedule)",
    "text": "var(--memorized)",
    "end": "var(--control)",
    "padding": "var(--plain)",
}
"""Colour of each part of the window."""

SIDE = 128
"""Pixels a sample is at least shown with on the page."""


def read(run: Run, prompt_id: str) -> Explanation:
    """Read the explanation of a prompt from a run of `mnemoscope explain`.

    Args:
        run: The run.
        prompt_id: The prompt.

    Raises:
        RunError: If the run holds none of it, or none of its samples was finished.
    """

    def rows(name: str) -> list[dict[str, Any]]:
        return [row for row in run.table(name).to_pylist() if row["prompt_id"] == prompt_id]

    prompts = rows("prompts")
    if not prompts:
        raise RunError(f"{str(run.path)!r} explains no prompt {prompt_id!r}")
    prompt = prompts[0]
    samples = {row["seed"]: row for row in rows("samples") if row["image"] is not None}
    if not samples:
        raise RunError(f"no sample of {prompt_id!r} was finished: {rows('samples')[0]['reason']}")
    maps: dict[str, list[Tensor]] = {}
    for row in rows("maps"):
        if row["seed"] in samples:
            values = torch.tensor(row["values"], dtype=torch.float64)
            maps.setdefault(row["map"], []).append(values.unflatten(0, (-1, row["width"])))
    images = {
        row["reference_id"]: row["image"]
        for row in run.table("references").to_pylist()
        if row["reference_id"] in prompt["references"][:1]
    }
    tokens = [
        Token(
            row["position"], row["text"], row["part"], row["attribution"],
            *(np.nan if row[name] is None else row[name]
              for name in ("attention_first", "attention_last")),
        )
        for row in rows("tokens")
    ]  # fmt: skip
    return Explanation(
        prompt["prompt"],
        tuple(
            Word(row["text"], row["start"], row["change"], row["low"], row["high"])
            for row in rows("words")
        ),
        tuple(tokens),
        {name: torch.stack(values) for name, values in maps.items()},
        {row["what"]: row["reason"] for row in rows("missing")},
        torch.stack([decode(row["image"]) for row in samples.values()]),
        next((decode(image) for image in images.values()), None),
        len(tokens) if prompt["truncated"] else None,
    )


def sentence(shown: Explanation) -> str:
    """Say in one sentence which words and which places are memorized.

    Source: ours.
    """
    said: list[str] = []
    if shown.words:
        order = sorted(shown.words, key=lambda word: -word.change)
        first, last = order[0], order[-1]
        said.append(
            f"What the prompt does hangs most on “{visible(first.text, 60)}”: leaving it out "
            f"changes {percent(first.change)} of it"
            + (
                f", and least on “{visible(last.text, 60)}” ({percent(last.change)})"
                if len(order) > 1
                else ""
            )
        )
    if "squared gap" in shown.maps:
        share = _brightest(shown.maps["squared gap"])
        said.append(
            f"the brightest {percent(BRIGHT)} of the places hold {percent(share)} of the squared "
            "gap at the end"
        )
    text = "; ".join(said) or "Nothing could be told of words or places"
    return f"{text[0].upper()}{text[1:]}."


def _brightest(values: Float[Tensor, "seed rows columns"]) -> float:
    """Return the share of a map that its brightest places hold, mean over seeds."""
    each = values.flatten(1).sort(dim=1, descending=True).values
    most = each[:, : max(1, round(BRIGHT * each.shape[1]))].sum(dim=1)
    return float((most / each.sum(dim=1)).mean())


def coloured(
    values: Float[Tensor, "seed rows columns"],
) -> UInt8[np.ndarray, "seed rows columns 3"]:
    """Colour a map, from its 1 % to its 99 % quantile over all seeds.

    Source: ours.
    """
    low, high = _range(values)
    scaled = ((values - low) / max(high - low, 1e-12)).clamp(0, 1).numpy()
    return np.asarray(mpl.colormaps[MAPPED](scaled, bytes=True)[..., :3])


def _range(values: Tensor) -> tuple[float, float]:
    low, high = torch.quantile(values.flatten().double(), torch.tensor(EDGES, dtype=torch.float64))
    return float(low), float(high)


def picture(shown: Explanation, name: str) -> Image.Image:
    """Draw a map below the samples, a column a seed.

    Source: ours.
    """
    sized = F.interpolate(shown.maps[name][:, None].float(), shown.pictures.shape[-2:])[:, 0]
    pairs = zip(_pixels(shown.pictures), coloured(sized.double()), strict=True)
    return Image.fromarray(np.hstack([np.vstack(pair) for pair in pairs]))


def _pixels(pictures: Float[Tensor, "picture 3 rows columns"]) -> UInt8[np.ndarray, "..."]:
    return (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


@dataclass(frozen=True)
class Piece:
    """A piece of a prompt, tinted from 0 to `TINTS`."""

    text: str
    tint: int


def tinted(shown: Explanation) -> list[Piece]:
    """Cut a prompt into its words and what stands between them.

    Source: ours.
    """
    most = max((word.change for word in shown.words), default=0.0)
    pieces: list[Piece] = []
    at = 0
    for word in shown.words:
        if word.start > at:
            pieces.append(Piece(shown.prompt[at : word.start], 0))
        tint = round(TINTS * max(0.0, word.change) / most) if most > 0 else 0
        pieces.append(Piece(word.text, tint))
        at = word.start + len(word.text)
    if at < len(shown.prompt):
        pieces.append(Piece(shown.prompt[at:], 0))
    return pieces


def page(shown: Explanation, control: Explanation | None = None) -> str:
    """Return the page, HTML that fetches nothing and runs nothing.

    Args:
        shown: The explanation.
        control: That of an ordinary prompt, for scale.

    Source: ours.
    """
    style = (PARTS / "style.css").read_text("utf-8")
    both = [one for one in (shown, control) if one is not None]
    return (
        environment()
        .get_template("explanation.html.j2")
        .render(
            both=both,
            shown=shown,
            pieces=[tinted(one) for one in both],
            answer=sentence(shown),
            most=max((word.high for one in both for word in one.words), default=0.0),
            highest=max((t.attribution for one in both for t in one.tokens), default=0.0),
            shares=[_shares(one) for one in both],
            colours=COLOURS,
            maps=[_column(shown, name) for name in shown.maps],
            samples=[_url(pixels) for pixels in _pixels(shown.pictures)],
            target=None if shown.target is None else _url(_pixels(shown.target[None])[0]),
            bar=_url(mpl.colormaps[MAPPED](np.linspace(0, 1, 64), bytes=True)[None, :, :3]),
            style=style,
            style_digest=digest(style),
        )
    )


def _shares(shown: Explanation) -> list[tuple[Part, float]]:
    return [(part, shown.share(part)) for part in COLOURS] if shown.tokens else []


def _column(shown: Explanation, name: str) -> dict[str, Any]:
    low, high = _range(shown.maps[name])
    # A map of 16 x 16 is drawn as such: what lies between its places is not known.
    return {
        "name": name,
        "caption": CAPTIONS[name],
        "images": [_url(pixels) for pixels in coloured(shown.maps[name])],
        # Below a hundredth of the other end it is 0 to the eye.
        "low": number(low if abs(low) > 0.01 * abs(high) else 0.0, 2),
        "high": number(high, 2),
    }


def write(shown: Explanation, folder: str | Path, control: Explanation | None = None) -> Path:
    """Write explanation.html, words.csv, tokens.csv and a PNG a map.

    Args:
        shown: The explanation.
        folder: Where to.
        control: That of an ordinary prompt, for scale.

    Returns:
        Path of the page.

    Raises:
        RunError: If the folder cannot be written.

    Source: ours.
    """
    folder = Path(folder)
    parts: tuple[tuple[str, Sequence[Any]], ...] = (
        ("words", shown.words),
        ("tokens", shown.tokens),
    )
    for name, rows in parts:
        if rows:
            table = pa.Table.from_pylist([asdict(row) for row in rows])
            write_atomically(folder / f"{name}.csv", csv(table).encode("utf-8", "replace"))
    for name in shown.maps:
        write_atomically(folder / f"{name.replace(' ', '-')}.png", _png(picture(shown, name)))
    target = folder / "explanation.html"
    write_atomically(target, page(shown, control).encode("utf-8", "replace"))
    return target


def _url(pixels: UInt8[np.ndarray, "rows columns 3"]) -> str:
    data = base64.b64encode(_png(Image.fromarray(np.asarray(pixels)))).decode("ascii")
    return f"data:image/png;base64,{data}"


def _png(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()
