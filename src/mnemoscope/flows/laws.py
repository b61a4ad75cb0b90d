"""The laws of memorizing are trained for, measured and drawn: when it begins, and from how much.

The folder then holds::

    NAME/            a folder a network: its state, its log, and what it drew at each step
    laws-*.png       the figures, and laws.pdf with all of them
    laws.md          what was found beside what is published

Contents: `Lawful`, `find_laws`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mnemoscope.errors import InputError
from mnemoscope.flows.options import values_of
from mnemoscope.lab.dial import Point
from mnemoscope.lab.dial import figures as dial_figures
from mnemoscope.models.shipped import EVALUATION
from mnemoscope.options import option
from mnemoscope.ranking.markdown import table
from mnemoscope.reporting.figures import save
from mnemoscope.runs.folder import open_run
from mnemoscope.runs.records import write_atomically


@dataclass(frozen=True)
class Lawful:
    """What to train and measure. Every field is an option of `mnemoscope lab laws`."""

    out: str | Path = option("runs/laws", "Folder of the networks and results.")
    sizes: tuple[int, ...] = option(
        (8, 16, 32, 64, 1024), "Numbers of pictures; two networks learn disjoint sets of each."
    )
    steps: int = option(1600, "Steps of training; more of them lengthen a finished run.")
    labels: tuple[int, ...] = option(
        (64,), "Numbers of pictures that a network also learns with a label for each."
    )
    evaluation: str | Path | None = option(
        None, "What `lab evaluate --out` wrote; that of the model inside where not given."
    )
    planting: str | Path | None = option(None, "Folder of a planting with kept states.")
    dial: tuple[str, ...] = option(
        (),
        "Results of `bench detectors` on models that differ in the dial of `lab plant --known` "
        "alone, K=FOLDER, comma-separated.",
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be learned.

        Raises:
            InputError: If a value is out of range.
        """
        for given in self.dial:
            known, equals, _ = given.partition("=")
            if not equals or not known.replace(".", "", 1).isdecimal():
                raise InputError(f"dial {given!r} given; expected K=FOLDER, such as 0.5=runs/half")
        if any(size < 2 for size in (*self.sizes, *self.labels)):
            raise InputError("a copy is told from the second nearest picture; sizes begin at 2")

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> "Lawful":
        """Make it of options as a command line has them.

        Raises:
            InputError: If a value does not fit.
        """
        return cls(**values_of(cls, options))


def find_laws(asked: Lawful, notify: Callable[[str], None] | None = None) -> str:
    """Train what is not trained yet, draw the figures, and say what was found, as Markdown.

    Args:
        asked: What to train and measure.
        notify: Told what is trained.

    Source: Bonnaire et al. 2025; Gu et al. 2023; Kadkhodaie et al. 2024.
    """
    # What trains networks is imported where it is asked for: every command loads this module.
    from mnemoscope.lab.kept import kept_in
    from mnemoscope.lab.laws import Laws, labelled_of, sizes_of
    from mnemoscope.lab.small import HALVES, Lesson, learn, marks

    say = notify or (lambda line: None)
    out = Path(asked.out)
    lessons = [Lesson(n, half) for n in asked.sizes for half in range(HALVES)]
    lessons += [Lesson(n, labelled=True) for n in asked.labels]
    looks = marks(asked.steps)
    found = {}
    for lesson in lessons:
        say(f"{lesson.name}: {lesson.pictures} pictures, {looks[-1]} steps")
        found[lesson] = learn(lesson, out / lesson.name, looks)
    evaluation = json.loads(Path(asked.evaluation or EVALUATION).read_text("utf-8"))
    kept = () if asked.planting is None else kept_in(Path(asked.planting))
    laws = Laws(sizes_of(found), labelled_of(found), evaluation, kept)
    drawn = dict(laws.figures())
    if asked.dial:
        drawn["laws-dial"] = tuple(dial_figures(map(_point, asked.dial)))
    save(drawn, out / "laws.pdf")
    told = table(["law", "found", "published"], laws.rows())
    write_atomically(out / "laws.md", told.encode())
    return told


def _point(given: str) -> Point:
    """Read what was found at a point of the dial."""
    known, _, folder = given.partition("=")
    ranking = pq.read_table(Path(folder) / "ranking.parquet").to_pylist()
    return Point.of(float(known), open_run(Path(folder) / "study"), ranking)
