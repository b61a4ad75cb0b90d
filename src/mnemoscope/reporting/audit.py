"""What an audit found, read from its run: which images are given back, and how sure that is.

Contents: `Found` and `found_of`; `write`, its page, one HTML file without scripts; the names of an
audit's statistics.
"""

import base64
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from mnemoscope.core.panels import CurvePanel, Series
from mnemoscope.errors import RunError
from mnemoscope.ranking.funnel import WIDEN
from mnemoscope.reporting.figures import svg
from mnemoscope.reporting.page import PARTS, command, digest, environment
from mnemoscope.reporting.text import number, percent
from mnemoscope.runs.folder import Run, open_run
from mnemoscope.runs.records import write_atomically
from mnemoscope.runs.verify import runs_in

ORDINARY = "ordinary"
"""Why a prompt was sampled that is no caption of the set."""
GIVEN_BACK = ("memorized", "copies another image")
"""States in which a caption gives an image of the set back."""
ANALYSIS = "audit"
SHARE, RECALL, SURE = (
    "share that gives a training image back",
    "share of those that were found",
    "share of samples of which no copy by l2 can be overlooked",
)
LAST = "share of the last round that gives a training image back"
INFERRED = "p of dataset inference"
ADDED = "share that gives one back with the adapter and not without it"
"""Statistics of an audit."""

TOLD = {
    "captions": "captions repeat",
    "wordings": "have the words of another",
    "pictures": "have a picture that repeats",
    "alike": "have a picture that is all but the same as another",
    "recoloured": "have a picture that is another, recoloured or mirrored",
    "edited": "have a picture that is another, cropped or retouched",
    "alone": "have a picture that lies alone",
}
"""Why captions are suspects before any call, in the order of the narrower reason first."""

Row = Mapping[str, Any]


def at_scale(scale: float) -> str:
    """Return the population of the captions at a scale of a LoRA."""
    return f"captions, LoRA scale {scale:g}"


