r"""A data set is images with captions on disk, in whatever layout training code keeps them.

Formulas, for an item with a caption::

    prompt_id = that of the caption as a prompt (`data.prompts`), so equal captions have one name
    digest    = SHA-256 over name, caption and size of every item, and the sizes of what holds them

Layouts::

    folder of images      captions in .txt files of the same stem
    folder with metadata  metadata.jsonl, .csv or .parquet: a path and a caption a row
    .jsonl .csv .parquet  the same, or pictures inside: a column of bytes or of {bytes, path}; in
                          JSON the bytes are base64
    .tar                  WebDataset: members of one stem are an item, the caption in .txt,
                          .caption or .json; one file or a folder of them
    folder of .arrow      a split that Hugging Face's `datasets` has saved; .parquet likewise

A set is read as a stream and never held: a pass yields one item after another, and 8 bytes of each
stay. An item that cannot be used says why and ends nothing.

Contents: `Item`; `DataSet` and `read_set`; `Captions`, the distinct captions of a set as prompts.
"""

import csv
import hashlib
import json
import os
import stat
import tarfile
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Shaped

from mnemoscope.data.images import MAX_BYTES, ImageSource, resolve_inside
from mnemoscope.data.packed import MAX_ENCODED, Cell, Encoded, Member, Packed, batches_of
from mnemoscope.data.prompts import (
    IMAGE_COLUMNS,
    MAX_GROUP,
    MAX_LINE,
    TEXT_COLUMNS,
    Prompt,
    PromptList,
    cleaned,
    hashed,
)
from mnemoscope.errors import InputError

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
"""Endings of files that are taken for pictures."""
COLUMNS = (*IMAGE_COLUMNS, "img", "png", "jpg", "jpeg", "webp")
"""Columns that hold a picture, or where it lies."""
CAPTIONS = (".txt", ".caption")
"""Endings of files that hold a caption."""
TABLES = (".jsonl", ".csv", ".parquet", ".arrow")
BATCH = 256
"""Rows of a table that are unpacked at a time."""
MAX_SIDECAR = 2**20
"""Longest caption file that is read, in bytes."""

