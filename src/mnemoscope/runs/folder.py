"""A run is a folder of Parquet parts with a manifest; it can be killed at any moment and resumed.

Layout::

    manifest.json               what was asked, of which model, how far it came
    TABLE/UNIT.parquet          one immutable part a table and unit of work
    commits/UNIT.json           SHA-256 and rows of each part of a unit, written after all of them
    constants.safetensors       the reference mean and the exact unguided path

Every file is written under another name in its folder, synced, renamed, and the folder synced. A
unit without a commit was never finished: its parts are not read, and it runs again. A part that
differs from its commit is set aside as `*.corrupt` when the study resumes.

A view of a table has the guidance scale beside the recipe of each row.

Contents: `Run`, `open_run` and `decoded` to read, `Writer` to write.
"""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock, Timeout
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from mnemoscope.core.gram import NAMES, PAIRS, Gram
from mnemoscope.core.level import Level
from mnemoscope.errors import MnemoscopeError, NeedsError, RunError
from mnemoscope.runs import older
from mnemoscope.runs.manifest import Manifest, Status, now
from mnemoscope.runs.tables import SCHEMA, TABLES, Table, table_named

MANIFEST, CONSTANTS, COMMITS, LOCK = "manifest.json", "constants.safetensors", "commits", ".lock"
READ = (1, SCHEMA)
"""Schemas that can be read."""