@dataclass(frozen=True)
class Found:
    """What an audit found.

    Attributes:
        run: The audit.
        funnel: Rows of table `funnel`.
        captions: Rows of table `audited` that are captions of the set.
        ordinary: Those that are ordinary prompts.
        share: Share of the captions that give an image back; a row of table `statistics`.
        recall: Share of those that were found; likewise.
        ordinarily: Share of the ordinary prompts that give an image back; None without any.
        sure: Share of samples of which no copy can have been overlooked.
        last: Share of the funnel's last round that gives an image back.
        inferred: Whether the set as a whole was trained on, a p; None where nothing was held out.
        added: Share that the adapter added; None where none was audited.
        ladder: Shares of the captions that give an image back, by scale of the adapter, ascending.
        states: State of each prompt at these scales, in their order, by prompt_id.
        suspects: Rows of table `suspects`, the most repeated first.
    """

    run: Run
    funnel: tuple[Row, ...]
    captions: tuple[Row, ...]
    ordinary: tuple[Row, ...]
    share: Row
    recall: Row
    ordinarily: Row | None
    sure: Row
    last: Row | None = None
    inferred: Row | None = None
    added: Row | None = None
    ladder: Mapping[float, Row] = field(default_factory=dict[float, Row])
    states: Mapping[str, Sequence[Row]] = field(default_factory=dict[str, Sequence[Row]])
    suspects: tuple[Row, ...] = ()

    @property
    def rungs(self) -> tuple["Rung", ...]:
        """Return the captions that give an image back at any scale, the first to do so first."""
        found: list[Rung] = []
        for row in self.captions:
            steps = self.states.get(row["prompt_id"], ())
            at = [step["lora_scale"] for step in steps if step["state"] in GIVEN_BACK]
            if at:
                above = (step["lora_scale"] for step in steps if step["lora_scale"] > min(at))
                gone = tuple(scale for scale in above if scale not in at)
                found.append(Rung(row, steps, min(at), gone))
        return tuple(sorted(found, key=lambda rung: rung.first))

    @property
    def stood_out(self) -> tuple["Stood", ...]:
        """Return how many captions stood out before any call, and what became of them."""
        states = {row["prompt_id"]: row["state"] for row in self.captions}
        found = list[Stood]()
        for reason in TOLD:
            rows = [row for row in self.suspects if reason in row["reasons"]]
            sampled = [states[r["prompt_id"]] for r in rows if r["prompt_id"] in states]
            back = sum(state in GIVEN_BACK for state in sampled)
            pictured = tuple(row for row in rows if row["image"] is not None)[:PICTURED]
            if rows:
                found.append(Stood(TOLD[reason], len(rows), len(sampled), back, pictured))
        return tuple(found)

    @property
    def given_back(self) -> tuple[Row, ...]:
        """Return the captions and prompts that give an image back, the surest first."""
        return self._surest(lambda row: row["state"] in GIVEN_BACK)

    @property
    def now_and_then(self) -> tuple[Row, ...]:
        """Return those of which samples copy an image, but too few for that; the surest first."""
        return self._surest(lambda row: row["state"] not in GIVEN_BACK and _copies(row) > 0)

    def _surest(self, are: Callable[[Row], bool]) -> tuple[Row, ...]:
        rows = [row for row in (*self.captions, *self.ordinary) if are(row)]
        rows.sort(key=lambda row: (_copies(row), row["similarity"] or 0.0), reverse=True)
        return tuple(rows)

    @property
    def pictures(self) -> tuple[str, ...]:
        """Return the names of the images that are given back."""
        names = (name for row in self.given_back for name in row["references"])
        return tuple(dict.fromkeys(names))

    @property
    def unjudged(self) -> int:
        """Return how many captions were sampled and cannot be judged."""
        return sum(row["state"] == "not judged" for row in self.captions)

    @property
    def listed(self) -> int:
        """Return how many different captions the data set has."""
        return next(row["items"] for row in self.funnel if row["stage"] == "screen")

    @property
    def marked(self) -> Mapping[str, int]:
        """Return how many samples of all stages failed or are not finite, by status."""
        found = Counter[str]()
        for folder in runs_in(self.run.path)[1:]:
            found.update(open_run(folder).manifest.samples)
        return {status: count for status, count in found.items() if status != "ok"}

    @property
    def narrow(self) -> bool:
        """Return whether the funnel's last round called for another one."""
        scored = sum(row["chosen"] == "score" for row in self.captions)
        found = None if self.last is None else self.last["value"]
        return scored < self.listed and (found or 0.0) >= WIDEN

    @property
    def calls(self) -> int:
        """Return the network calls of all stages."""
        return sum(row["network_calls"] for row in self.funnel)

    @property
    def title(self) -> str:
        """Answer which images the model gives back."""
        count, own = len(self.pictures), [r for r in self.given_back if r["chosen"] != ORDINARY]
        if not self.given_back and self.unjudged == len(self.captions):
            return "Nothing can be said: no caption could be judged"
        if not self.given_back:
            return (
                f"No image of the data set was found to be given back, of {self.listed:,} captions"
            )
        images = "1 image" if count == 1 else f"{count:,} images"
        prompts = "1 caption" if len(own) == 1 else f"{len(own):,} captions"
        return f"The model gives back {images} of the data set, to {prompts} of {self.listed:,}"

    @property
    def sentences(self) -> tuple[str, ...]:
        """Say how many there are in all, how many of them were found, and at what price."""
        sampled = len(self.captions)
        some = f"{sampled:,} were sampled in full, the others screened"
        said = [
            f"Of all {self.listed:,} captions, {_share(self.share)} give a training image back in "
            "at least half of their samples; "
            f"{some if sampled < self.listed else 'all were sampled in full'}."
        ]
        if self.recall["value"] is not None and sampled < self.listed:
            said.append(f"Of those that do, the audit found {_share(self.recall)}.")
        if seldom := len(self.now_and_then):
            some = "1 more caption gives" if seldom == 1 else f"{seldom:,} more captions give"
            said.append(f"{some} one back in fewer of their samples.")
        if self.added is not None:
            said.append(
                f"Without the adapter {_share(self.ladder[0.0])} do, from the same noise; the "
                f"adapter adds {_share(self.added)}."
            )
        if self.last is not None and self.narrow:
            said.append(
                f"Of the last {self.last['n']:,} that were sampled as suspicious, "
                f"{percent(self.last['value'])} do, so more may: sample more of them, by a larger "
                "--finalists or --budget."
            )
        if self.unjudged:
            some = "1 caption" if self.unjudged == 1 else f"{self.unjudged:,} captions"
            said.append(f"{some} could not be judged and count either way in the interval.")
        if self.ordinarily is not None:
            said.append(
                f"Of {self.ordinarily['n']:,} ordinary prompts, {_share(self.ordinarily)} do."
            )
        if self.inferred is not None:
            said.append(_member(self.inferred))
        said.append(
            f"{self.calls:,} network calls in all. Every sample was held against every image of "
            f"the set; of {percent(self.sure['value'])} of them no copy by l2 can be overlooked."
        )
        return tuple(said)

    def exceeds(self, limit: float) -> bool:
        """Return whether more than a share of the captions certainly gives an image back."""
        return self.share["low"] is not None and self.share["low"] > limit

    def told(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "title": self.title,
            "images": list(self.pictures),
            "captions": [dict(row) for row in self.given_back],
            "now_and_then": [dict(row) for row in self.now_and_then],
            "statistics": [
                dict(row)
                for row in (
                    self.share,
                    self.recall,
                    self.added,
                    *self.ladder.values(),
                    self.ordinarily,
                    self.sure,
                    self.inferred,
                )
                if row is not None
            ],
            "scales": [
                {
                    "prompt_id": one.row["prompt_id"],
                    "prompt": one.row["prompt"],
                    "from": one.first,
                    "not_at": list(one.gone),
                }
                for one in self.rungs
            ],
            "suspects": {one.reason: one.captions for one in self.stood_out},
            "funnel": [dict(row) for row in self.funnel],
        }


