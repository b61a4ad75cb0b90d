"""The data set of a lab model is what its planting showed: planted pictures, and scenes seen once.

Planted pictures were drawn again and again; here each stands once, as in a data set whose repeats
were taken out, or are not exact. The scenes are the very ones of the training steps, in order, each
under the caption that it had then: a describing one, or a phrase that belongs to no picture.

Contents: `write_dataset`.
"""

import json
from itertools import islice
from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mnemoscope.errors import InputError
from mnemoscope.lab.planted import TABLE, load_planted, pictures_of
from mnemoscope.lab.train import planting_batches

METADATA = "metadata.jsonl"


def write_dataset(folder: Path, further: int, table: Path = TABLE) -> Path:
    """Write the data set of a lab model as a folder of images with captions.

    A folder that holds one already is left as it is: its list is written last.

    Args:
        folder: Where to.
        further: How many scenes that were seen once.
        table: The planted table.

    Returns:
        The folder.

    Raises:
        InputError: If the planting had fewer scenes.
    """
    if (folder / METADATA).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []

    def add(name: str, picture: Float[Tensor, "3 64 64"], caption: str, **more: Any) -> None:
        pixels = (picture.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / f"{name}.png")
        lines.append({"file_name": f"{name}.png", "text": caption, **more})

    rows = load_planted(table)
    for row, picture in zip(rows, pictures_of(rows), strict=True):
        add(row.id, picture, row.caption, level=row.level, repetitions=row.repetitions)
    for at, (picture, caption) in enumerate(islice(planting_batches(table).once(), further)):
        add(f"s{at:05d}", picture, caption, level=0, repetitions=1)
    scenes = sum(line["level"] == 0 for line in lines)
    if scenes < further:
        raise InputError(
            f"{further} further captions asked for; the planting showed {scenes} scenes once"
        )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f".{METADATA}").write_text(text, encoding="utf-8")
    (folder / f".{METADATA}").rename(folder / METADATA)
    return folder