BLANK = 0
"""Key of an item without a caption."""


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a data set.

    Attributes:
        name: Where it stands in the set.
        text: Its caption; "" where it has none.
        image: Its picture; None where it cannot be used.
        reason: Why picture or caption cannot be used; "" where both can.
    """

    name: str
    text: str
    image: ImageSource | None
    reason: str = ""

    @property
    def key(self) -> int:
        """Return the name of its caption as a number of 64 bits; `BLANK` where it has none."""
        return int(hashed(self.text), 16) if self.text else BLANK


@dataclass(frozen=True)
class DataSet:
    """A data set that was gone through once.

    Attributes:
        path: File or folder.
        digest: SHA-256 over its listing.
        keys: Key of each item's caption, in order.
    """

    path: Path
    digest: str
    keys: Shaped[np.ndarray, " item"] = field(repr=False)

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Item]:
        """Go through the set again.

        Raises:
            InputError: If it has changed since it was read; told at the end.
        """
        content = hashlib.sha256()
        for item in _items(self.path, content.update):
            content.update(_told(item))
            yield item
        if content.hexdigest() != self.digest:
            raise InputError(f"data set {str(self.path)!r} has changed since it was read")

    def picked(self, places: "set[int]") -> dict[int, Item]:
        """Return the items at some places, by place; one pass through the set."""
        return {at: item for at, item in enumerate(self) if at in places}


def read_set(path: str | Path) -> DataSet:
    """Go through a data set once.

    Args:
        path: A file or folder of one of the layouts.

    Returns:
        The set, which is read anew by each pass; items that cannot be used are among its items.

    Raises:
        InputError: If there is no such file or folder, it is of no known layout, a table cannot be
            read at all, or it holds no item.
    """
    path = Path(path)
    content, keys = hashlib.sha256(), array("Q")
    for item in _items(path, content.update):
        content.update(_told(item))
        keys.append(item.key)
    if not keys:
        raise InputError(f"data set {str(path)!r} holds no items")
    return DataSet(path, content.hexdigest(), np.frombuffer(keys, dtype=np.uint64))


class Captions:
    """The distinct captions of a data set as prompts, each with the image that it came with first.

    Args:
        dataset: The set.
        usable: Whether each item's picture can be used; without it prompts have no image.
    """

    def __init__(self, dataset: DataSet, usable: Shaped[np.ndarray, " item"] | None = None) -> None:
        self.dataset = dataset
        self.usable = usable
        keys, firsts, counts = np.unique(dataset.keys, return_index=True, return_counts=True)
        order = np.argsort(firsts)
        order = order[keys[order] != BLANK]
        self.keys, self.firsts, self.counts = keys[order], firsts[order], counts[order]

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Prompt]:
        at = 0
        for place, item in enumerate(self.dataset):
            if at < len(self) and place == self.firsts[at]:
                shown = self.usable is not None and bool(self.usable[place])
                held = (item.image,) if shown and item.image is not None else ()
                yield Prompt(f"{self.keys[at]:016x}", item.text, held)
                at += 1

    def listed(self) -> PromptList:
        """Return them as a list of prompts.

        Raises:
            InputError: If no item has a caption.
        """
        if not len(self):
            raise InputError(f"data set {str(self.dataset.path)!r} holds no captions")
        return PromptList(self.dataset.digest, len(self), self)

    def only(self, places: Shaped[np.ndarray, " some"]) -> PromptList:
        """Return some of them as a list of prompts, in their order, read as it is gone through.

        Args:
            places: Which, ascending.
        """
        chosen = np.zeros(len(self), dtype=bool)
        chosen[places] = True
        digest = hashlib.sha256(self.dataset.digest.encode() + chosen.tobytes()).hexdigest()
        return PromptList(digest, len(places), _Some(self, chosen))


@dataclass(frozen=True)
class _Some:
    """Some captions of a set, in their order."""

    captions: Captions
    chosen: Shaped[np.ndarray, " caption"]

    def __iter__(self) -> Iterator[Prompt]:
        pairs = zip(self.captions, self.chosen, strict=True)
        return (prompt for prompt, chosen in pairs if chosen)


def _told(item: Item) -> bytes:
    size = _size(item.image)
    row = [item.name, item.text, size, item.image is None]
    return (json.dumps(row, ensure_ascii=True) + "\n").encode()


def _size(image: ImageSource | None) -> int:
    """Return the size of a picture's file; 0 where what holds it was counted."""
    if isinstance(image, Path):
        return image.stat().st_size
    return image.length if isinstance(image, Member) else 0


Told = Callable[[bytes], None]
"""Told of what holds items, as it is opened."""


def _items(path: Path, told: Told) -> Iterator[Item]:
    try:
        if path.is_dir():
            yield from _folder(path, told)
        elif path.is_file():
            yield from _file(path, told)
        else:
            raise InputError(f"no data set {str(path)!r}: no such file or folder")
    except OSError as error:
        raise InputError(f"data set {str(path)!r} cannot be read: {error}") from error


def _folder(path: Path, told: Told) -> Iterator[Item]:
    if (path / "dataset_dict.json").is_file():
        splits = sorted(part.name for part in path.iterdir() if part.is_dir())
        raise InputError(
            f"{str(path)!r} holds splits; give the folder of one: {', '.join(splits) or 'none'}"
        )
    names = sorted(os.listdir(path))
    metadata = [name for name in names if name in {f"metadata{suffix}" for suffix in TABLES}]
    if len(metadata) > 1:
        raise InputError(
            f"{str(path)!r} holds {' and '.join(metadata)}; give the one that is meant"
        )
    if metadata:
        yield from _file(path / metadata[0], told)
        return
    for suffix in (".arrow", ".parquet", ".tar"):
        if shards := [name for name in names if name.lower().endswith(suffix)]:
            for shard in shards:
                yield from _file(path / shard, told)
            return
    yield from _pictures(path)


def _file(path: Path, told: Told) -> Iterator[Item]:
    readers: dict[str, Callable[[Path], Iterator[Item]]] = {
        ".tar": _tar, ".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet, ".arrow": _arrow,
    }  # fmt: skip
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"cannot tell the layout of {str(path)!r}; expected a folder of images, "
            f"{', '.join(readers)}"
        )
    told(f"{path.name} {path.stat().st_size}\n".encode())
    yield from reader(path)


def _made(name: str, text: Any, image: ImageSource | None, reason: str = "") -> Item:
    """Return an item whose caption is checked."""
    if text is None:
        text = ""
    if not isinstance(text, str):
        return Item(name, "", image, f"the caption is no text but {type(text).__name__}")
    try:
        text = cleaned(text, "caption", name)
    except InputError as error:
        return Item(name, "", image, reason or str(error))
    return Item(name, text if text.strip() else "", image, reason)