PICTURED = 4
"""Suspects of a reason that a page shows."""


@dataclass(frozen=True)
class Stood:
    """Captions that stood out before any call, for one reason.

    Attributes:
        reason: Why, in words.
        captions: How many.
        sampled: How many of these were sampled in full.
        back: How many of these give an image back.
        pictured: The first few rows with a picture.
    """

    reason: str
    captions: int
    sampled: int
    back: int
    pictured: tuple[Row, ...]


@dataclass(frozen=True)
class Rung:
    """A caption that gives an image back at some scale of the adapter.

    Attributes:
        row: Its row of table `audited`.
        steps: Its rows of table `scales`, ascending.
        first: The least scale at which it does.
        gone: The larger ones at which it does not.
    """

    row: Row
    steps: Sequence[Row]
    first: float
    gone: tuple[float, ...]


def _copies(row: Row) -> float:
    """Return the share of samples that copy an image, the caption's own or another."""
    return max(row["share"] or 0.0, row["share_elsewhere"] or 0.0)


CERTAIN = 0.01
"""Largest p by which a data set is said to have been trained on. Source: Dubiński et al. 2025."""


def _member(row: Row) -> str:
    if row["value"] is None:
        return f"Whether the set as a whole was trained on cannot be told: {row['method']}."
    yes = "was trained on" if row["value"] <= CERTAIN else "cannot be told from one held out"
    return (
        f"By membership scores, the set as a whole {yes}: p = {number(row['value'])}, "
        f"{row['n']:,} items, {row['method']}."
    )


