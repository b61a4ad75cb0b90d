"""The audit's funnel on a model whose memories are known: what it finds, misses and costs.

A data set of the lab (`mnemoscope lab dataset`) holds planted pictures and scenes that were seen
once, each a caption of its own. It is audited like any other; nothing tells the audit which are
planted. Then every planted caption that it dropped is sampled in full as well, or looked up in a
study of all planted prompts that is there already, so that

    recall       captions found / (found + planted ones that were dropped and give an image back)
    reached      of planted captions that give their image back in the studies given, those sampled
    seen         of the same, those of which any sample of the audit copies an image
    said         of the same, those that the audit says give one back
    precision    those found whose image is a planted one / captions found
    cost         network calls of the audit / calls of ten samples of every caption

are counted and not estimated; dropped scenes are the audit's own to estimate. Repeats are taken
out, so the funnel has nothing but its scores. Of few samples a caption near one half is given back
or not by chance: the samples of all studies that are given are taken together, and what they say
does not hang on what the audit saw.

    python -m benchmarks.audit embedded
    python -m benchmarks.audit DIR/model --table DIR/planted.jsonl --study DIR/bench/study DIR/more

Contents: `main`.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnemoscope.core.stats import Estimate
from mnemoscope.evidence import Bank, price_in
from mnemoscope.evidence.pieces.pictures import Pictures
from mnemoscope.flows.audit import Audit, audit
from mnemoscope.flows.options import recipe_of
from mnemoscope.lab.dataset import METADATA, write_dataset
from mnemoscope.lab.planted import TABLE
from mnemoscope.models import load_model
from mnemoscope.ranking.funnel import SUSPICIOUS
from mnemoscope.ranking.prevalence import exact
from mnemoscope.reporting.audit import GIVEN_BACK, Found, found_of
from mnemoscope.runs.folder import open_run
from mnemoscope.severity.truth import judge, pooled

MEASURE = "l2"
"""Similarity by which captions are judged."""
EXHAUSTIVE = 10
"""Samples a caption of the exhaustive way."""
DROPPED = "dropped.jsonl"
"""Planted captions that an audit dropped, beside the data set's own list."""


@dataclass(frozen=True)
class Judged:
    """What an audit is worth.

    Attributes:
        found: What it found.
        hits: Captions that give a planted picture back.
        missed: Planted captions that it dropped and that give an image back.
        reached: Of those that do in the studies, the share that it sampled as suspicious.
        seen: Of the same, the share of which any of its samples copies an image.
        said: Of the same, the share that it says give an image back.
        planted: Planted captions in the set.
        cost: Network calls over those of the exhaustive way.
    """

    found: Found
    hits: int
    missed: tuple[str, ...]
    reached: Estimate
    seen: Estimate
    said: Estimate
    planted: int
    cost: float

    @property
    def recall(self) -> Estimate:
        """Return the share of what gives an image back that was found."""
        return exact(self.hits, self.hits + len(self.missed))

    @property
    def precision(self) -> Estimate:
        """Return the share of what was found whose image was planted."""
        rows = [row for row in self.found.captions if row["chosen"] in SUSPICIOUS]
        return exact(self.hits, sum(row["state"] in GIVEN_BACK for row in rows))

    @property
    def covered(self) -> bool:
        """Return whether the interval that the audit states holds what there is."""
        share = (self.hits + len(self.missed)) / self.found.listed
        return self.found.share["low"] <= share <= self.found.share["high"]


def recorded(studies: Sequence[Path], guidance: float) -> dict[str, str]:
    """Return the state of every prompt of some studies by its text, their samples together."""
    texts: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    for held in map(open_run, studies):
        texts |= {row["prompt_id"]: row["prompt"] for row in held.table("prompts").to_pylist()}
        # The set has no masks, so that a template is given back as a whole or not at all.
        rows += [
            row
            for row in held.table("severity").to_pylist()
            if row["guidance"] == guidance and row["measure"] == MEASURE
        ]
    return {texts[name]: found.state for name, found in judge(pooled(rows), MEASURE).items()}