def _pictures(root: Path) -> Iterator[Item]:
    """Go through a folder of pictures and its folders, in the order of names."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() not in PICTURES:
                continue
            shown = os.path.relpath(os.path.join(folder, name), root)
            beside = (os.path.join(folder, stem + end) for end in CAPTIONS)
            image, reason = _inside(root, shown)
            caption = next((Path(path) for path in beside if os.path.isfile(path)), None)
            try:
                text = "" if caption is None else _sidecar(caption)
            except (OSError, UnicodeDecodeError) as error:
                text, reason = "", reason or f"the caption cannot be read: {error}"
            yield _made(shown, text, image, reason)


def _sidecar(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(MAX_SIDECAR).decode("utf-8-sig").strip()


def _inside(root: Path, name: str) -> tuple[Path | None, str]:
    """Return a picture of a folder, or why it cannot be used."""
    path = os.path.join(root, name)
    try:
        # Following every link of a path takes ten times as long as asking whether its end is one.
        plain = stat.S_ISREG(os.lstat(path).st_mode)
        if not (plain and _holds(os.path.dirname(path), str(root))):
            resolve_inside(Path(path), root)
        if os.stat(path).st_size > MAX_BYTES:
            return None, f"the picture has more than {MAX_BYTES // 2**20} MiB"
    except (OSError, ValueError, InputError) as error:
        return None, str(error)
    return Path(path), ""


@lru_cache(maxsize=1000)
def _holds(folder: str, root: str) -> bool:
    return Path(folder).resolve().is_relative_to(Path(root).resolve())


def _of_row(
    name: str, row: Mapping[str, Any], root: Path, packed: Callable[[str], Packed] | None
) -> Item:
    """Return the item of a row of a table.

    Args:
        name: Where it stands.
        row: What it holds; a picture that lies in the table is not among it.
        root: What paths are relative to.
        packed: Makes the picture of a column that holds pictures.
    """
    text = next((row[column] for column in TEXT_COLUMNS if row.get(column) is not None), None)
    column = next((column for column in COLUMNS if row.get(column) is not None), None)
    if column is None:
        return _made(name, text, None, "no picture is named")
    given: Any = row[column]
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if isinstance(given, str):
        image, reason = _inside(root, given)
        return _made(given, text, image, reason)
    if packed is None or not isinstance(given, dict | bool):
        return _made(name, text, None, f"the picture is a {type(given).__name__}, no path or bytes")
    return _made(name, text, packed(column))


def _jsonl(path: Path) -> Iterator[Item]:
    with path.open("rb") as file:
        start, number = 0, 0
        while line := file.readline(MAX_ENCODED + 1):
            number += 1
            if len(line) > MAX_ENCODED:
                raise InputError(f"{path}:{number}: the line is longer than {MAX_ENCODED} bytes")
            name, begin, start = f"{path.name}:{number}", start, start + len(line)
            if not line.strip():
                continue
            try:
                row: Any = json.loads(line.decode("utf-8-sig"))
                if not isinstance(row, dict):
                    raise ValueError(f"a {type(row).__name__} in place of an object")
            except (ValueError, RecursionError) as error:
                yield Item(name, "", None, f"broken line: {error}"[:200])
                continue
            length = len(line)
            yield _of_row(
                name, row, path.parent, lambda c, b=begin, n=length: Encoded(path, c, b, n)
            )


def _csv(path: Path) -> Iterator[Item]:
    with path.open(encoding="utf-8-sig", newline="", errors="replace") as file:
        reader = csv.DictReader(file, strict=False)
        try:
            for row in reader:
                name = f"{path.name}:{reader.line_num}"
                if None in row:
                    yield Item(name, "", None, "more cells than columns; quote cells with commas")
                    continue
                yield _of_row(
                    name, {key: cell or None for key, cell in row.items()}, path.parent, None
                )
        except csv.Error as error:
            raise InputError(f"{path}:{reader.line_num}: broken CSV: {error}") from error


def _known(schema: pa.Schema, path: Path) -> tuple[list[str], str | None]:
    """Return the columns to read, and the one that holds pictures themselves."""
    names = [name for name in schema.names if name in (*TEXT_COLUMNS, *COLUMNS)]
    inside = [name for name in names if _holds_bytes(schema.field(name).type)]
    if not any(name in TEXT_COLUMNS for name in names) or not any(n in COLUMNS for n in names):
        raise InputError(
            f"{str(path)!r} has the columns {', '.join(schema.names)[:200]}; expected a caption "
            f"({', '.join(TEXT_COLUMNS)}) and a picture ({', '.join(COLUMNS)})"
        )
    return [name for name in names if name not in inside], inside[0] if inside else None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(part.name == "bytes" for part in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _parquet(path: Path) -> Iterator[Item]:
    try:
        with pq.ParquetFile(path) as file:
            names, inside = _known(file.schema_arrow, path)
            for group in range(file.metadata.num_row_groups):
                parts = file.metadata.row_group(group)
                size = sum(
                    parts.column(at).total_uncompressed_size
                    for at in range(parts.num_columns)
                    if parts.column(at).path_in_schema.split(".")[0] in names
                )
                if size > MAX_GROUP:
                    raise InputError(
                        f"{path}: row group {group} unpacks to {size} bytes beside its pictures, "
                        f"more than {MAX_GROUP}; write smaller row groups"
                    )
                batches = file.iter_batches(
                    BATCH, row_groups=[group], columns=names, use_threads=False
                )
                yield from _rows(path, group, batches, inside)
    except pa.ArrowException as error:
        raise InputError(f"{path}: no readable Parquet file: {error}") from error


def _arrow(path: Path) -> Iterator[Item]:
    try:
        batches = batches_of(path)
        if not batches:
            return
        names, inside = _known(batches[0].schema, path)
        for group, batch in enumerate(batches):
            yield from _rows(path, group, iter([batch.select(names)]), inside)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: no readable Arrow file: {error}") from error


def _rows(
    path: Path, group: int, batches: Iterator[pa.RecordBatch], inside: str | None
) -> Iterator[Item]:
    at = 0
    for batch in batches:
        for start in range(0, len(batch), BATCH):
            for row in batch.slice(start, BATCH).to_pylist():
                held = row if inside is None else row | {inside: True}
                place = at
                yield _of_row(
                    f"{path.name}:{group}:{at}", held, path.parent,
                    lambda column, row=place: Cell(path, column, group, row),
                )  # fmt: skip
                at += 1


def _tar(path: Path) -> Iterator[Item]:
    """Go through a WebDataset: members that follow each other and share a stem are an item."""
    stem, parts = "", dict[str, tarfile.TarInfo]()
    try:
        with tarfile.open(path, "r:") as file:

            def item() -> Item:
                return _of_members(path, stem, parts)

            while (member := file.next()) is not None:
                # Members that were seen are kept by tarfile, which adds up over millions.
                cast(Any, file).members = []
                if not member.isfile() or "/." in f"/{member.name}":
                    continue
                folder, base = os.path.split(member.name)
                head, _, end = base.partition(".")
                key = os.path.join(folder, head)
                if key != stem and parts:
                    yield item()
                    parts = {}
                stem = key
                parts[f".{end.lower()}"] = member
            if parts:
                yield item()
    except tarfile.TarError as error:
        raise InputError(
            f"{path}: no readable tar: {error}; a compressed one is unpacked first"
        ) from error


def _of_members(path: Path, stem: str, parts: Mapping[str, tarfile.TarInfo]) -> Item:
    name = f"{path.name}/{stem}"
    picture = next((parts[end] for end in PICTURES if end in parts), None)
    text, reason = None, "" if picture is not None else "no picture of a known ending"
    caption = next((parts[end] for end in (*CAPTIONS, ".json") if end in parts), None)
    try:
        if caption is not None:
            if caption.size > MAX_LINE:
                raise ValueError(f"it has {caption.size} bytes")
            data = _bytes_of(path, caption).decode("utf-8-sig")
            text = data.strip()
            if caption.name.endswith(".json"):
                told: Any = json.loads(data)
                text = next((told[c] for c in TEXT_COLUMNS if told.get(c) is not None), None)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        text, reason = None, reason or f"the caption cannot be read: {error}"
    image = picture and Member(path, picture.name, picture.offset_data, picture.size)
    return _made(name, text, image, reason)


def _bytes_of(path: Path, member: tarfile.TarInfo) -> bytes:
    return Member(path, member.name, member.offset_data, member.size).fetch()