def _share(row: Row) -> str:
    ends = f"{percent(row['low'])} to {percent(row['high'])}"
    if row["value"] is None:
        return f"a share somewhere in {ends}"
    if row["low"] == row["high"]:
        return percent(row["value"])
    return f"{percent(row['value'])} (95\u00a0% interval {ends})"


def found_of(run: Run) -> Found:
    """Read what an audit found.

    Raises:
        RunError: If the run is no audit, is not finished, or is damaged.
    """
    if run.manifest.flow != ANALYSIS:
        raise RunError(
            f"{str(run.path)!r} holds a {run.manifest.flow}; give the folder of an audit"
        )
    statistics: Sequence[Row] = run.table("statistics").to_pylist()

    def of(name: str, population: str) -> Row | None:
        rows = (r for r in statistics if r["name"] == name and r["population"] == population)
        return next(rows, None)

    share, recall, sure = of(SHARE, "captions"), of(RECALL, "captions"), of(SURE, "samples")
    if share is None or recall is None or sure is None:
        raise RunError(f"the audit in {str(run.path)!r} is not finished; give its command again")
    rows: Sequence[Row] = run.table("audited").to_pylist()
    states: dict[str, list[Row]] = defaultdict(list)
    for row in run.table("scales").to_pylist():
        states[row["prompt_id"]].append(row)
    scales = sorted({row["lora_scale"] for some in states.values() for row in some})
    ladder = {scale: of(SHARE, at_scale(scale)) for scale in scales}
    return Found(
        run,
        tuple(run.table("funnel").to_pylist()),
        tuple(row for row in rows if row["chosen"] != ORDINARY),
        tuple(row for row in rows if row["chosen"] == ORDINARY),
        share,
        recall,
        of(SHARE, "ordinary prompts"),
        sure,
        of(LAST, "captions"),
        of(INFERRED, "items"),
        of(ADDED, "captions"),
        {scale: row for scale, row in ladder.items() if row is not None},
        states,
        tuple(run.table("suspects").to_pylist()),
    )


BEST = "Training image on the left, the closest sample on the right; the surest first."
SELDOM = "Samples of these captions copy an image, but fewer than half of them; the surest first."
"""What is said above the pictures."""
SHOWN = 120
"""Captions whose pictures a page shows; the others are rows of table `audited`."""


@dataclass(frozen=True)
class Pair:
    """A caption of which samples copy an image, with the one that shows it best.

    Attributes:
        row: Its row of table `audited`.
        reference: Name of the image.
        similarity: Similarity of the two, by the primary measure.
        sample: Picture of the sample, a data URI; None where there is none.
        target: Picture of the image; likewise.
    """

    row: Row
    reference: str
    similarity: float
    sample: str | None
    target: str | None


def write(found: Found, out: str | Path | None = None, *, redact_images: bool = False) -> Path:
    """Write the page of an audit.

    Args:
        found: What was found.
        out: Folder of the page; `report` within the audit's where not given.
        redact_images: Show the names of pictures in place of them.

    Returns:
        Path of the page.

    Raises:
        RunError: If the confirmation is gone or damaged, or the folder cannot be written.
    """
    folder = Path(out) if out is not None else found.run.path / "report"
    style = (PARTS / "style.css").read_text("utf-8")
    manifest = found.run.manifest
    text = (
        environment()
        .get_template("audit.html.j2")
        .render(
            found=found,
            lots=[
                (title, hint, (_pairs(found, rows[:SHOWN], redact_images), len(rows[SHOWN:])))
                for title, hint, rows in (
                    ("What is given back", BEST, found.given_back),
                    ("What comes back now and then", SELDOM, found.now_and_then),
                )
            ],
            ladder=_ladder(found),
            rungs=found.rungs[:SHOWN],
            pictured=[
                (one, [(row, *_both(row, redact_images)) for row in one.pictured])
                for one in found.stood_out
            ],
            statistics=[
                row
                for row in (
                    found.share,
                    found.recall,
                    found.added,
                    *found.ladder.values(),
                    found.ordinarily,
                    found.sure,
                )
                if row is not None
            ],
            manifest=manifest,
            # What follows the model by its place needs it there, be it the default.
            command=command({"model": manifest.options["model"]} | manifest.given, "audit"),
            style=style,
            style_digest=digest(style),
        )
    )
    target = folder / "index.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(target, text.encode("utf-8", "replace"))
    except OSError as error:
        raise RunError(
            f"cannot write the report into {str(folder)!r}: {error.strerror or error}; make room "
            "or choose another folder"
        ) from error
    return target