@dataclass(frozen=True)
class Run:
    """A run folder, open for reading.

    Attributes:
        path: The folder.
        manifest: Its manifest.
    """

    path: Path
    manifest: Manifest

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a whole table: the parts of all finished units, each verified.

        Where rows have a recipe, a column `guidance` says its scale.

        Args:
            name: The table.
            columns: Which columns; all where not given.

        Raises:
            RunError: If there is no such table, or a part is missing or damaged.
        """
        empty = self._viewed(table_named(name).schema.empty_table())
        some = empty if columns is None else empty.select(list(columns))
        return pa.concat_tables([some, *self.parts(name, columns)])

    def parts(self, name: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield a table part by part, as `table` shows it; memory holds one part at a time."""
        return (self.part(name, unit, columns) for unit in self.units(name))

    def units(self, name: str) -> dict[str, int]:
        """Return which units wrote a table, and how many rows each."""
        table_named(name)
        return {unit: commit[name]["rows"] for unit, commit in self._with(name)}

    def part(self, name: str, unit: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return what one unit wrote of a table, as `table` shows it.

        Raises:
            RunError: If there is no such part, or it is damaged.
        """
        table, path = table_named(name), self.path / COMMITS / f"{unit}.json"
        commit = _parse_commit(path) if path.is_file() else {}
        if name not in commit:
            raise RunError(f"unit {unit!r} of {str(self.path)!r} holds no table {name!r}")
        rows = self._viewed(self._part(table, unit, commit[name]))
        return rows if columns is None else rows.select(list(columns))

    def _with(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        if name == "recipes" and self.manifest.schema_version < SCHEMA:
            return []
        return [(unit, commit) for unit, commit in sorted(self.commits().items()) if name in commit]

    def _part(self, table: Table, unit: str, commit: Mapping[str, Any]) -> pa.Table:
        rows = _read_part(self.path, table.name, unit, commit)
        try:
            if self.manifest.schema_version < SCHEMA:
                rows = older.upgraded(table, rows)
            return rows.cast(table.schema)
        except (pa.ArrowException, ValueError, KeyError) as error:
            raise RunError(
                f"part {unit!r} of table {table.name!r} in {str(self.path)!r} has other columns "
                f"than this version writes: {error}"
            ) from error

    @cached_property
    def recipes(self) -> dict[str, dict[str, Any]]:
        """Return the recipes by key, as rows of table `recipes`."""
        if self.manifest.schema_version < SCHEMA:
            rows = older.recipes(self.manifest.options)
        else:
            table = TABLES["recipes"]
            rows = [
                row
                for unit, commit in self._with("recipes")
                for row in self._part(table, unit, commit["recipes"]).to_pylist()
            ]
        return {row["recipe"]: row for row in rows}

    def _viewed(self, rows: pa.Table) -> pa.Table:
        """Put the guidance scale beside the recipe."""
        if "recipe" not in rows.column_names or "guidance" in rows.column_names:
            return rows
        scale = {key: recipe["guidance"] for key, recipe in self.recipes.items()}
        codes = rows["recipe"].combine_chunks().dictionary_encode()
        known = [scale.get(key) for key in codes.dictionary.to_pylist()]
        values = pa.array(known, pa.float64()).take(codes.indices)
        at = rows.column_names.index("recipe") + 1
        field = pa.field("guidance", pa.float64(), True, {"unit": "1", "about": "guidance scale g"})
        return rows.add_column(at, field, values)

    def commits(self) -> dict[str, dict[str, Any]]:
        """Return what each finished unit wrote: SHA-256 and rows by table."""
        return dict(_commits(self.path))

    def key(self, guidance: float | None = None) -> str:
        """Return the key of the recipe of a guidance scale.

        Args:
            guidance: Guidance scale; may be left open where the run holds a single recipe.

        Raises:
            NeedsError: If there is no such recipe, or there are several.
        """
        held = {key: float(row["guidance"]) for key, row in self.recipes.items()}
        found = [key for key, scale in held.items() if guidance is None or scale == guidance]
        if len(found) == 1:
            return found[0]
        scales = sorted(set(held.values()))
        if not found:
            raise NeedsError(f"the run holds no guidance {guidance}; it holds {scales}")
        if guidance is None and len(scales) > 1:
            raise NeedsError(f"the run holds guidance {scales}; say which one")
        raise NeedsError(f"the run holds {len(found)} recipes; name one of {sorted(found)}")

    def gram(
        self, law: str = "path", guidance: float | None = None, recipe: str | None = None
    ) -> tuple[Gram, dict[str, np.ndarray]]:
        """Return the record of one input law and recipe.

        Args:
            law: "path", "forward" or "noise".
            guidance: Guidance scale; None for the probes, and for a path of a single recipe.
            recipe: Key of the recipe of a path, where the run has several at this scale.

        Returns:
            The record, and `prompt_id` and `seed` of each sample.

        Raises:
            NeedsError: If the run holds no such record, or the recipe is left open.
        """
        rows = _where(self._gram_rows, law=law)
        if law == "path":
            recipe = self.key(guidance) if recipe is None else recipe
            rows = _where(rows, recipe=recipe)
        if not rows.num_rows:
            raise NeedsError(
                f"the run holds no record of law {law!r}"
                + (f" of recipe {recipe!r}" if law == "path" else "")
            )
        calls = len(rows["call"].unique())
        samples = rows.num_rows // calls
        values = np.stack([rows[f"{a}·{b}"].to_numpy() for a, b in PAIRS], axis=-1)
        triangle = torch.from_numpy(values.astype(np.float64)).reshape(samples, calls, len(PAIRS))
        products = torch.empty(samples, calls, len(NAMES), len(NAMES), dtype=torch.float64)
        for index, (a, b) in enumerate(PAIRS):
            i, j = NAMES.index(a), NAMES.index(b)
            products[:, :, i, j] = products[:, :, j, i] = triangle[:, :, index]
        first = rows.slice(0, calls)
        level = Level(*(torch.tensor(first[part].to_numpy()) for part in ("alpha", "sigma")))
        final = Level(*(torch.tensor(v, dtype=torch.float64) for v in self.manifest.final_level))
        keys = {
            name: rows[name].to_numpy(zero_copy_only=False)[::calls]
            for name in ("prompt_id", "seed")
        }
        keys["call"] = first["call"].to_numpy()
        return Gram(level, products, self.manifest.d, final), keys

    @cached_property
    def _gram_rows(self) -> pa.Table:
        return self.table("gram")

    @cached_property
    def constants(self) -> dict[str, Tensor]:
        """Return the tensors that belong to the run as a whole, by name.

        Raises:
            RunError: If the file is damaged.
        """
        path = self.path / CONSTANTS
        return _tensors(path) if path.exists() else {}

    @property
    def mean(self) -> Tensor | None:
        """Return the reference mean of the unconditional clean estimate, or None."""
        return self.constants.get("mean")

    @property
    def exact(self) -> tuple[Tensor, Tensor] | None:
        """Return weights (w0, wT) of the exact unguided path after every update, or None."""
        if "w0" not in self.constants:
            return None
        return self.constants["w0"], self.constants["wT"]

    def image(
        self, prompt_id: str, seed: int, guidance: float | None = None, recipe: str | None = None
    ) -> Image.Image:
        """Return the picture of a sample.

        Args:
            prompt_id: The prompt.
            seed: Index of the sample.
            guidance: Guidance scale; may be left open where the run holds a single recipe.
            recipe: Key of the recipe, where the run has several at this scale.

        Raises:
            NeedsError: If the recipe is left open.
            RunError: If there is no such sample, or it has no picture.
        """
        recipe = self.key(guidance) if recipe is None else recipe
        wanted = {"prompt_id": prompt_id, "seed": seed, "recipe": recipe}
        found = [
            row for part in self.parts("samples") for row in _where(part, **wanted).to_pylist()
        ]
        if not found or found[0]["image"] is None:
            why = found[0]["reason"] if found else "there is no such sample"
            raise RunError(f"no picture of {prompt_id!r}, seed {seed}, recipe {recipe!r}: {why}")
        return Image.open(io.BytesIO(found[0]["image"])).convert("RGB")


def open_run(path: str | Path) -> Run:
    """Open a run folder for reading.

    Raises:
        RunError: If it is no run folder, is damaged, or is of another schema.
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        raise RunError(f"{str(path)!r} is no run folder: it holds no {MANIFEST}")
    try:
        given = json.loads((path / MANIFEST).read_bytes())
        if isinstance(given, dict) and given.get("schema") not in READ:
            raise RunError(
                f"{str(path)!r} is of schema {given.get('schema')!r}; this version reads "
                f"{', '.join(map(str, READ))}"
            )
        return Run(path, Manifest.model_validate(given))
    except (ValueError, ValidationError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{str(path / MANIFEST)!r} is damaged: {error}") from error


@dataclass(frozen=True)
class Writer:
    """A run folder, open for writing by this process alone.

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    @contextmanager
    def open(cls, path: Path, manifest: Manifest) -> Generator["Writer"]:
        """Begin a run, or continue one of the same study.

        Raises:
            RunError: If the folder is of another study, is in use, holds other things, or cannot
                be written.
        """
        writer = cls(path)
        if path.exists() and not path.is_dir():
            raise RunError(f"{str(path)!r} is a file; a run needs a folder")
        if path.is_dir() and not (path / MANIFEST).exists():
            strangers = [item.name for item in path.iterdir() if not item.name.startswith(".")]
            if strangers:
                raise RunError(
                    f"{str(path)!r} is no run folder and not empty; give another with --out"
                )
        with _explained(path):
            path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / LOCK)
        with _explained(path):
            try:
                lock.acquire(blocking=False)
            except Timeout as error:
                # Timeout is an OSError, and not one of the disk.
                raise RunError(
                    f"another process is writing {str(path)!r}; wait for it or give another --out"
                ) from error
        with lock:
            for left in path.rglob(".*.tmp"):
                left.unlink()
            if (path / MANIFEST).exists():
                before = open_run(path).manifest
                if differences := before.differences(manifest):
                    raise RunError(
                        f"{str(path)!r} holds another {before.flow}. Different: "
                        f"{'; '.join(differences)}. "
                        "Give another --out, or the same options to continue."
                    )
                manifest.started = before.started
                writer._set_damaged_aside()
            writer.write_manifest(manifest)
            yield writer

    def finished(self) -> frozenset[str]:
        """Return the units that are whole on disk."""
        return frozenset(unit for unit, _ in _commits(self.path))

    def append(self, unit: str, parts: Mapping[str, pa.Table]) -> None:
        """Write the parts of a unit, then its commit.

        Raises:
            RunError: If a part cannot be written; what was there before stays as it was.
        """
        commit: dict[str, dict[str, Any]] = {}
        for name, rows in parts.items():
            data = _encode(table_named(name), rows)
            self._write(Path(name) / f"{unit}.parquet", data)
            commit[name] = {"sha256": hashlib.sha256(data).hexdigest(), "rows": rows.num_rows}
        self._write(Path(COMMITS) / f"{unit}.json", json.dumps(commit).encode())

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest."""
        text = manifest.model_dump_json(by_alias=True, indent=1)
        self._write(Path(MANIFEST), text.encode())

    def write_constants(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors that belong to the run as a whole."""
        self._write(Path(CONSTANTS), save_tensors({k: v.contiguous() for k, v in tensors.items()}))

    @contextmanager
    def noting(self, manifest: Manifest) -> Generator[None]:
        """Note in the manifest that the run was interrupted, if the block ends early."""
        try:
            yield
        except (KeyboardInterrupt, MnemoscopeError):
            # A full disk may have room for the manifest, or not: what was finished is intact.
            with suppress(RunError):
                self.close(manifest, "interrupted")
            raise

    def close(self, manifest: Manifest, status: Status) -> Run:
        """Count what there is and write the final manifest."""
        manifest.status, manifest.finished = status, now()
        rows: dict[str, int] = {}
        for _, commit in _commits(self.path):
            for name, part in commit.items():
                rows[name] = rows.get(name, 0) + part["rows"]
        manifest.rows = rows
        found: Counter[str] = Counter()
        for part in Run(self.path, manifest).parts("samples"):
            found.update(part["status"].to_pylist())
        manifest.samples = dict(found)
        self.write_manifest(manifest)
        return Run(self.path, manifest)

    def _write(self, name: Path, data: bytes) -> None:
        target = self.path / name
        with _explained(target):
            write_atomically(target, data)

    def _set_damaged_aside(self) -> None:
        for unit in sorted(
            file.stem for file in (self.path / COMMITS).glob("*.json") if file.is_file()
        ):
            commit = self.path / COMMITS / f"{unit}.json"
            try:
                parts = _parse_commit(commit)
            except RunError:
                os.replace(commit, commit.with_name(commit.name + ".corrupt"))
                continue
            damaged = False
            for name, part in parts.items():
                try:
                    _read_part(self.path, table_named(name).name, unit, part)
                except RunError:
                    damaged = True
                    file = self.path / name / f"{unit}.parquet"
                    if file.exists():
                        os.replace(file, file.with_name(file.name + ".corrupt"))
            if damaged:
                commit.unlink()
        constants = self.path / CONSTANTS
        if constants.exists():
            try:
                _tensors(constants)
            except RunError:
                os.replace(constants, constants.with_name(constants.name + ".corrupt"))


def write_atomically(target: Path, data: bytes) -> None:
    """Write a file so that it is either whole or absent, also after a power cut.

    Raises:
        OSError: If it cannot be written; nothing is left behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "nt":
        # Windows opens no folders; a rename there is as durable as it gets.
        return
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _explained(target: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write {str(target)!r}: {error.strerror or error}. What was finished before is "
            "intact; make room or choose another folder, and give the same command again"
        ) from error


def _encode(table: Table, rows: pa.Table) -> bytes:
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


def decoded(data: bytes) -> pa.Table:
    """Return the table that a Parquet file holds; no thread is started.

    Raises:
        ArrowException: If it is damaged.
    """
    # Arrow's pools read what is a Python file, and what they are asked to read in parallel. One of
    # their threads that still wants Python's lock when the interpreter ends aborts the process.
    source = pa.BufferReader(data)
    with pq.ParquetFile(source, page_checksum_verification=True) as file:
        return file.read(use_threads=False)


def _read_part(folder: Path, name: str, unit: str, commit: Mapping[str, Any]) -> pa.Table:
    path = folder / name / f"{unit}.parquet"
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != commit["sha256"]:
            raise RunError(
                f"{str(path)!r} differs from what was written; run the study again to replace it"
            )
        return decoded(data)
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{str(path)!r} cannot be read: {error}; run the study again") from error


def _where(rows: pa.Table, **values: Any) -> pa.Table:
    """Return the rows with these values."""
    here = np.ones(rows.num_rows, dtype=bool)
    for name, value in values.items():
        here &= rows[name].to_numpy() == value
    return rows.filter(pa.array(here))


def _commits(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((folder / COMMITS).glob("*.json")):
        yield path.stem, _parse_commit(path)


def _parse_commit(path: Path) -> dict[str, Any]:
    try:
        commit: dict[str, Any] = json.loads(path.read_bytes())
        if not all({"sha256", "rows"} <= part.keys() for part in commit.values()):
            raise ValueError("a part without sha256 or rows")
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(f"{str(path)!r} is damaged: {error}; run the study again") from error
    return commit


def _tensors(path: Path) -> dict[str, Tensor]:
    data = path.read_bytes()
    try:
        return load_tensors(data)
    except Exception as error:  # safetensors' own error class is a direct child of Exception
        raise RunError(f"{str(path)!r} is damaged: {error}; run the study again") from error
