"""Which duplicates of a picture the audit finds before any call, and how many it invents.

Pictures are copied in one way each, and every copy is looked for among all pictures: the planted
ones of the lab and its scenes, or those of a folder of yours. What is found between two pictures
that are no copies is invented.

    python -m benchmarks.duplicates [FOLDER] [--scenes N]

Contents: `main`.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from tqdm import tqdm

from benchmarks.table import Row, show
from mnemoscope.data.images import load_image
from mnemoscope.data.sets import read_set
from mnemoscope.lab.planted import load_planted
from mnemoscope.lab.scenes import Scenes
from mnemoscope.ranking.markdown import table
from mnemoscope.ranking.suspects import Prints, alike, recoloured
from mnemoscope.severity.nearest import BYTES, SIDE, fingerprint

SIZE = 64, 64
COPIED = 200
"""Pictures that are copied, at most."""
CROWD = 5000
"""Pictures that are nearly equal, but for noise of two grey levels."""
FOUND, INVENTED = 0.9, 1e-3
"""Least share of changed copies that is found, and most pictures with a twin that is none."""

Change = Callable[[Image.Image], Image.Image]


def saved(quality: int) -> Change:
    """Save as JPEG."""

    def change(image: Image.Image) -> Image.Image:
        held = io.BytesIO()
        image.save(held, "JPEG", quality=quality)
        return Image.open(held).convert("RGB")

    return change


def resized(factor: float) -> Change:
    """Change the number of pixels."""
    return lambda image: image.resize(
        (round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC
    )


def gamma(by: float) -> Change:
    """Bend the tones."""
    return lambda image: image.point([round(255 * (i / 255) ** by) for i in range(256)] * 3)


def turned(degrees: float) -> Change:
    """Turn the hue."""

    def change(image: Image.Image) -> Image.Image:
        hue, *rest = image.convert("HSV").split()
        moved = hue.point([(i + round(degrees / 360 * 255)) % 256 for i in range(256)])
        return Image.merge("HSV", (moved, *rest)).convert("RGB")

    return change


def cropped(share: float) -> Change:
    """Keep a share of either side, anywhere."""

    def change(image: Image.Image) -> Image.Image:
        rng = np.random.default_rng(np.frombuffer(image.tobytes()[:64], dtype=np.uint8))
        wide, high = round(image.width * share), round(image.height * share)
        x, y = rng.integers(0, (image.width - wide + 1, image.height - high + 1))
        return image.crop((x, y, x + wide, y + high))

    return change


KINDS: dict[str, Change] = {
    "saved as JPEG, quality 75": saved(75),
    "quality 30": saved(30),
    "quality 10": saved(10),
    "half the size": resized(0.5),
    "twice the size": resized(2.0),
    "brightness 1.1": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "brightness 0.7": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "contrast 0.7": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "gamma 0.8": gamma(0.8),
    "gamma 1.4": gamma(1.4),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "saturation 0.6": lambda image: ImageEnhance.Color(image).enhance(0.6),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "hue turned by 10°": turned(10),
    "hue turned by 40°": turned(40),
    "cropped to 95 %": cropped(0.95),
    "cropped to 90 %": cropped(0.9),
    "cropped to 80 %": cropped(0.8),
}
MISSED = tuple(KINDS)[-5:]
"""Kinds that are told, and have no limit."""


def pixels(image: Image.Image) -> torch.Tensor:
    """Return a picture, RGB from 0 to 1."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255


def pictured(of: torch.Tensor) -> Image.Image:
    """Return a picture, of RGB from 0 to 1."""
    return Image.fromarray((of * 255).round().byte().permute(1, 2, 0).numpy())


def prints_of(images: Sequence[Image.Image]) -> Prints:
    """Return the prints of pictures."""
    made = b"".join(fingerprint(pixels(image), SIZE) for image in images)
    return np.frombuffer(made, dtype=np.uint8).reshape(-1, BYTES)


def pictures(folder: Path | None, scenes: int) -> tuple[list[Image.Image], Prints]:
    """Return the pictures that are copied, and the prints of all, those first."""
    if folder is not None:
        sources = [item.image for item in read_set(folder) if item.image is not None]
        every = [pictured(load_image(source).pixels) for source in sources]
        return every[:COPIED], prints_of(every)
    # Those of a template differ by their colours indeed.
    planted = [pictured(one.image()) for one in load_planted() if one.family == "verbatim"]
    drawn, made = Scenes(78_000_000, pairs=0.75), [prints_of(planted)]
    quiet = not sys.stderr.isatty()
    for start in tqdm(range(0, scenes, 500), unit="scenes", disable=quiet):
        some = drawn.batch(min(500, scenes - start))[0]
        made.append(prints_of([pictured(one) for one in some]))
    return planted[:COPIED], np.concatenate(made)


def shares(images: Sequence[Image.Image], every: Prints) -> dict[str, tuple[float, float]]:
    """Return the share of copies whose original is found, as alike and as recoloured, by kind."""
    found: dict[str, tuple[float, float]] = {}
    for name, change in KINDS.items():
        both = np.concatenate([every, prints_of([change(image) for image in images])])
        own = np.arange(len(images))
        twins = [search(both)[1][len(every) :] == own for search in (alike, recoloured)]
        found[name] = float(twins[0].mean()), float((twins[0] | twins[1]).mean())
    return found


def seconds(search: Callable[[Prints], object], prints: Prints) -> float:
    """Return the CPU seconds of a search."""
    start = time.process_time()
    search(prints)
    return time.process_time() - start


def main(folder: Path | None, scenes: int) -> bool:
    """Measure, print, and return whether every limit is kept."""
    images, every = pictures(folder, scenes)
    found = shares(images, every)
    print(table(
        ["copy", "alike", "alike or recoloured"],
        [[name, *(f"{share:.2f}" for share in both)] for name, both in found.items()],
    ))  # fmt: skip
    rng = np.random.default_rng(0)
    one = rng.normal(128, 40, BYTES) + rng.normal(0, 2, (CROWD, BYTES))
    crowd = one.round().clip(0, 255).astype(np.uint8)
    rows = [
        Row(name, f"{both[1]:.2f}", f"{both[0]:.2f}", both[1], None if name in MISSED else FOUND,
            at_most=False)
        for name, both in found.items()
    ]  # fmt: skip
    for search in (alike, recoloured):
        name, twins = search.__name__, int((search(every)[0] > 0).sum())
        took, many = seconds(search, every), seconds(search, crowd)
        rows += [
            Row(f"{name}: a twin that is none", f"{twins}", f"{len(every)}", twins / len(every),
                INVENTED),
            Row(f"{name}: CPU of all", f"{took:.1f} s", "", took, None),
            Row(f"{name}: CPU of {CROWD} nearly equal", f"{many:.1f} s", "", many, None),
        ]  # fmt: skip
    note = f"{len(images)} pictures copied, {len(every)} in all, prints of {SIDE} x {SIDE} blocks"
    return show("Duplicates before any call", rows, note)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path, help="a data set in place of the lab's")
    parser.add_argument("--scenes", type=int, default=20_000, help="scenes beside planted pictures")
    given = parser.parse_args()
    sys.exit(not main(given.folder, given.scenes))
