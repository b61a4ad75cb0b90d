r"""A prompt is a text with what is known of it: its training images, its group, its labels.

Formula::

    prompt_id = first 16 hex digits of SHA-256(text, k)
    digest    = SHA-256 over every row's id, text, labels and image names as written

for the k-th row of that text, from 0. The same caption has the same name in every format, with and
without labels or images, on every machine; equal captions have different names.

A list is read as a stream: one pass checks it, and every later one reads the file anew, so that a
list of any length takes the memory of 8 bytes a name, and none once it is checked.

Layouts::

    .jsonl   one object a line              .txt     one prompt a line
    .csv     a header, then rows            folder   an image folder: metadata.csv|jsonl|parquet
    .parquet one row a prompt                        with file_name and text

Columns::

    prompt        the text; also `caption`, `text`, `Prompt`, `Caption`
    images        none, one or several paths (in CSV one, or a JSON list); also `image`, `file_name`
    mask          a picture that is white where a template repeats
    prompt_id     a name of your own
    repetitions   how many times as often as an ordinary image its images were trained on
    group, kind, family, level, overfit_type, index, url

Any other column is left alone. Paths are relative to the file and must end inside its folder.

Contents: `Prompt`; `PromptList` and `read_prompts`, a list as a stream; `load_prompts`, the whole
list; `named`, texts as prompts; `hashed` and `cleaned`, the name and the checks of a text.
"""

import csv
import hashlib
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from torch import Tensor

from mnemoscope.data.images import ImageSource, pixels_id, resolve_inside
from mnemoscope.errors import InputError

TEXT_COLUMNS = ("prompt", "Prompt", "caption", "Caption", "text")
IMAGE_COLUMNS = ("images", "image", "file_name")
LABEL_COLUMNS = ("group", "kind", "family", "overfit_type", "index", "url")
SUFFIXES = (".jsonl", ".csv", ".parquet", ".txt")
MAX_LINE = 2**20
"""Longest line that is read, in bytes; a longer one is no prompt but a mistake or an attack."""
MAX_TEXT = 20_000
"""Longest prompt, in characters; word splitting in tokenizers takes quadratic time."""
MAX_CELL = 4 * MAX_TEXT
"""Longest value of a Parquet file, in bytes: `MAX_TEXT` characters of UTF-8."""
MAX_GROUP = 2**28
"""Largest row group of a Parquet file, in bytes once it is unpacked, over the columns read."""
MAX_VALUES = 1000
"""Most values a row of a Parquet file may hold, on average, in one column."""
FOLDERS = 1000
"""Folders of images that are remembered as lying where they may."""
BATCH = 256
"""Rows of a Parquet file that are unpacked at a time; 256 of the longest take 20 MB."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASHED = re.compile(r"[0-9a-f]{16}")
_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode
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
        repetitions: How many times as often as an ordinary image its images were trained on.
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
    repetitions: int | None = None
    overfit_type: str | None = None
    index: str | None = None
    url: str | None = None
    mask: ImageSource | None = field(default=None, compare=False)


Item = TypeVar("Item")
Row = tuple[str, Mapping[str, Any]]
"""Where a row stands ("FILE:LINE") and what it holds."""


@dataclass(frozen=True)
class PromptList:
    """A prompt list that was checked, to be gone through any number of times.

    Attributes:
        digest: SHA-256 over what results depend on: ids, texts, labels and image names as written,
            and not where the list lies.
        count: Number of prompts.
        source: Where they come from: what is gone through anew by every pass, or memory.
    """

    digest: str
    count: int
    source: Iterable[Prompt] = field(repr=False)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.source)

    @classmethod
    def of(cls, prompts: "Iterable[Prompt]") -> "PromptList":
        """Return the list of prompts that are in memory already.

        An image in memory counts in the digest by its pixels, a file by its path.

        Args:
            prompts: The prompts; a list that was checked is returned as it is.

        Raises:
            InputError: If two have the same name, or there are none.
        """
        if isinstance(prompts, PromptList):
            return prompts
        held = tuple(prompts)
        content = hashlib.sha256()
        seen: set[str] = set()
        for prompt in held:
            if prompt.prompt_id in seen:
                raise InputError(f"prompt_id {prompt.prompt_id!r} is given twice; make them differ")
            seen.add(prompt.prompt_id)
            names = [_source_name(image) for image in prompt.images]
            mask = None if prompt.mask is None else _source_name(prompt.mask)
            labels = {name: getattr(prompt, name) for name in (*LABEL_COLUMNS, "repetitions")}
            content.update(
                _content(prompt.prompt_id, prompt.text, names, mask, prompt.level, labels)
            )
        if not held:
            raise InputError("no prompts given; expected at least one")
        return cls(content.hexdigest(), len(held), held)


def read_prompts(path: str | Path, *, root: str | Path | None = None) -> PromptList:
    """Check a prompt list in one pass.

    Args:
        path: A .jsonl, .csv, .parquet or .txt file, or an image folder.
        root: Folder the images must lie in; that of the file where not given.

    Returns:
        The list, which reads the file anew each time it is gone through.

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
    return _checked(path, path.parent if root is None else Path(root))


