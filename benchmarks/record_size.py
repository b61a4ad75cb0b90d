"""The size of a record: bytes on disk a sample at 50 steps, pictures aside.

A latent trajectory of Stable Diffusion in float16, one state a step, is the peer: 50 steps of 16384
coordinates and the two predictions beside them.
"""

import sys
import tempfile
from pathlib import Path

from benchmarks.table import Row, show
from mnemoscope import Study, run

STEPS, LIMIT = 50, 12_000
PEER = STEPS * 3 * 4 * 64 * 64 * 2


def main() -> bool:
    """Measure, print, and return whether every limit is kept."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        done = run(
            Study(model="embedded", subset=4, seeds=8, guidance=(7.5,), steps=STEPS, out=out)
        )
        samples = done.table("samples").num_rows

        def bytes_of(table: str) -> float:
            return sum(part.stat().st_size for part in (out / table).glob("*.parquet")) / samples

        sizes = {name: bytes_of(name) for name in ("gram", "convergence", "similarities")}
    whole = sum(sizes.values())
    rows = [
        Row(f"{name} a sample", f"{size / 1e3:.2f} kB", "", size, LIMIT)
        for name, size in sizes.items()
    ]
    rows.append(
        Row("the record a sample", f"{whole / 1e3:.2f} kB", f"{PEER / 1e3:.0f} kB", whole, LIMIT)
    )
    return show("Size of the record", rows, f"embedded model, {samples} samples, {STEPS} steps")


if __name__ == "__main__":
    sys.exit(not main())
