"""Opens every picture of a data set once, and says what each item is: table `items`.

Items are read a chunk at a time and written as they are read, so a set of any size is gone through
with what is known of each held alone: a name, a print of 192 bytes, and a descriptor where an
embedding is asked for.

Contents: `Opened` and `open_items`; `embedding_of`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt64
from tqdm import tqdm

from mnemoscope.data.images import ImageSource, Pixels, load_image
from mnemoscope.data.sets import BLANK, DataSet, Item
from mnemoscope.errors import InputError
from mnemoscope.flows.confirming import Images
from mnemoscope.flows.detect import DELAY
from mnemoscope.flows.options import similarity_of
from mnemoscope.ranking.suspects import words_of
from mnemoscope.runs.execute import chunks
from mnemoscope.runs.folder import Run, Writer
from mnemoscope.runs.manifest import Manifest
from mnemoscope.runs.tables import TABLES
from mnemoscope.severity.described import Described, Descriptors
from mnemoscope.severity.nearest import BYTES, Whole, fingerprint
from mnemoscope.similarity import Describing

ITEMS = 1024
"""Items whose rows are written together."""


@dataclass(frozen=True)
class Opened:
    """What is known of the items of a data set.

    Attributes:
        images: Their pictures.
        words: A name for the words of each item's caption (`words_of`).
    """

    images: Images
    words: UInt64[np.ndarray, " item"]


def embedding_of(name: str, weights: str | Path | None) -> Describing:
    """Return a measure whose descriptors are compared.

    Args:
        name: Its name, such as "sscd:official_320".
        weights: File of SSCD's network.

    Raises:
        InputError: If it has no descriptors.
        ModelError: If its network cannot be loaded.
    """
    found = similarity_of(name, weights)
    if not isinstance(found, Describing):
        raise InputError(
            f"embedding {name!r} given, which has no descriptors; expected a measure that has, "
            "such as sscd:official_320"
        )
    return found


def open_items(
    dataset: DataSet,
    size: tuple[int, int],
    embedding: Describing | None,
    writer: Writer,
    manifest: Manifest,
    progress: bool = False,
) -> Opened:
    """Open every picture once, and write what each item is; goes on where it stopped.

    Args:
        dataset: The data set.
        size: Height and width of the model's images.
        embedding: Describes the pictures; None where only prints are compared.
        writer: Takes the rows, a unit a chunk.
        manifest: What the folder holds.
        progress: Whether to draw a progress bar on standard error.
    """
    count = len(dataset)
    words = np.zeros(count, dtype=np.uint64)
    prints = np.zeros((count, BYTES), dtype=np.uint8)
    names = np.zeros(count, dtype=np.uint64)
    descriptors: Descriptors | None = None
    sources: list[ImageSource | None] = []
    done, before = writer.finished(), Run(writer.path, manifest)
    with tqdm(total=count, unit="item", disable=not progress, leave=False, delay=DELAY) as bar:
        for at, items in enumerate(chunks(dataset, ITEMS)):
            unit = f"items-{at:06d}"
            if unit in done:
                rows = before.part("items", unit).to_pylist()
            else:
                rows = _rows(at * ITEMS, items, size, embedding)
                writer.append(unit, {"items": TABLES["items"].of_rows(rows)})
            for item, row in zip(items, rows, strict=True):
                place = len(sources)
                usable = row["reference_id"] is not None
                words[place] = words_of(item.text) if item.text else BLANK
                sources.append(item.image if usable else None)
                if usable:
                    names[place] = int(row["reference_id"], 16)
                    prints[place] = np.frombuffer(row["print"], dtype=np.uint8)
                if row["descriptor"] is not None:
                    found = np.frombuffer(row["descriptor"], dtype=np.float16)
                    if descriptors is None:
                        descriptors = np.full((count, len(found)), np.nan, dtype=np.float16)
                    descriptors[place] = found
            bar.update(len(items))
    described = None
    if embedding is not None and descriptors is not None:
        described = Described(embedding.name, descriptors)
    return Opened(Images(Whole(prints, names, size, described), sources), words)


def _rows(
    first: int, items: Sequence[Item], size: tuple[int, int], embedding: Describing | None
) -> list[dict[str, Any]]:
    """Open the pictures of some items, one after the other, and say what each item is."""
    if embedding is None:
        return [_row(at, item, size)[0] for at, item in enumerate(items, first)]
    rows = list[dict[str, Any]]()

    def opened() -> Iterator[Pixels]:
        for at, item in enumerate(items, first):
            row, pixels = _row(at, item, size)
            rows.append(row)
            if pixels is not None:
                yield pixels

    found = embedding.embed(opened()).half().numpy()
    usable = (row for row in rows if row["reference_id"] is not None)
    for row, descriptor in zip(usable, found, strict=True):
        row["descriptor"] = descriptor.tobytes()
    return rows


def _row(at: int, item: Item, size: tuple[int, int]) -> tuple[dict[str, Any], Pixels | None]:
    """Open an item's picture, and say what it is."""
    name, made, pixels, reason = None, None, None, item.reason
    if item.image is not None:
        try:
            image = load_image(item.image)
            name, made = image.reference_id, fingerprint(image.pixels, size)
            pixels = image.pixels
        except InputError as error:
            reason = reason or str(error)
    row = {
        "item": at,
        "name": item.name,
        "prompt_id": f"{item.key:016x}" if item.text else None,
        "reference_id": name,
        "print": made,
        "descriptor": None,
        "reason": reason or None,
    }
    return row, pixels