def load_prompts(path: str | Path, *, root: str | Path | None = None) -> tuple[Prompt, ...]:
    """Read a whole prompt list into memory.

    Args:
        path: As for `read_prompts`.
        root: As for `read_prompts`.

    Returns:
        The prompts in the order of the file.

    Raises:
        InputError: As `read_prompts`.
    """
    return tuple(read_prompts(path, root=root))


def named(prompts: "Iterable[str | Prompt]") -> tuple[Prompt, ...]:
    """Return texts as prompts, named as if they had come from a file; prompts are left alone.

    Raises:
        InputError: If a text is blank, too long or none, or there is nothing.
    """
    if isinstance(prompts, str):
        prompts = (prompts,)
    names = _Names()
    found: list[Prompt] = []
    for at, prompt in enumerate(prompts):
        if isinstance(prompt, Prompt):
            found.append(prompt)
            continue
        cells = _read(f"prompt {at + 1}", {"prompt": prompt})
        found.append(Prompt(names.of(cells.text, None) or "", cells.text))
    if not found:
        raise InputError("no prompt given; expected at least one")
    return tuple(found)


def stratified(
    items: Sequence[Item], strata: Sequence[tuple[Any, ...]], count: int | None, what: str
) -> list[Item]:
    """Take items from every stratum in turn.

    Args:
        items: What to choose from.
        strata: The stratum of each item, its level first.
        count: How many; all where None.
        what: What an item is called in the message of an error.

    Returns:
        That many items, in their own order; strata differ by at most one until one runs out. With
        fewer items than strata, levels come in turn, from the highest and the lowest inwards.

    Raises:
        InputError: If there are not that many.
    """
    if count is None:
        return list(items)
    if not 0 <= count <= len(items):
        raise InputError(f"asked for {count} {what} prompts; there are {len(items)}")
    queues: dict[tuple[Any, ...], list[int]] = {}
    for place, stratum in enumerate(strata):
        queues.setdefault(stratum, []).append(place)
    order = list(queues) if count >= len(queues) else _from_the_ends(list(queues))
    turns = chain.from_iterable(zip_longest(*(queues[stratum] for stratum in order)))
    chosen = [place for place in turns if place is not None][:count]
    return [items[place] for place in sorted(chosen)]


