"""A part is the rows that one unit of work left in one table: a Parquet file that never changes.

Contents: `encode`, `decode`, `chunks`.
"""

import io
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mnemoscope.runs.tables import Table

MAX_PART = 2**29
"""Largest part that is read, in bytes, as a file and once it is unpacked."""

Item = TypeVar("Item")


def chunks(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    """Cut an iterable into tuples of a size, the last one shorter."""
    left = iter(items)
    while some := tuple(islice(left, size)):
        yield some


def encode(table: Table, rows: pa.Table) -> bytes:
    """Return rows of a table as a Parquet file."""
    sink = io.BytesIO()
    # Splitting floats by byte lets zstd find the exponents, which repeat, apart from the mantissas.
    floats = [c.name for c in table.columns if pa.types.is_floating(c.type)]
    by_column: dict[str, Any] = {
        "use_dictionary": [c.name for c in table.columns if c.name not in floats],
        "use_byte_stream_split": floats,
    }
    pq.write_table(
        rows.cast(table.schema),
        sink,
        compression="zstd",
        compression_level=6,
        write_page_checksum=True,
        **by_column,
    )
    return sink.getvalue()


def decode(data: bytes, rows: int | None = None) -> pa.Table:
    """Return the rows in a Parquet file.

    Args:
        data: The file.
        rows: How many there must be; any number where not given.

    Raises:
        ValueError: If there are others, or they unpack into more than a part may hold.
        OSError: If a page differs from its checksum.
        ArrowException: If it is no Parquet file.
    """
    # Arrow's pools read what is a Python file, and what they are asked to read in parallel. One of
    # their threads that still wants Python's lock when the interpreter ends aborts the process.
    source = pa.BufferReader(data)
    with pq.ParquetFile(source) as file:
        metadata, schema = file.metadata, file.schema
        if rows is not None and metadata.num_rows != rows:
            raise ValueError(f"it has {metadata.num_rows} rows and not {rows}")
        columns = [
            metadata.row_group(group).column(at)
            for group in range(metadata.num_row_groups)
            for at in range(metadata.num_columns)
        ]
        packed = [schema.column(at).path for at in range(len(schema))
                  if schema.column(at).physical_type == "BYTE_ARRAY"]  # fmt: skip
    # A column that repeats few values takes no bytes to speak of until it is unpacked.
    _require(sum(part.total_uncompressed_size for part in columns))
    _require(sum(part.num_values for part in columns) * 8)
    source = pa.BufferReader(data)
    with pq.ParquetFile(source, page_checksum_verification=True, read_dictionary=packed) as file:
        found = file.read(use_threads=False)
        _require(sum(map(_unpacked, found.columns)))
        return found.cast(_plain(found.schema))


def _require(size: int) -> None:
    if size > MAX_PART:
        raise ValueError(f"it unpacks into {size} bytes, more than {MAX_PART}")


def _unpacked(column: pa.ChunkedArray) -> int:
    """Return how many bytes a column has once its values stand in every row."""
    total = 0
    for chunk in column.chunks:
        while pa.types.is_list(chunk.type):
            chunk = chunk.values
        if not pa.types.is_dictionary(chunk.type):
            total += chunk.nbytes
            continue
        lengths = pc.call_function("binary_length", [chunk.dictionary])
        sizes = lengths.to_numpy(zero_copy_only=False).astype(np.int64)
        used = chunk.indices.drop_null().to_numpy()
        total += int(sizes[used].sum())
    return total


def _plain(schema: pa.Schema) -> pa.Schema:
    """Return a schema whose columns hold their values themselves."""
    return pa.schema([field.with_type(_value_type(field.type)) for field in schema],
                     schema.metadata)  # fmt: skip


def _value_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_value_type(kind.value_type)))
    return kind
