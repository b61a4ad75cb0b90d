"""A run is a folder of Parquet parts with a manifest; it can be killed at any moment and resumed.

Layout::

    manifest.json               what was asked, of which model, how far it came, which units it has
    manifest.copy.json          the same as it was when the run last began
    TABLE/UNIT.parquet          one immutable part a table and unit of work
    commits/UNIT.json           SHA-256 and rows of each part of a unit, written after all of them
    constants.safetensors       the reference mean and the exact unguided path, unit `constants`
    .lock, .holder              held by one process, and which; others write only on its behalf

Every file is written under another name in its folder, synced, renamed, and the folder synced;
manifest and commits carry their own digest. A unit without a commit was never finished: its parts
are not read, and it runs again. What differs from its digest is set aside as `*.corrupt` when the
study resumes, and a damaged manifest is rebuilt from its copy.

A folder may be damaged or hostile: names in it are checked, nothing is written through a link, and
sizes are bounded before anything is unpacked.

A view of a table has the guidance scale beside the recipe of each row.

Contents: `Run` and `open_run` to read, `Writer` to write, `begun`, `repair`; `units_in`,
`read_commit`, `read_manifest`, `read_part` and `read_constants` for what checks a folder.
"""

import errno
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock, Timeout
from PIL import Image
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from mnemoscope.core.gram import NAMES, PAIRS, Gram
from mnemoscope.core.level import Level
from mnemoscope.errors import MnemoscopeError, NeedsError, OtherRunError, RunError
from mnemoscope.runs import older
from mnemoscope.runs.interruption import interruptible
from mnemoscope.runs.manifest import Manifest, Status, now
from mnemoscope.runs.parts import MAX_PART, chunks, decode, encode
from mnemoscope.runs.records import read_bytes, sealed, sync_folder, unsealed, write_atomically
from mnemoscope.runs.tables import SCHEMA, TABLES, Table, table_named

MANIFEST, COPY, LOCK = "manifest.json", "manifest.copy.json", ".lock"
HOLDER = ".holder"
"""File that names the process which holds the lock: whoever works for another one stops."""
CONSTANTS, COMMITS = "constants.safetensors", "commits"
CONSTANT = "constants"
"""Unit whose commit has the digest of the constants."""
READ = (1, 2, SCHEMA)
"""Schemas that can be read."""

JOINED = 256
"""Parts of a table that are joined at a time."""

Commit = dict[str, dict[str, Any]]
"""SHA-256 and rows of what a unit wrote, by table; of the constants, under `CONSTANT`."""