def _from_the_ends(strata: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Order strata so that any beginning spans the levels, and neighbours differ in kind."""
    levels: dict[Any, list[tuple[Any, ...]]] = {}
    for stratum in strata:
        levels.setdefault(stratum[0], []).append(stratum)
    falling = sorted(levels, reverse=True)
    ends = [falling[-1 - at // 2] if at % 2 else falling[at // 2] for at in range(len(falling))]
    turned = [
        levels[level][at % len(levels[level]) :] + levels[level][: at % len(levels[level])]
        for at, level in enumerate(ends)
    ]
    return [stratum for turn in zip_longest(*turned) for stratum in turn if stratum is not None]


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
    labels = {*LABEL_COLUMNS, "level", "repetitions"}
    known = {*TEXT_COLUMNS, *IMAGE_COLUMNS, *labels, "mask", "prompt_id"}
    try:
        with pq.ParquetFile(path) as file:
            _require_text(file.schema_arrow.names, str(path))
            leaves = [
                at for at in range(len(file.schema))
                if file.schema.column(at).path.split(".")[0] in known
            ]  # fmt: skip
            _bounded(file.metadata, leaves, path)
            _words_bounded(path, [file.schema.column(at) for at in leaves])
            columns = [name for name in file.schema_arrow.names if name in known]
            number = 0
            for batch in file.iter_batches(BATCH, columns=columns, use_threads=False):
                for name, column in zip(batch.schema.names, batch.columns, strict=True):
                    _short(column, name, f"{path}:row {number + 1} to {number + len(batch)}")
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:row {number}", row
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no readable Parquet file: {error}") from error


def _bounded(metadata: pq.FileMetaData, leaves: Sequence[int], path: Path) -> None:
    """Refuse a file that unpacks into more than its rows may hold, before it is unpacked."""
    for at in range(metadata.num_row_groups):
        group = metadata.row_group(at)
        parts = [group.column(leaf) for leaf in leaves]
        size = sum(part.total_uncompressed_size for part in parts)
        # Pages and dictionaries have headers of their own.
        fair = 2**20 + group.num_rows * len(leaves) * MAX_CELL
        if size > min(MAX_GROUP, fair):
            raise InputError(
                f"{path}: row group {at} unpacks to {size} bytes for {group.num_rows} rows, more "
                f"than {min(MAX_GROUP, fair)}; write smaller row groups, and texts of at most "
                f"{MAX_TEXT} characters"
            )
        if any(part.num_values > MAX_VALUES * group.num_rows + BATCH for part in parts):
            raise InputError(
                f"{path}: row group {at} holds more than {MAX_VALUES} values a row; write one row "
                "a prompt"
            )


def _words_bounded(path: Path, leaves: Sequence[Any]) -> None:
    """Refuse long values that are stored once and repeated, which a few kB can hold GB of."""
    packed = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    with pq.ParquetFile(path, read_dictionary=packed) as file:
        for at in range(file.metadata.num_row_groups):
            # Read as a dictionary, the first rows bring in every value of their group that repeats.
            group = file.iter_batches(1, row_groups=[at], columns=packed, use_threads=False)
            for batch in islice(group, 1):
                for name, column in zip(batch.schema.names, batch.columns, strict=True):
                    if pa.types.is_dictionary(column.type):
                        _short(column.dictionary, name, f"{path}: row group {at}")


def _short(values: pa.Array, name: str, place: str) -> None:
    """Refuse values too long to be a prompt, before they become Python's."""
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        lengths = pc.call_function("binary_length", [values])
        longest = pc.call_function("max", [lengths]).as_py()
        if longest is not None and longest > MAX_CELL:
            raise InputError(
                f"{place}: {name} has {longest} bytes; a prompt has at most {MAX_TEXT} characters"
            )


def _require_text(names: Iterable[str], place: str) -> None:
    found = list(names)
    if not any(name in found for name in TEXT_COLUMNS):
        shown = ", ".join(repr(str(name)[:40]) for name in found[:10]) or "none"
        raise InputError(
            f"{place}: no prompt column; expected one of {', '.join(TEXT_COLUMNS)}, found {shown}"
        )


@dataclass(frozen=True)
class _File:
    """A prompt file that was checked.

    Attributes:
        path: The file.
        repeated: Keys of the names of texts that come again.
        stamp: Size and time of change as it was checked.
    """

    path: Path
    repeated: frozenset[int]
    stamp: tuple[int, int]

    def __iter__(self) -> Iterator[Prompt]:
        if _stamp(self.path) != self.stamp:
            raise InputError(f"{str(self.path)!r} has changed since it was checked; start again")
        names = _Names(self.repeated)
        for place, row in _rows(self.path):
            yield _read(place, row).prompt(names, lambda name: self.path.parent / name)


class _Names:
    """Names rows by their texts; 8 bytes of a name stand for it.

    Args:
        repeated: Keys of the names of texts that come again; None on the first pass, which finds
            them and refuses a name that is taken.
    """

    def __init__(self, repeated: Iterable[int] | None = None) -> None:
        self.counts = dict.fromkeys(repeated or (), 0)
        self.taken: set[int] | None = set() if repeated is None else None

    def of(self, text: str, given: str | None) -> str | None:
        """Return the name of the next row; None where it is taken."""
        name = given or hashed(text, 0)
        key = _key(name)
        if given is None and self.taken is not None and key in self.taken:
            self.counts.setdefault(key, 1)
        if key in self.counts:
            k = self.counts[key]
            self.counts[key] += 1
            if given is None and k:
                name = hashed(text, k)
                key = _key(name)
        if self.taken is not None:
            if key in self.taken:
                return None
            self.taken.add(key)
        return name


def hashed(text: str, k: int = 0) -> str:
    """Return the name of the k-th row of a text."""
    return hashlib.sha256(f"{text}\n{k}".encode()).hexdigest()[:16]


def _key(name: str) -> int:
    digits = name if _HASHED.fullmatch(name) else hashlib.sha256(name.encode()).hexdigest()[:16]
    return int(digits, 16)


@dataclass(frozen=True, slots=True)
class _Cells:
    """What a row says, checked but for the paths and the name."""

    text: str
    given: str | None
    images: list[str]
    mask: str | None
    level: int | None
    repetitions: int | None
    labels: dict[str, str | None]

    def prompt(self, names: _Names, path: Callable[[str], Path]) -> Prompt:
        """Return the prompt; the list was checked, so that its name is free."""
        return Prompt(
            prompt_id=names.of(self.text, self.given) or "",
            text=self.text,
            images=tuple(path(name) for name in self.images),
            level=self.level,
            repetitions=self.repetitions,
            mask=None if self.mask is None else path(self.mask),
            **self.labels,
        )


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error}") from error
    return found.st_size, found.st_mtime_ns


