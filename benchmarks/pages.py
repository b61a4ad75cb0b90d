"""The report: how big it is, how long it takes to build and to open, from a demo to 10,000 prompts.

The demo's run is a real one. Larger runs are the tables of a small one laid side by side under
other names, since a page costs what its rows cost, whatever they say. Opening needs Chromium; it
counts from the navigation's start to the load event, and to the first paint.
"""

import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path
from time import perf_counter
from typing import Any

import pyarrow as pa

from benchmarks.table import Row, show
from mnemoscope import Study, report, run
from mnemoscope.runs.folder import Run, Writer
from mnemoscope.runs.tables import TABLES
from tests.reporting.browser import CHROMIUM, Window, browser

SINGLE, BUILD, PAINT, OPEN, SCRIPT = 6e6, 10.0, 1.0, 2.0, 150e3
"""Bytes, seconds, seconds, seconds, bytes."""
NAMED = ("prompt_id", "reference_id", "nearest_reference_id")
"""Columns that name a row, and so must differ between copies."""
SCROLL = """
new Promise((done) => {
const times = [];
let last = performance.now(), at = 0;
function frame(now) {
  times.push(now - last); last = now;
  at += window.innerHeight / 3; window.scrollTo(0, at);
  if (times.length < 60) requestAnimationFrame(frame);
  else done(times.slice(1).sort((a, b) => a - b)[56]);
}
requestAnimationFrame(frame);
})
"""
"""Scroll a third of a screen a frame; the 95th percentile of the time a frame takes, ms."""


def repeat(source: Run, copies: int, folder: Path, tables: tuple[str, ...]) -> Run:
    """Write a run that holds the tables of another several times under other names."""
    # Without what a reader is told beside them.
    held = {
        name: source.table(name).select(TABLES[name].schema.names)
        for name in tables
        if source.manifest.rows.get(name)
    }
    manifest = source.manifest.model_copy(update={"rows": {}, "samples": {}})
    with Writer.open(folder, manifest) as writer:
        for copy in range(copies):
            parts = {name: _renamed(rows, f"~{copy}") for name, rows in held.items()}
            for once in ("null", "recipes") if copy else ():
                parts.pop(once, None)
            writer.append(f"{copy:05}", parts)
        return writer.close(manifest, "complete")


def _renamed(rows: pa.Table, ending: str) -> pa.Table:
    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(part) for part in value]
        return None if value is None else value + ending

    for name in (*NAMED, "references", "prompt_ids"):
        if name in rows.column_names:
            field = rows.schema.field(name)
            values = pa.array(map(named, rows[name].to_pylist()), field.type)
            rows = rows.set_column(rows.schema.get_field_index(name), field, values)
    return rows


def size(folder: Path) -> int:
    """Return the bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def opened(window: Window | None, page: Path) -> tuple[float, float, float]:
    """Open a page; return seconds to its load event and first paint, and milliseconds a frame."""
    if window is None:
        return (float("nan"),) * 3
    window.size(1280, 900)
    window.open(page)
    loaded, paint = (
        window.until(f"return performance.getEntriesBy{what}")
        for what in (
            "Type('navigation')[0].loadEventEnd",
            "Name('first-contentful-paint')[0]?.startTime",
        )
    )
    return loaded / 1000, paint / 1000, window.page.evaluate(SCROLL)


def measure(window: Window | None, folder: Path) -> list[Row]:
    """Measure every size and return the table's rows."""
    demo = run(Study(subset=24, seeds=4, filmstrip=16, out=folder / "demo"))
    start = perf_counter()
    page = report(demo)
    built = perf_counter() - start
    single = report(demo, folder / "single", single_file=True)
    loaded, paint, _ = opened(window, single)
    scripts = resources.files("mnemoscope.reporting") / "templates"
    largest = max(len((scripts / name).read_bytes()) for name in ("script.js", "detail.js"))
    bytes_ = single.stat().st_size
    rows = [
        Row("demo, single file, MB", f"{bytes_ / 1e6:.2f}", "", bytes_, SINGLE),
        Row("demo, folder built, s", f"{built:.1f}", "", built, BUILD),
        Row("demo, first paint, s", f"{paint:.2f}", "", paint, PAINT),
        Row("demo, loaded, s", f"{loaded:.2f}", "", loaded, None),
        Row("largest script, kB", f"{largest / 1e3:.0f}", "", largest, SCRIPT),
    ]
    wide = run(Study(subset=20, seeds=10, filmstrip=16, out=folder / "wide"))
    small = ("recipes", "prompts", "references", "samples", "gram", "similarities", "severity",
             "null", "scores")  # fmt: skip
    for prompts, source, tables in (
        (500, wide, (*small, "convergence", "filmstrips")),
        (10_008, demo, small),
    ):
        copies = prompts // source.manifest.rows["prompts"]
        many = repeat(source, copies, folder / f"run-{prompts}", tables)
        start = perf_counter()
        page = report(many)
        built = perf_counter() - start
        loaded, paint, frame = opened(window, page)
        whole, index = size(page.parent) / 1e6, page.stat().st_size / 1e6
        what = f"{prompts:,} prompts, {sum(many.manifest.samples.values()):,} samples"
        rows += [
            Row(f"{what}: folder, MB", f"{whole:.0f}", "", whole, None),
            Row("  its index.html, MB", f"{index:.1f}", "", index, None),
            Row("  built, s", f"{built:.0f}", "", built, None),
            Row("  loaded, s", f"{loaded:.2f}", "", loaded, OPEN if prompts == 500 else None),
            Row("  a frame while scrolling, ms", f"{frame:.0f}", "", frame, None),
        ]
        shutil.rmtree(many.path)
    return rows


def main() -> bool:
    """Measure, print, and return whether every limit is kept."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if CHROMIUM:
            with browser() as chromium:
                rows = measure(Window(chromium, folder), folder)
        else:
            rows = measure(None, folder)
            print("no Chromium: nothing was opened")
            rows = [row for row in rows if row.value == row.value]
    return show("The report", rows, "embedded model; larger runs repeat its tables")


if __name__ == "__main__":
    sys.exit(not main())