UNABLE = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of file systems that lack an operation, as mounted object stores do."""

_DIGEST = re.compile("[0-9a-f]{64}")


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
        # Thousands of small parts, held apart, take several times the memory of their rows.
        joined = [
            pa.concat_tables(parts).combine_chunks()
            for parts in chunks(self.parts(name, columns), JOINED)
        ]
        return pa.concat_tables([some, *joined])

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
        table, commit = table_named(name), self.commits().get(unit, {})
        if name not in commit:
            raise RunError(f"unit {unit!r} of {str(self.path)!r} holds no table {name!r}")
        rows = self._viewed(self._part(table, unit, commit[name]))
        return rows if columns is None else rows.select(list(columns))

    def _with(self, name: str) -> list[tuple[str, Commit]]:
        if name == "recipes" and self.manifest.schema_version == 1:
            return []
        return [(unit, commit) for unit, commit in self.commits().items() if name in commit]

    def _part(self, table: Table, unit: str, commit: Mapping[str, Any]) -> pa.Table:
        rows = read_part(self.path, table.name, unit, commit)
        try:
            if self.manifest.schema_version < SCHEMA:
                rows = older.upgraded(table, rows, self.manifest.schema_version)
            return _filled(table, rows).cast(table.schema)
        except (pa.ArrowException, ValueError, KeyError) as error:
            raise RunError(
                f"part {unit!r} of table {table.name!r} in {str(self.path)!r} has other columns "
                f"than this version writes: {error}"
            ) from error

    @property
    def recipes(self) -> dict[str, dict[str, Any]]:
        """Return the recipes by key, as rows of table `recipes`."""
        return self._recipes

    @cached_property
    def _recipes(self) -> dict[str, dict[str, Any]]:
        if self.manifest.schema_version == 1:
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

    def commits(self) -> dict[str, Commit]:
        """Return what each finished unit wrote: SHA-256 and rows by table, units by name."""
        return self._commits

    @cached_property
    def _commits(self) -> dict[str, Commit]:
        names = [unit for unit in units_in(self.path) if unit != CONSTANT]
        return {unit: read_commit(self.path, unit)[0] for unit in names}

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
            RunError: If the file is missing or damaged.
        """
        if (self.path / COMMITS / f"{CONSTANT}.json").exists():
            return read_constants(self.path, read_commit(self.path, CONSTANT)[0][CONSTANT])
        # Of a folder from before there were digests; else it was never finished.
        older = not self.manifest.units and (self.path / CONSTANTS).exists()
        return read_constants(self.path, {}) if older else {}

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
        RunError: If it is no run folder, is damaged, lacks a unit that was finished, or is of
            another schema.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if manifest.units and manifest.status != "started":
        names = frozenset(units_in(path))
        lost = next(manifest.missing(names), None)
        if (manifest.status == "complete" and lost) or len(names) < manifest.done:
            raise RunError(
                f"{str(path)!r} has lost units that were finished, it holds {len(names)} of "
                f"{manifest.done}; the first that is missing is {lost!r}. Give the same command "
                "again to make them anew"
            )
    return Run(path, manifest)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a run folder.

    Raises:
        RunError: If there is none, it is damaged, or of another schema.
    """
    if not (path / MANIFEST).is_file() and not (path / COPY).is_file():
        raise RunError(f"{str(path)!r} is no run folder: it holds no {MANIFEST}")
    try:
        return _manifest(path, MANIFEST)
    except (OSError, ValueError) as error:
        hint = ""
        with suppress(OSError, ValueError):
            _manifest(path, COPY)
            hint = f"; `mnemoscope verify {path} --repair` rebuilds it, as the same command does"
        raise RunError(f"{str(path / MANIFEST)!r} is damaged: {error}{hint}") from error


def _manifest(path: Path, name: str) -> Manifest:
    given, has_digest = unsealed(read_bytes(path / name))
    if not isinstance(given.get("schema"), int):
        raise ValueError("it names no schema")
    if given["schema"] not in READ:
        # Not a ValueError: a newer version's folder is not damaged.
        raise RunError(
            f"{str(path)!r} is of schema {given['schema']}; this version reads "
            f"{', '.join(map(str, READ))}"
        )
    manifest = Manifest.model_validate(given)
    if manifest.units and not has_digest:
        raise ValueError("it lacks its digest")
    return manifest


def begun(path: Path) -> Manifest:
    """Return the manifest of a run that goes on, from its copy where it is damaged.

    Raises:
        RunError: As `read_manifest`, if the copy is damaged as well.
    """
    try:
        return read_manifest(path)
    except RunError:
        with suppress(OSError, ValueError):
            return _manifest(path, COPY)
        raise


def repair(path: Path) -> Manifest:
    """Rebuild a damaged manifest from its copy; what the run came to is counted anew.

    Returns:
        The manifest, as it is written; one that is whole is left as it is.

    Raises:
        RunError: If the copy is damaged as well, or another process is writing.
    """
    with suppress(RunError):
        return read_manifest(path)
    with _locked(path):
        try:
            manifest = _manifest(path, COPY)
        except (OSError, ValueError) as error:
            raise RunError(
                f"the manifest of {str(path)!r} cannot be rebuilt, its copy is damaged as well: "
                f"{error}; the tables can still be read one by one"
            ) from error
        lost = next(manifest.missing(frozenset(units_in(path))), None)
        status = "complete" if lost is None else "interrupted"
        return Writer(path).close(manifest, status).manifest


@dataclass(frozen=True)
class Writer:
    """A run folder, open for writing by the process that holds it, and by those that work for it.

    Attributes:
        path: The folder.
        holder: Name of the process that holds it; what works for another writes nothing. Empty
            where nothing of the kind is asked.
    """

    path: Path
    holder: str = ""

    @classmethod
    @contextmanager
    def open(cls, path: Path, manifest: Manifest) -> Generator["Writer"]:
        """Begin a run, or continue one of the same study.

        Raises:
            OtherRunError: If the folder is of another study.
            RunError: If it is in use, holds other things, or cannot be written.
        """
        writer = cls(path, uuid4().hex)
        if path.exists() and not path.is_dir():
            raise RunError(f"{str(path)!r} is a file; a run needs a folder")
        there = (path / MANIFEST).exists() or (path / COPY).exists()
        if path.is_dir() and not there:
            strangers = [item.name for item in path.iterdir() if not item.name.startswith(".")]
            if strangers:
                raise RunError(
                    f"{str(path)!r} is no run folder and not empty; give another with --out"
                )
        with _explained(path):
            path.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            for folder in (path, *(path / name for name in (*TABLES, COMMITS))):
                if folder != path and folder.is_symlink():
                    raise RunError(
                        f"{str(folder)!r} is a link, and nothing is written through it; give "
                        "another --out, or put the folder itself there"
                    )
                for left in folder.glob(".*.tmp"):
                    left.unlink()
            if there:
                before = begun(path)
                if differences := before.differences(manifest):
                    raise OtherRunError(
                        f"{str(path)!r} holds another {before.flow}. Different: "
                        f"{'; '.join(differences)}. "
                        "Give another --out, or the same options to continue."
                    )
                manifest.started = before.started
                writer._set_damaged_aside(older=not before.units)
            writer._write(Path(HOLDER), writer.holder.encode())
            writer._write(Path(COPY), sealed(manifest.told()))
            writer.write_manifest(manifest)
            yield writer

    def finished(self) -> frozenset[str]:
        """Return the units that are whole on disk."""
        return frozenset(units_in(self.path))

    def append(self, unit: str, parts: Mapping[str, pa.Table]) -> None:
        """Write the parts of a unit, then its commit.

        Raises:
            RunError: If a part cannot be written, or another process holds the folder by now; what
                was there before stays as it was.
        """
        self.ask()
        self._retract(unit)
        commit: Commit = {}
        for name, rows in parts.items():
            data = encode(table_named(name), rows)
            self._write(Path(name) / f"{unit}.parquet", data)
            commit[name] = _told(data, rows.num_rows)
        self.ask()
        self._commit(unit, commit)

    def ask(self) -> None:
        """Ask whether this is the folder, and still held by the process that is worked for.

        Raises:
            RunError: If it is not.
        """
        if not self.holder:
            return
        try:
            holder = read_bytes(self.path / HOLDER).decode()
        except (OSError, ValueError) as error:
            raise RunError(
                f"{str(self.path)!r} is not the run folder here that it is where the run was "
                "begun; give an --out on storage that all machines share, by the same path"
            ) from error
        if holder != self.holder:
            raise RunError(f"{str(self.path)!r} is held by another process by now")

    def has(self, unit: str) -> bool:
        """Tell whether a unit is committed."""
        return (self.path / COMMITS / f"{unit}.json").exists()

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest."""
        self._write(Path(MANIFEST), sealed(manifest.told()))

    def write_constants(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors that belong to the run as a whole."""
        data = save_tensors({k: v.contiguous() for k, v in tensors.items()})
        self._retract(CONSTANT)
        self._write(Path(CONSTANTS), data)
        self._commit(CONSTANT, {CONSTANT: _told(data, len(tensors))})

    def discard_failed(self) -> None:
        """Take back the units in which a sample is not ok, so that they run again."""
        for unit in units_in(self.path):
            commit, _ = read_commit(self.path, unit)
            if "samples" not in commit:
                continue
            rows = read_part(self.path, "samples", unit, commit["samples"])
            if set(rows["status"].to_pylist()) != {"ok"}:
                self._retract(unit)

    def _retract(self, unit: str) -> None:
        """Remove a unit's commit before its parts change: half of it must not count."""
        commit = self.path / COMMITS / f"{unit}.json"
        if commit.exists():
            with _explained(commit):
                commit.unlink()
                sync_folder(commit.parent)

    def _commit(self, unit: str, commit: Commit) -> None:
        self._write(Path(COMMITS) / f"{unit}.json", sealed({"unit": unit, "parts": commit}))

    @contextmanager
    def noting(self, manifest: Manifest) -> Generator[None]:
        """Note in the manifest that the run was interrupted, if the block ends early."""
        try:
            with interruptible():
                yield
        except (KeyboardInterrupt, MnemoscopeError):
            # A full disk may have room for the manifest, or not: what was finished is intact.
            with suppress(RunError):
                self.close(manifest, "interrupted")
            raise

    def close(self, manifest: Manifest, status: Status) -> Run:
        """Count what there is and write the final manifest."""
        manifest.status, manifest.finished = status, now()
        run = Run(self.path, manifest)
        rows: Counter[str] = Counter()
        for commit in run.commits().values():
            rows.update({name: part["rows"] for name, part in commit.items()})
        manifest.rows = dict(rows)
        found: Counter[str] = Counter()
        for part in run.parts("samples", ["status"]):
            found.update(part["status"].to_pylist())
        manifest.samples = dict(found)
        manifest.done = len(self.finished())
        self.write_manifest(manifest)
        return run

    def _write(self, name: Path, data: bytes) -> None:
        target = self.path / name
        with _explained(target):
            write_atomically(target, data)

    def _set_damaged_aside(self, older: bool) -> None:
        """Set aside what differs from its digest; give older records theirs."""
        for unit in units_in(self.path):
            try:
                commit, has_digest = read_commit(self.path, unit)
            except RunError:
                _set_aside(self.path / COMMITS / f"{unit}.json")
                continue
            damaged = [name for name in commit if not self._whole(unit, name, commit[name])]
            for name in damaged:
                _set_aside(_place(self.path, name, unit))
            if damaged:
                self._retract(unit)
            elif not has_digest:
                self._commit(unit, commit)
        constants = self.path / CONSTANTS
        if constants.exists() and CONSTANT not in units_in(self.path):
            try:
                held = read_constants(self.path, {}) if older else {}
            except RunError:
                held = {}
            if held:
                self._commit(CONSTANT, {CONSTANT: _told(constants.read_bytes(), len(held))})
            else:
                _set_aside(constants)

    def _whole(self, unit: str, name: str, part: Mapping[str, Any]) -> bool:
        try:
            _read(_place(self.path, name, unit), part)
        except RunError:
            return False
        return True


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Hold a folder for this process alone."""
    if (path / LOCK).is_symlink():
        raise RunError(f"{str(path / LOCK)!r} is a link; remove it")
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
        yield


def _set_aside(path: Path) -> None:
    if path.exists():
        with _explained(path):
            os.replace(path, path.with_name(path.name + ".corrupt"))


@contextmanager
def _explained(target: Path) -> Generator[None]:
    try:
        yield
    except (OSError, NotImplementedError) as error:
        if isinstance(error, NotImplementedError) or error.errno in UNABLE:
            raise RunError(
                f"the file system of {str(target)!r} cannot lock, rename or sync as a run folder "
                f"needs it to survive what may happen: {error}. Give an --out on one that can (a "
                "local disk, NFS, Lustre), and copy the finished folder to where it shall lie"
            ) from error
        raise RunError(
            f"cannot write {str(target)!r}: {error.strerror or error}. What was finished before is "
            "intact; make room or choose another folder, and give the same command again"
        ) from error


def _told(data: bytes, rows: int) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "rows": rows}


def _place(folder: Path, name: str, unit: str) -> Path:
    """Return where a part of a unit lies."""
    return folder / CONSTANTS if name == CONSTANT else folder / name / f"{unit}.parquet"


def _read(path: Path, commit: Mapping[str, Any]) -> bytes:
    """Read what a commit tells of; an empty one, of an older folder, tells nothing."""
    try:
        data = read_bytes(path, MAX_PART)
    except (OSError, ValueError) as error:
        raise RunError(f"{str(path)!r} cannot be read: {error}; run the study again") from error
    if commit and hashlib.sha256(data).hexdigest() != commit["sha256"]:
        raise RunError(
            f"{str(path)!r} differs from what was written; run the study again to replace it"
        )
    return data


def read_part(folder: Path, name: str, unit: str, commit: Mapping[str, Any]) -> pa.Table:
    """Read a part, verified.

    Raises:
        RunError: If it is missing, or differs from its commit.
    """
    path = _place(folder, name, unit)
    data = _read(path, commit)
    try:
        return decode(data, commit["rows"])
    except (OSError, ValueError, pa.ArrowException) as error:
        raise RunError(f"{str(path)!r} cannot be read: {error}; run the study again") from error


def _filled(table: Table, rows: pa.Table) -> pa.Table:
    """Put nulls where a part was written before its table had a column that may be null."""
    for at, column in enumerate(table.columns):
        if column.nullable and column.name not in rows.column_names:
            rows = rows.add_column(at, column.name, pa.nulls(rows.num_rows, column.type))
    return rows


def _where(rows: pa.Table, **values: Any) -> pa.Table:
    """Return the rows with these values."""
    here = np.ones(rows.num_rows, dtype=bool)
    for name, value in values.items():
        here &= rows[name].to_numpy() == value
    return rows.filter(pa.array(here))


def units_in(folder: Path) -> list[str]:
    """Return the names of the units that are committed, sorted."""
    try:
        names = os.listdir(folder / COMMITS)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{str(folder / COMMITS)!r} cannot be read: {error}") from error
    hidden = (name for name in names if name.endswith(".json") and not name.startswith("."))
    return sorted(name.removesuffix(".json") for name in hidden)


def read_commit(folder: Path, unit: str) -> tuple[Commit, bool]:
    """Return what a unit wrote, and whether its commit carries a digest.

    Raises:
        RunError: If the commit is damaged, or is another unit's.
    """
    path = folder / COMMITS / f"{unit}.json"
    try:
        told, has_digest = unsealed(read_bytes(path))
        if has_digest and told.pop("unit") != unit:
            raise ValueError("it is the commit of another unit")
        parts = told.pop("parts") if has_digest else told
        if not has_digest and not parts:
            raise ValueError("it names no part")
        for name, part in parts.items():
            known = name in TABLES or (name == unit == CONSTANT)
            if not known or part.keys() != {"sha256", "rows"}:
                raise ValueError(f"{name!r} is no table with sha256 and rows")
            if not _DIGEST.fullmatch(part["sha256"]) or not 0 <= part["rows"] <= MAX_PART:
                raise ValueError(f"sha256 or rows of {name!r} are none")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise RunError(f"{str(path)!r} is damaged: {error}; run the study again") from error
    return parts, has_digest


def read_constants(folder: Path, commit: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the constants; an empty commit, of an older folder, has no digest of them.

    Raises:
        RunError: If they are missing or damaged.
    """
    data = _read(folder / CONSTANTS, commit)
    try:
        return load_tensors(data)
    except Exception as error:  # safetensors' own error class is a direct child of Exception
        raise RunError(
            f"{str(folder / CONSTANTS)!r} is damaged: {error}; run the study again"
        ) from error