def _rows(path: Path) -> Iterator[Row]:
    reader = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet, ".txt": _txt}
    try:
        yield from reader[path.suffix.lower()](path)
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error}") from error


def _checked(path: Path, root: Path) -> PromptList:
    """Go through a file once, checking every row."""
    stamp = _stamp(path)
    names, content, count = _Names(), hashlib.sha256(), 0
    inside: dict[str, bool] = {}
    for place, row in _rows(path):
        cells = _read(place, row)
        for name in (*cells.images, *([] if cells.mask is None else [cells.mask])):
            _check_path(name, place, path.parent, root, inside)
        named = names.of(cells.text, cells.given)
        if named is None:
            raise InputError(
                f"{place}: prompt_id {cells.given!r} is already that of "
                f"{_place_of(path, cells.given)}"
            )
        labels = cells.labels | {"repetitions": cells.repetitions}
        content.update(_content(named, cells.text, cells.images, cells.mask, cells.level, labels))
        count += 1
    if not count:
        raise InputError(f"{str(path)!r} holds no prompts")
    file = _File(path, frozenset(names.counts), stamp)
    return PromptList(content.hexdigest(), count, file)


def _place_of(path: Path, name: str | None) -> str:
    """Find the row that has a name, which nothing but a message wants to know."""
    names = _Names()
    for place, row in _rows(path):
        cells = _read(place, row)
        if names.of(cells.text, cells.given) == name:
            return place
    return "another row"


def _content(
    prompt_id: str,
    text: str,
    images: Sequence[str],
    mask: str | None,
    level: int | None,
    labels: Mapping[str, Any],
) -> bytes:
    told = {name: label for name, label in labels.items() if label is not None}
    row = [prompt_id, text, list(images), mask, level, told]
    return (_encode(row) + "\n").encode()


