"""Which duplicates of a picture the audit finds before any call, and how many it invents.

Pictures are copied in one way each, and every copy is looked for among all pictures: the planted
ones of the lab and its scenes, or those of a folder of yours. What is found between two pictures
that are no copies is invented.

    python -m benchmarks.duplicates [FOLDER] [--scenes N] [--embedding NAME [--sscd FILE]]

Prints know nothing of crops and turned hues; with an embedding, its descriptors are asked as well.
What shows the same drawing on another ground is a copy to these, so in the lab what they invent has
no limit.

Contents: `main`.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from tqdm import tqdm

from benchmarks.table import Row, show
from mnemoscope.data.images import load_image
from mnemoscope.data.sets import read_set
from mnemoscope.flows.items import embedding_of
from mnemoscope.lab.planted import load_planted
from mnemoscope.lab.scenes import Scenes
from mnemoscope.ranking.markdown import table
from mnemoscope.ranking.suspects import Neighbours, Prints, alike, recoloured
from mnemoscope.severity.described import Described, Descriptors
from mnemoscope.severity.nearest import BYTES, SIDE, fingerprint
from mnemoscope.similarity import Describing

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


@dataclass(frozen=True)
class Pictures:
    """What is compared of some pictures.

    Attributes:
        prints: Their prints.
        descriptors: Their descriptors; None without an embedding.
    """

    prints: Prints
    descriptors: Descriptors | None

    def __add__(self, other: "Pictures") -> "Pictures":
        """Join two lots."""
        told = (self.descriptors, other.descriptors)
        known = [one for one in told if one is not None]
        return Pictures(
            np.concatenate([self.prints, other.prints]), np.concatenate(known) if known else None
        )

    def twins(self) -> dict[str, Neighbours]:
        """Search among them in every way."""
        found = {"alike": alike(self.prints), "recoloured": recoloured(self.prints)}
        if self.descriptors is None:
            return found
        return found | {"edited": Described("", self.descriptors).copies()}


def looked(images: Iterable[Image.Image], embedding: Describing | None) -> Pictures:
    """Return what is compared of pictures, which are read as they are taken."""
    made = list[bytes]()

    def seen() -> Iterator[torch.Tensor]:
        for image in images:
            made.append(fingerprint(pixels(image), SIZE))
            yield pixels(image)

    if embedding is None:
        made = [fingerprint(pixels(image), SIZE) for image in images]
    told = None if embedding is None else embedding.embed(seen()).half().numpy()
    return Pictures(np.frombuffer(b"".join(made), dtype=np.uint8).reshape(-1, BYTES), told)


def pictures(
    folder: Path | None, scenes: int, embedding: Describing | None
) -> tuple[list[Image.Image], Pictures]:
    """Return the pictures that are copied, and what is compared of all, those first."""
    if folder is not None:
        sources = [item.image for item in read_set(folder) if item.image is not None]
        every = [pictured(load_image(source).pixels) for source in sources]
        return every[:COPIED], looked(every, embedding)
    # Those of a template differ by their colours indeed.
    planted = [pictured(one.image()) for one in load_planted() if one.family == "verbatim"]
    planted, drawn = planted[:COPIED], Scenes(78_000_000, pairs=0.75)

    def others() -> Iterator[Image.Image]:
        quiet = not sys.stderr.isatty()
        for start in tqdm(range(0, scenes, 500), unit="scenes", disable=quiet):
            yield from map(pictured, drawn.batch(min(500, scenes - start))[0])

    return planted, looked(chain(planted, others()), embedding)


def shares(
    images: Sequence[Image.Image], every: Pictures, embedding: Describing | None
) -> dict[str, list[float]]:
    """Return the share of copies whose original is found, by kind: by one way, by two, by all."""
    found: dict[str, list[float]] = {}
    for name, change in KINDS.items():
        both = every + looked(map(change, images), embedding)
        own = np.arange(len(images))
        right = [nearest[len(every.prints) :] == own for _, nearest in both.twins().values()]
        found[name] = [float(some.mean()) for some in np.logical_or.accumulate(right)]
    return found


def seconds(search: Callable[[], object]) -> float:
    """Return the CPU seconds of a search."""
    start = time.process_time()
    search()
    return time.process_time() - start


def main(folder: Path | None, scenes: int, embedding: Describing | None) -> bool:
    """Measure, print, and return whether every limit is kept."""
    start = time.process_time()
    images, every = pictures(folder, scenes, embedding)
    read = time.process_time() - start
    found = shares(images, every, embedding)
    ways = every.twins()
    print(table(
        ["copy", *(" or ".join([*ways][: k + 1]) for k in range(len(ways)))],
        [[name, *(f"{share:.2f}" for share in all_of)] for name, all_of in found.items()],
    ))  # fmt: skip
    rng = np.random.default_rng(0)
    one = rng.normal(128, 40, BYTES) + rng.normal(0, 2, (CROWD, BYTES))
    crowd = one.round().clip(0, 255).astype(np.uint8)
    prints, told = every.prints, every.descriptors
    rows = [
        Row(name, f"{all_of[-1]:.2f}", f"{all_of[0]:.2f}", all_of[-1],
            None if name in MISSED else FOUND, at_most=False)
        for name, all_of in found.items()
    ]  # fmt: skip
    rows += [
        Row(f"{name}: a twin that is none", f"{(counts > 0).sum()}", f"{len(prints)}",
            (counts > 0).mean(), None if name == "edited" else INVENTED)
        for name, (counts, _) in ways.items()
    ]  # fmt: skip
    timed: dict[str, Callable[[], object]] = {
        "alike": lambda: alike(prints),
        "recoloured": lambda: recoloured(prints),
        f"alike, {CROWD} nearly equal": lambda: alike(crowd),
        f"recoloured, {CROWD} nearly equal": lambda: recoloured(crowd),
    }
    if told is not None:
        timed["edited"] = Described("", told).copies
    for name, search in timed.items():
        took = seconds(search)
        rows.append(Row(f"{name}: CPU", f"{took:.1f} s", "", took, None))
    rows.append(Row("pictures read: CPU", f"{read:.1f} s", "", read, None))
    note = f"{len(images)} pictures copied, {len(prints)} in all, prints of {SIDE} x {SIDE} blocks"
    return show("Duplicates before any call", rows, note)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path, help="a data set in place of the lab's")
    parser.add_argument("--scenes", type=int, default=20_000, help="scenes beside planted pictures")
    parser.add_argument("--embedding", help="a measure with descriptors, as sscd:official_320")
    parser.add_argument("--sscd", type=Path, help="file of SSCD's network")
    given = parser.parse_args()
    named = None if given.embedding is None else embedding_of(given.embedding, given.sscd)
    sys.exit(not main(given.folder, given.scenes, named))
