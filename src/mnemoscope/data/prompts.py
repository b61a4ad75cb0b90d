r"""A prompt is a text with what is known of it: its training images, its group, its labels.

Formula::

    prompt_id = first 16 hex digits of SHA-256(text, labels, image names as written, k)

for the k-th row of that content, so that equal texts, and even equal rows, have different names,
and the same row has the same name in every format and on every machine.

Layouts::

    .jsonl   one object a line              .txt     one prompt a line
    .csv     a header, then rows            folder   an image folder: metadata.csv|jsonl|parquet
    .parquet one row a prompt                        with file_name and text

Columns::

    prompt        the text; also `caption`, `text`, `Prompt`
    images        none, one or several paths (in CSV one, or a JSON list); also `image`, `file_name`
    mask          a picture that is white where a template repeats
    prompt_id     a name of your own
    group, kind, family, level, overfit_type, index, url

Any other column is left alone. Paths are relative to the file and must end inside its folder.

Contents: `Prompt`, `load_prompts`, `embedded_prompts`.
"""

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from mnemoscope.errors import InputError
from mnemoscope.data.images import ImageSource, resolve_inside

TEXT_COLUMNS = ("prompt", "Prompt", "caption", "text")
IMAGE_COLUMNS = ("images", "image", "file_name")
LABEL_COLUMNS = ("group", "kind", "family", "overfit_type", "index", "url")
SUFFIXES = (".jsonl", ".csv", ".parquet", ".txt")
MAX_LINE = 2**20
"""Longest line that is read, in bytes; a longer one is no prompt but a mistake or an attack."""
MAX_TEXT = 20_000
"""Longest prompt, in characters; word splitting in tokenizers takes quadratic time."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# C0 controls but for tab and line ends, and the surrogates that JSON escapes can smuggle in.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Prompt:
    """One row of a prompt list.

    Attributes:
        prompt_id: Name of the row, unique in its list.
        text: The prompt, as given.
        images: Training images; the first is the one the record looks at.
        group: Label of the list, such as "planted" or "control".
        kind: Kind of caption, such as "describing" or "meaningless".
        family: "verbatim", "template" or "control" for the lab's prompts.
        level: Repetition level of the lab's prompts.
        overfit_type: Webster's label: "MV", "RV", "TV" or "N".
        index: Number in the data set it is from.
        url: Address its image had.
        mask: Where a template repeats.
    """

    prompt_id: str
    text: str
    images: tuple[ImageSource, ...] = field(default=(), compare=False)
    group: str | None = None
    kind: str | None = None
    family: str | None = None
    level: int | None = None
    overfit_type: str | None = None
    index: str | None = None
    url: str | None = None
    mask: ImageSource | None = field(default=None, compare=False)


Item = TypeVar("Item")
Row = tuple[str, Mapping[str, Any]]
"""Where a row stands ("FILE:LINE") and what it holds."""


def load_prompts(path: str | Path, *, root: str | Path | None = None) -> tuple[Prompt, ...]:
    """Read a prompt list.

    Args:
        path: A .jsonl, .csv, .parquet or .txt file, or an image folder.
        root: Folder the images must lie in; that of the file where not given.

    Returns:
        The prompts in the order of the file.

    Raises:
        InputError: If the file is missing, empty, broken, or names something that cannot be used;
            the message says in which line.
    """
    path = Path(path)
    if path.is_dir():
        path = _metadata(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"cannot tell the format of {str(path)!r}; expected {', '.join(SUFFIXES)} "
            "or an image folder"
        )
    if not path.is_file():
        raise InputError(f"no prompt file {str(path)!r}")
    reader = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet, ".txt": _txt}
    folder = path.parent if root is None else Path(root)
    try:
        return _prompts(reader[path.suffix.lower()](path), path, folder)
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error}") from error


def embedded_prompts(planted: int | None = None, controls: int | None = None) -> tuple[Prompt, ...]:
    """Return the prompts of the embedded model, each with its picture.

    Args:
        planted: How many planted prompts, spread evenly over levels, families and kinds; all where
            None.
        controls: How many controls, spread evenly over kinds; all where None.

    Returns:
        Planted prompts (group "planted"), then controls (group "control").

    Raises:
        InputError: If a number is negative or more than there are.
    """
    from mnemoscope.lab.planted import load_controls, load_planted

    return tuple(
        Prompt(
            prompt_id=item.id,
            text=item.caption,
            images=(item.image(),),
            group=group,
            kind=item.kind,
            family=item.family,
            level=item.level,
            mask=item.mask(),
        )
        for group, items, count in (
            ("planted", load_planted(), planted),
            ("control", load_controls(), controls),
        )
        for item in spread(items, [(i.level, i.family, i.kind) for i in items], count, group)
    )


def spread(
    items: Sequence[Item], strata: Sequence[Any], count: int | None, what: str
) -> list[Item]:
    """Take items from every stratum in turn.

    Args:
        items: What to choose from.
        strata: The stratum of each item.
        count: How many; all where None.
        what: What an item is called in the message of an error.

    Returns:
        That many items, in their own order; strata differ by at most one until one runs out.

    Raises:
        InputError: If there are not that many.
    """
    if count is None:
        return list(items)
    if not 0 <= count <= len(items):
        raise InputError(f"asked for {count} {what} prompts; there are {len(items)}")
    queues: dict[Any, list[int]] = {}
    for place, stratum in enumerate(strata):
        queues.setdefault(stratum, []).append(place)
    turns = chain.from_iterable(zip_longest(*queues.values()))
    chosen = [place for place in turns if place is not None][:count]
    return [items[place] for place in sorted(chosen)]


def _metadata(folder: Path) -> Path:
    found = [folder / f"metadata{s}" for s in SUFFIXES[:3] if (folder / f"metadata{s}").is_file()]
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise InputError(
            f"image folder {str(folder)!r} must hold exactly one of metadata.jsonl, "
            f"metadata.csv and metadata.parquet; found {names}"
        )
    return found[0]


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield place and text of every line, without its end; a huge one is never read whole."""
    with path.open("rb") as file:
        number = 0
        while data := file.readline(MAX_LINE + 1):
            number += 1
            place = f"{path}:{number}"
            if len(data) > MAX_LINE:
                raise InputError(f"{place}: the line is longer than {MAX_LINE} bytes")
            try:
                text = data.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{place}: invalid UTF-8 at byte {error.start}; save the file as UTF-8"
                ) from error
            if "\0" in text:
                raise InputError(f"{place}: the line holds a NUL character; is this a text file?")
            text = text.rstrip("\r\n")
            if "\r" in text:
                raise InputError(
                    f"{place}: a carriage return within the line; save with Unix line ends"
                )
            yield place, text