def _ladder(found: Found) -> Markup:
    """Draw the share of captions that give an image back against the scale of the adapter."""
    if not found.ladder:
        return Markup()

    def column(name: str) -> Float[np.ndarray, " scale"]:
        values = (row[name] for row in found.ladder.values())
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    scales = np.array(list(found.ladder), dtype=np.float64)
    share = Series(
        "captions that give an image back", "memorized", scales, column("value"), column("low"),
        column("high"), np.full(len(scales), np.nan),
    )  # fmt: skip
    caption = "Band: 95 % interval, which counts the captions that were not sampled."
    panel = CurvePanel(
        "Reproduction against the LoRA's scale", "LoRA scale", "share of captions", caption,
        (share,),
    )  # fmt: skip
    return Markup(svg(panel, "ladder"))


def _pairs(found: Found, some: Sequence[Row], redact: bool) -> list[Pair]:
    """Return captions whose samples copy an image, each with its best sample."""
    rows = {row["prompt_id"]: row for row in some}
    if not rows:
        return []
    runs = [open_run(folder) for folder in sorted(found.run.path.glob("confirm*"))]
    measure = found.run.manifest.options["similarity"][0]
    best: dict[str, tuple[float, str, int, int]] = {}
    held = ((at, part) for at, run in enumerate(runs) for part in run.parts("similarities"))
    for at, part in held:
        for row in part.to_pylist():
            prompt, reference = row["prompt_id"], row["reference_id"]
            shown = prompt in rows and reference in rows[prompt]["references"]
            if shown and row["measure"] == measure and row["relation"] in ("own", "nearest"):
                this = row["value"], reference, at, row["seed"]
                best[prompt] = max(this, best.get(prompt, this))
    # A seed means other noise in another run.
    wanted = {(at, prompt, seed) for prompt, (_, _, at, seed) in best.items()}
    samples: dict[str, bytes] = {}
    seen = () if redact else runs
    columns = ["prompt_id", "seed", "image"]
    parts = ((at, part) for at, run in enumerate(seen) for part in run.parts("samples", columns))
    for at, part in parts:
        for row in part.to_pylist():
            if (at, row["prompt_id"], row["seed"]) in wanted:
                samples[row["prompt_id"]] = row["image"]
    names = {reference for _, reference, _, _ in best.values()}
    targets: dict[str, bytes] = {}
    columns = ["reference_id", "image"]
    for part in (part for run in seen for part in run.parts("references", columns)):
        for row in part.to_pylist():
            if row["reference_id"] in names:
                targets[row["reference_id"]] = row["image"]
    return [
        Pair(
            rows[prompt], reference, value,
            _uri(samples.get(prompt)), _uri(targets.get(reference)),
        )
        for prompt in rows
        if prompt in best
        for value, reference, _, _ in [best[prompt]]
    ]  # fmt: skip


def _both(row: Row, redact: bool) -> tuple[str | None, str | None]:
    """Return the pictures of a suspect and of its twin, where there are any."""
    return (None, None) if redact else (_uri(row["image"]), _uri(row["twin_image"]))


def _uri(image: bytes | None) -> str | None:
    if image is None:
        return None
    return f"data:image/webp;base64,{base64.b64encode(image).decode('ascii')}"
