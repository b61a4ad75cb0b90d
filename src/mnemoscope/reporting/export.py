"""A download is a table of the run in a form that other programs read: CSV or Parquet.

CSV is UTF-8 with a header line and comma as separator. Lists are JSON. A cell that a spreadsheet
would take for a formula is led by an apostrophe, since prompts are hostile text.

Contents: `Download`, `downloads`, `csv`.
"""

import csv as writer
import io
import json
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mnemoscope.runs.folder import Run
from mnemoscope.runs.records import write_atomically

NAMES = ("prompts", "severity", "scores", "statistics", "checks", "null", "similarities", "curves")
"""Tables offered; the others are Parquet in the run folder already, and large."""

EMBEDDED = 150_000
"""Most bytes of a table within a single file; a larger one stays in the run folder."""

FORMULA = "=+-@\t\r"
"""First characters by which a spreadsheet knows a formula."""


@dataclass(frozen=True)
class Download:
    """A file a reader can take.

    Attributes:
        name: Its name.
        href: A path beside the page, or the file itself as a data URI.
        size: Bytes.
        rows: Rows of the table.
    """

    name: str
    href: str
    size: int
    rows: int


def downloads(run: Run, folder: Path | None) -> list[Download]:
    """Offer the derived tables of a run.

    Args:
        run: The run.
        folder: Folder the files go to; None to hold them in the page, as far as they are small.

    Source: ours.
    """
    found: list[Download] = []
    for name in NAMES:
        if not run.manifest.rows.get(name):
            continue
        table = run.table(name)
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", use_dictionary=True)
        for ending, kind, data in (
            ("csv", "text/csv", csv(table).encode("utf-8", "replace")),
            ("parquet", "application/vnd.apache.parquet", sink.getvalue()),
        ):
            file = f"{name}.{ending}"
            if folder is not None:
                write_atomically(folder / file, data)
                href = f"{folder.name}/{file}"
            elif len(data) <= EMBEDDED:
                href = f"data:{kind};base64,{b64encode(data).decode('ascii')}"
            else:
                continue
            found.append(Download(file, href, len(data), table.num_rows))
    return found


def csv(table: pa.Table) -> str:
    """Write a table as CSV.

    Source: RFC 4180; the apostrophe after OWASP, CSV injection.
    """
    text = io.StringIO()
    lines = writer.writer(text)
    lines.writerow(table.column_names)
    for row in table.to_pylist():
        lines.writerow([_cell(value) for value in row.values()])
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, list):
        return json.dumps(value)
    if isinstance(value, str) and value.startswith(tuple(FORMULA)):
        return f"'{value}"
    return value