def _txt(path: Path) -> Iterator[Row]:
    return ((place, {"prompt": line}) for place, line in _lines(path) if line.strip())


def _jsonl(path: Path) -> Iterator[Row]:
    for place, line in _lines(path):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: broken JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(
                f'{place}: expected an object such as {{"prompt": "..."}}, got {type(row).__name__}'
            )
        yield place, row


def _csv(path: Path) -> Iterator[Row]:
    lines = (line + "\n" for _, line in _lines(path))
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            place = f"{path}:{reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                twice = [name for name, count in Counter(header).items() if count > 1]
                if twice:
                    raise InputError(f"{place}: the header names {twice[0]!r} more than once")
                continue
            if len(cells) != len(header):
                raise InputError(
                    f"{place}: {len(cells)} cells under {len(header)} columns; quote cells that "
                    "hold commas"
                )
            row: dict[str, Any] = {n: c or None for n, c in zip(header, cells, strict=True)}
            for name in IMAGE_COLUMNS:
                row[name] = _csv_images(row.get(name), place)
            yield place, row
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: broken CSV: {error}") from error


def _csv_images(cell: str | None, place: str) -> Any:
    if cell is None or not cell.lstrip().startswith("["):
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: the images are no JSON list: {error}") from error


def _parquet(path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            known = {*TEXT_COLUMNS, *IMAGE_COLUMNS, *LABEL_COLUMNS, "level", "mask", "prompt_id"}
            columns = [name for name in file.schema_arrow.names if name in known]
            _require_text(file.schema_arrow.names, str(path))
            number = 0
            for batch in file.iter_batches(256, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:row {number}", row
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no readable Parquet file: {error}") from error


def _require_text(names: Iterable[str], place: str) -> None:
    found = list(names)
    if not set(TEXT_COLUMNS) & set(found):
        shown = ", ".join(repr(str(name)[:40]) for name in found[:10]) or "none"
        raise InputError(
            f"{place}: no prompt column; expected one of {', '.join(TEXT_COLUMNS)}, found {shown}"
        )


def _prompts(rows: Iterable[Row], path: Path, root: Path) -> tuple[Prompt, ...]:
    prompts: list[Prompt] = []
    places: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for place, row in rows:
        prompt = _prompt(place, row, path.parent, root, seen)
        if prompt.prompt_id in places:
            raise InputError(
                f"{place}: prompt_id {prompt.prompt_id!r} is already that of "
                f"{places[prompt.prompt_id]}"
            )
        places[prompt.prompt_id] = place
        prompts.append(prompt)
    if not prompts:
        raise InputError(f"{str(path)!r} holds no prompts")
    return tuple(prompts)


def _prompt(
    place: str, row: Mapping[str, Any], folder: Path, root: Path, seen: Counter[str]
) -> Prompt:
    _require_text(row, place)
    text = next((row[n] for n in TEXT_COLUMNS if row.get(n) is not None), None)
    if not isinstance(text, str):
        raise InputError(f"{place}: the prompt must be text, got {_shown(text)}")
    text = _clean(text, "prompt", place)
    if not text.strip():
        raise InputError(f"{place}: the prompt is blank")
    names = _names(row, place)
    labels = {name: _label(row.get(name), name, place) for name in LABEL_COLUMNS}
    level = _level(row.get("level"), place)
    mask = _label(row.get("mask"), "mask", place)
    content = json.dumps([text, names, mask, level, labels], ensure_ascii=False, sort_keys=True)
    given = _label(row.get("prompt_id"), "prompt_id", place)
    if given is not None and not _ID.fullmatch(given):
        raise InputError(
            f"{place}: prompt_id {given!r} must be 1 to 64 letters, digits, '.', '_' or '-'"
        )
    repeat = seen[content]
    seen[content] += 1
    hashed = hashlib.sha256(f"{content}\n{repeat}".encode()).hexdigest()[:16]
    return Prompt(
        prompt_id=given or hashed,
        text=text,
        images=tuple(_path(name, place, folder, root) for name in names),
        level=level,
        mask=None if mask is None else _path(mask, place, folder, root),
        **labels,
    )


def _names(row: Mapping[str, Any], place: str) -> list[str]:
    given = next((row[n] for n in IMAGE_COLUMNS if row.get(n) is not None), None)
    names: Any = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise InputError(f"{place}: images must be a path or a list of paths, got {_shown(given)}")
    return [_clean(str(name), "images", place) for name in names if str(name).strip()]


def _path(name: str, place: str, folder: Path, root: Path) -> Path:
    if re.match(r"[a-z]+://", name, re.IGNORECASE):
        raise InputError(f"{place}: {name[:80]!r} is an address; download it and name the file")
    try:
        path = folder / name
        resolve_inside(path, root)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    return path


def _label(value: Any, name: str, place: str) -> str | None:
    if value is None or value == "":
        return None
    # A whole number that went through a table with gaps comes back as a float.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{place}: {name} must be text or a whole number, got {_shown(value)}")
    return _clean(str(value), name, place)


def _level(value: Any, place: str) -> int | None:
    text = _label(value, "level", place)
    if text is None:
        return None
    if not re.fullmatch(r"-?\d{1,9}", text):
        raise InputError(f"{place}: level must be a whole number, got {_shown(value)}")
    return int(text)


def _clean(text: str, name: str, place: str) -> str:
    if len(text) > MAX_TEXT:
        raise InputError(f"{place}: {name} has {len(text)} characters, more than {MAX_TEXT}")
    if bad := _FORBIDDEN.search(text):
        raise InputError(
            f"{place}: {name} holds the control character U+{ord(bad[0]):04X}; remove it"
        )
    return text


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {repr(value)[:60]}"
