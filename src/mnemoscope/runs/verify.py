"""A run folder is whole where every file is what was written, and no unit is missing.

Contents: `Verified`, `verify`; `runs_in`, the folders to verify.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mnemoscope.errors import RunError
from mnemoscope.runs.folder import (
    CONSTANT,
    CONSTANTS,
    COPY,
    MANIFEST,
    read_commit,
    read_constants,
    read_manifest,
    read_part,
    units_in,
)

STAGES = ("screen", "confirm")
"""Run folders within that of a finished audit."""
SHOWN = 10
"""Most missing units that are named."""


@dataclass(frozen=True)
class Verified:
    """What was found in a run folder.

    Attributes:
        path: The folder.
        status: How far the run came, as its manifest says; None where that is damaged.
        units: Number of units that are whole.
        files: Number of files that are what was written.
        unchecked: Number of files without a digest, of a folder from before there were any.
        damaged: What is damaged, file by file, in words.
        lost: Units that were finished and are gone.
        ahead: Number of units that were not finished yet.
    """

    path: Path
    status: str | None
    units: int
    files: int
    unchecked: int
    damaged: tuple[str, ...]
    lost: tuple[str, ...]
    ahead: int

    @property
    def ok(self) -> bool:
        """Return whether all that was finished is whole."""
        return not self.damaged and not self.lost

    def __str__(self) -> str:
        """Say it, a line each."""
        lines = [f"{self.path}: {self.status or 'its manifest is damaged'}"]
        lines.append(f"{self.units} units and {self.files} files are whole")
        if self.unchecked:
            lines.append(f"{self.unchecked} files are older than digests and cannot be checked")
        if self.ahead:
            lines.append(f"{self.ahead} units are not finished; the same command goes on")
        lines += [f"damaged: {told}" for told in self.damaged]
        lines += [f"missing: {unit}" for unit in self.lost[:SHOWN]]
        if len(self.lost) > SHOWN:
            lines.append(f"missing: {len(self.lost) - SHOWN} units more")
        return "\n".join(lines)


def runs_in(path: str | Path) -> tuple[Path, ...]:
    """Return a run folder and those that lie in it, as the stages of an audit do."""
    path = Path(path)
    inner = sorted(path.iterdir()) if path.is_dir() else []
    within = (one for one in inner if (one / MANIFEST).is_file() or (one / COPY).is_file())
    return path, *within


def verify(path: str | Path) -> Verified:
    """Read every file of a run folder and compare it with its digest.

    Args:
        path: The folder.

    Returns:
        What is whole, damaged or missing; nothing is changed.

    Raises:
        RunError: If it is no run folder.
    """
    path = Path(path)
    damaged: list[str] = []
    manifest = None
    try:
        manifest = read_manifest(path)
    except RunError as error:
        if not units_in(path):
            raise
        damaged.append(str(error))
    names = units_in(path)
    older = manifest is not None and not manifest.units
    files, unchecked, units = int(manifest is not None), int(older), 0
    if older and (path / CONSTANTS).exists() and CONSTANT not in names:
        files, unchecked = files + 1, unchecked + 1
    for unit in names:
        faults = list[str]()
        for fault, has_digest in _checked(path, unit):
            if fault:
                faults.append(fault)
            else:
                files += 1
                unchecked += not has_digest
        units += not faults
        damaged += faults
    lost, ahead = tuple[str, ...](), 0
    if manifest is not None and manifest.units:
        missing = max(0, sum(manifest.units.values()) - len(names))
        first = manifest.missing(frozenset(names))
        if manifest.status == "complete":
            stages = STAGES if manifest.flow == "audit" else ()
            gone = (stage for stage in stages if path / stage not in runs_in(path))
            lost = (*islice(first, missing), *gone)
        elif manifest.status == "interrupted":
            # Units are finished in order, so that those that are gone come first.
            lost = tuple(islice(first, max(0, manifest.done - len(names))))
        ahead = max(0, missing - len(lost))
    return Verified(
        path,
        None if manifest is None else manifest.status,
        units,
        files,
        unchecked,
        tuple(damaged),
        lost,
        ahead,
    )


def _checked(path: Path, unit: str) -> Iterator[tuple[str | None, bool]]:
    """Yield, for each file of a unit, what is wrong with it, and whether it has a digest."""
    try:
        commit, has_digest = read_commit(path, unit)
    except RunError as error:
        yield str(error), False
        return
    yield None, has_digest
    for name, part in commit.items():
        try:
            if name == CONSTANT:
                read_constants(path, part)
            else:
                read_part(path, name, unit, part)
            yield None, True
        except RunError as error:
            yield str(error), True
