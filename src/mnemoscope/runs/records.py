r"""A record is a small JSON file that carries its own digest; every file is whole or absent.

Formula, over the record without its entry `sha256`::

    sha256 = SHA-256 of its JSON with sorted keys and no spaces

What is read may be damaged or hostile: it must be a regular file, and its size and depth are
bounded before it is believed. Records of folders that were written before there were digests have
no such entry.

Contents: `sealed`, `unsealed`, `read_bytes`, `write_atomically`.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEAL = "sha256"
"""Entry of a record that holds its digest."""

MAX_RECORD = 2**20
"""Largest record that is read, in bytes; a manifest has at most 4 KiB."""

MAX_DEPTH = 16
"""Deepest nesting of a record; a manifest has 3 levels."""


def sealed(told: Mapping[str, Any]) -> bytes:
    """Return the text of a record, its digest last."""
    return json.dumps({**told, SEAL: _digest(told)}, indent=1).encode()


def unsealed(data: bytes) -> tuple[dict[str, Any], bool]:
    """Return what a record says, and whether it carries a digest.

    Raises:
        ValueError: If it is no JSON object, is nested too deep, or differs from its digest.
    """
    try:
        told: Any = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(told, dict):
        raise ValueError("it is no JSON object")
    if _depth(told) > MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    if SEAL not in told:
        return told, False
    digest = told.pop(SEAL)
    if digest != _digest(told):
        raise ValueError("it differs from its digest")
    return told, True


def _digest(told: Mapping[str, Any]) -> str:
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _depth(told: Any) -> int:
    """Return how deep a value is nested, counting no further than what is allowed."""
    deep, level = 0, [told]
    while level and deep <= MAX_DEPTH:
        deep += 1
        inner = [part.values() if isinstance(part, dict) else part for part in level]
        level = [v for part in inner for v in part if isinstance(v, dict | list)]
    return deep


def read_bytes(path: Path, most: int = MAX_RECORD) -> bytes:
    """Read a file.

    Args:
        path: The file.
        most: Most bytes it may have.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no regular file, or larger.
    """
    # Reading a pipe or a device would wait for ever.
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most} bytes")
    return data


def write_atomically(target: Path, data: bytes) -> None:
    """Write a file so that it is either whole or absent, also after a power cut.

    Raises:
        OSError: If it cannot be written; nothing is left behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        # What lies there already may be a link; it is not written through.
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make what was renamed or removed in a folder durable."""
    if os.name == "nt":
        # Windows opens no folders; a rename there is as durable as it gets.
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
