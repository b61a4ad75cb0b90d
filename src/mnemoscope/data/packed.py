"""A packed picture lies inside a larger file: a member of a tar, a cell of a table, a line's text.

It names where its bytes are and holds none of them, so a list of millions is small and can be
pickled. Tables are read a group of rows at a time, and the group read last is held.

Contents: `Packed`, `Member`, `Cell`, `Encoded`; `batches_of`, the groups of rows of a table.
"""

import base64
import binascii
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mnemoscope.errors import InputError

MAX_COLUMN = 2**30
"""Largest column of a row group that is unpacked, in bytes."""
MAX_ENCODED = 2**29
"""Longest line that holds a picture as text, in bytes."""
DAMAGED = (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError, pa.ArrowException)


class Packed(ABC):
    """A picture inside a larger file; subclasses are frozen dataclasses."""

    @abstractmethod
    def fetch(self) -> bytes:
        """Read the file of the picture; raises any of `DAMAGED`."""

    def read(self) -> bytes:
        """Return the bytes of the picture's own file.

        Raises:
            InputError: If they cannot be read.
        """
        try:
            return self.fetch()
        except DAMAGED as error:
            raise InputError(f"image {str(self)!r} cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class Member(Packed):
    """A member of a tar that is not compressed.

    Attributes:
        file: The tar.
        name: Name of the member.
        start: Where its bytes begin.
        length: How many there are.
    """

    file: Path
    name: str
    start: int
    length: int

    def __str__(self) -> str:
        return f"{self.file}/{self.name}"

    def fetch(self) -> bytes:
        """Read its bytes alone."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            return file.read(self.length)


@dataclass(frozen=True, slots=True)
class Cell(Packed):
    """A cell of a Parquet or Arrow file: bytes, or a struct that holds them as `bytes`.

    Attributes:
        file: The file.
        column: The column.
        group: Which group of rows.
        row: Which row of it.
    """

    file: Path
    column: str
    group: int
    row: int

    def __str__(self) -> str:
        return f"{self.file}:{self.column}[{self.group}, {self.row}]"

    def fetch(self) -> bytes:
        """Read its group of rows, unless that is held."""
        value = _column(self.file, self.column, self.group)[self.row].as_py()
        data = value["bytes"] if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise ValueError("the cell holds no bytes")
        return data


@dataclass(frozen=True, slots=True)
class Encoded(Packed):
    """A picture in base64 in a line of JSON, as `{"image": {"bytes": "..."}}`.

    Attributes:
        file: The file.
        column: Name of its entry.
        start: Where the line begins, in bytes.
        length: Length of the line, in bytes.
    """

    file: Path
    column: str
    start: int
    length: int

    def __str__(self) -> str:
        return f"{self.file}:byte {self.start}"

    def fetch(self) -> bytes:
        """Read its line and decode."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            row = json.loads(file.read(self.length))
        try:
            return base64.b64decode(row[self.column]["bytes"], validate=True)
        except binascii.Error as error:
            raise ValueError(f"no base64: {error}") from error


@lru_cache(maxsize=4)
def batches_of(file: Path) -> Sequence[pa.RecordBatch]:
    """Map an Arrow file, of either of its two formats, and return its batches.

    Nothing but their bounds is read; columns are as they are taken.
    """
    mapped = pa.memory_map(str(file), "r")
    try:
        return list(pa.ipc.open_stream(mapped))
    except pa.ArrowInvalid:
        reader = pa.ipc.open_file(mapped)
        return [reader.get_batch(at) for at in range(reader.num_record_batches)]


@lru_cache(maxsize=2)
def _column(file: Path, column: str, group: int) -> Any:
    if file.suffix.lower() == ".arrow":
        return batches_of(file)[group].column(column)
    with pq.ParquetFile(file) as table:
        leaves = range(table.metadata.num_columns)
        parts = [table.metadata.row_group(group).column(leaf) for leaf in leaves]
        mine = [part for part in parts if part.path_in_schema.split(".")[0] == column]
        size = sum(part.total_uncompressed_size for part in mine)
        if size > MAX_COLUMN:
            raise ValueError(f"row group {group} unpacks to {size} bytes; write smaller ones")
        return table.read_row_group(group, columns=[column], use_threads=False)[column]