def _source_name(source: ImageSource) -> str:
    if not isinstance(source, Tensor):
        return source.as_posix() if isinstance(source, Path) else str(source)
    return pixels_id(source if source.ndim == 3 else source.expand(3, -1, -1))


def _read(place: str, row: Mapping[str, Any]) -> _Cells:
    _require_text(row, place)
    text = next((row[n] for n in TEXT_COLUMNS if row.get(n) is not None), None)
    if not isinstance(text, str):
        raise InputError(f"{place}: the prompt must be text, got {_shown(text)}")
    text = cleaned(text, "prompt", place)
    if not text.strip():
        raise InputError(f"{place}: the prompt is blank")
    given = _label(row.get("prompt_id"), "prompt_id", place)
    if given is not None and not _ID.fullmatch(given):
        raise InputError(
            f"{place}: prompt_id {given!r} must be 1 to 64 letters, digits, '.', '_' or '-'"
        )
    return _Cells(
        text,
        given,
        _image_names(row, place),
        _label(row.get("mask"), "mask", place),
        _whole(row.get("level"), "level", place),
        _whole(row.get("repetitions"), "repetitions", place),
        {name: _label(row.get(name), name, place) for name in LABEL_COLUMNS},
    )


def _image_names(row: Mapping[str, Any], place: str) -> list[str]:
    given = next((row[n] for n in IMAGE_COLUMNS if row.get(n) is not None), None)
    names: Any = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise InputError(f"{place}: images must be a path or a list of paths, got {_shown(given)}")
    return [cleaned(str(name), "images", place) for name in names if str(name).strip()]


def _check_path(name: str, place: str, folder: Path, root: Path, inside: dict[str, bool]) -> None:
    """Refuse an image that is not there, or not inside the root.

    Args:
        name: The image, as written.
        place: Where it is written.
        folder: What it is relative to.
        root: What it must lie in.
        inside: Folders that were followed before, and whether they lie in the root.
    """
    if re.match(r"[a-z]+://", name, re.IGNORECASE):
        raise InputError(f"{place}: {name[:80]!r} is an address; download it and name the file")
    path = os.path.join(folder, name)
    parent = os.path.dirname(path)
    # Following every link of a path takes ten times as long as asking whether its end is one.
    if parent not in inside and len(inside) < FOLDERS:
        inside[parent] = _is_inside(Path(parent), root)
    if inside.get(parent) and _is_file(path):
        return
    try:
        resolve_inside(folder / name, root)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def _is_inside(path: Path, root: Path) -> bool:
    try:
        resolve_inside(path, root)
    except InputError:
        return False
    return True


def _is_file(path: str) -> bool:
    """Tell whether there is a file that is no link."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def _label(value: Any, name: str, place: str) -> str | None:
    if value is None or value == "":
        return None
    # A whole number that went through a table with gaps comes back as a float.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{place}: {name} must be text or a whole number, got {_shown(value)}")
    return cleaned(str(value), name, place)


def _whole(value: Any, name: str, place: str) -> int | None:
    text = _label(value, name, place)
    if text is None:
        return None
    if not re.fullmatch(r"-?\d{1,9}", text):
        raise InputError(f"{place}: {name} must be a whole number, got {_shown(value)}")
    return int(text)


def cleaned(text: str, name: str, place: str) -> str:
    """Return a text of a row once it is known to be fit to be a prompt.

    Args:
        text: The text.
        name: What it is called.
        place: Where it stands.

    Raises:
        InputError: If it is too long, or holds control characters.
    """
    if len(text) > MAX_TEXT:
        raise InputError(f"{place}: {name} has {len(text)} characters, more than {MAX_TEXT}")
    if bad := _FORBIDDEN.search(text):
        raise InputError(
            f"{place}: {name} holds the control character U+{ord(bad[0]):04X}; remove it"
        )
    return text


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {repr(value)[:60]}"