def judged(asked: Audit, data: Path, studies: Sequence[Path] = ()) -> Judged:
    """Audit a data set of the lab, and see what the planted captions that were dropped give back.

    Args:
        asked: The audit.
        data: The data set.
        studies: Studies of the planted prompts; the dropped ones are sampled where none is given.
    """
    model = load_model(asked.model)
    lines = [json.loads(line) for line in (data / METADATA).read_text("utf-8").splitlines()]
    planted = {line["text"]: line for line in lines if line["level"]}
    pictures = {line["file_name"] for line in planted.values()}
    found = found_of(audit(asked, model=model, notify=print))
    sampled = {row["prompt"] for row in found.captions}
    back = [row for row in found.captions if row["state"] in GIVEN_BACK]
    back = [row for row in back if pictures & set(row["items"])]
    hits = sum(row["chosen"] in SUSPICIOUS for row in back)
    # What only the random draw found, the funnel had dropped.
    drawn = tuple(row["prompt"] for row in back if row["chosen"] not in SUSPICIOUS)
    dropped = [line for text, line in planted.items() if text not in sampled]
    missed: tuple[str, ...] = ()
    states = recorded(studies, asked.guidance)
    known = {text for text in planted if states.get(text) in GIVEN_BACK}
    looked = {row["prompt"] for row in found.captions if row["chosen"] in SUSPICIOUS}
    given_back = {row["prompt"] for row in found.given_back}
    copied = given_back | {row["prompt"] for row in found.now_and_then}
    reached, seen, said = (
        exact(len(known & some), len(known)) for some in (looked, copied, given_back)
    )
    if dropped and studies:
        missed = tuple(
            line["file_name"].removesuffix(".png") for line in dropped if line["text"] in known
        )
    elif dropped:
        (data / DROPPED).write_text("".join(json.dumps(line) + "\n" for line in dropped))
        rest: Any = {"dataset": data / DROPPED, "finalists": 1.0, "detectors": ("sima",)}
        out = Path(asked.out).with_name(f"{Path(asked.out).name}-dropped")
        others = Audit(
            model=asked.model, seeds=asked.seeds, steps=asked.steps, guidance=asked.guidance,
            similarity=asked.similarity, batch=asked.batch, out=out, **rest,
        )  # fmt: skip
        missed = tuple(
            planted[row["prompt"]]["file_name"].removesuffix(".png")
            for row in found_of(audit(others, model=model)).captions
            if row["state"] in GIVEN_BACK
        )
    bank = Bank(model, recipe_of(asked, model), EXHAUSTIVE, 1)
    cost = found.calls / (found.listed * price_in(bank, (Pictures(),)).calls)
    return Judged(found, hits, (*drawn, *missed), reached, seen, said, len(planted), cost)


def show(of: Judged) -> None:
    """Print the funnel, and what it is worth."""
    print(f"\n  {'stage':10} {'in':>8} {'on':>8} {'network calls':>14}")
    for row in of.found.funnel:
        print(f"  {row['stage']:10} {row['items']:8} {row['kept']:8} {row['network_calls']:14,}")
    print(of.found.title)
    print(*of.found.sentences, sep="\n")
    for name in ("recall", "reached", "seen", "said", "precision"):
        value: Estimate = getattr(of, name)
        print(
            f"{name:10} {value.value:.3f} [{value.low:.3f}, {value.high:.3f}], {value.n} captions"
        )
    print(f"{'missed':10} {', '.join(of.missed) or 'none'}; {of.planted} planted")
    share = (of.hits + len(of.missed)) / of.found.listed
    print(f"{'share':10} {share:.4f}, {'within' if of.covered else 'outside'} the interval stated")
    print(f"{'cost':10} {of.cost:.2%} of ten samples of each of {of.found.listed:,} captions")


def main(
    model: str,
    table: Path,
    data: Path,
    out: Path,
    studies: Sequence[Path],
    further: int,
    seeds: int,
    steps: int,
) -> None:
    """Judge an audit of a lab model."""
    start = time.process_time()
    write_dataset(data, further, table)
    asked = Audit(
        model=model, dataset=data, out=out, seeds=seeds, steps=steps, similarity=(MEASURE,)
    )
    show(judged(asked, data, studies))
    print(f"{'CPU':10} {(time.process_time() - start) / 60:.1f} min")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="embedded")
    parser.add_argument("--table", type=Path, default=TABLE, help="what was planted")
    parser.add_argument("--data", type=Path, help="folder of the data set; beside --out if left")
    parser.add_argument("--out", type=Path, default=Path("runs/audit-lab"))
    parser.add_argument(
        "--study", type=Path, nargs="+", default=(), help="studies of the planted prompts, if any"
    )
    parser.add_argument("--further", type=int, default=3000, help="captions that were seen once")
    parser.add_argument("--seeds", type=int, default=4, help="samples a caption in full")
    parser.add_argument("--steps", type=int, default=50)
    given = parser.parse_args()
    at = given.data or given.out.with_name(f"{given.out.name}-data")
    what = (given.model, given.table, at, given.out, given.study)
    main(*what, given.further, given.seeds, given.steps)
