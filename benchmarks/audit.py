"""The audit's funnel on a model whose memories are known: what it finds, misses and costs.

A data set of the lab (`mnemoscope lab dataset`) holds planted pictures and scenes that were seen
once, each a caption of its own. It is audited like any other; nothing tells the audit which are
planted. Then every planted caption that it dropped is sampled in full as well, so that

    recall       captions found / (found + planted ones that were dropped and give an image back)
    precision    those found whose image is a planted one / captions found
    cost         network calls of the audit / calls of ten samples of every caption

are counted and not estimated; dropped scenes are the audit's own to estimate. Repeats are taken
out, so the funnel has nothing but its scores.

    python -m benchmarks.audit embedded
    python -m benchmarks.audit DIR/model --table DIR/planted.jsonl --out runs/audit-8

Contents: `main`.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnemoscope.core.stats import Estimate
from mnemoscope.flows.audit import Audit, audit
from mnemoscope.lab.dataset import METADATA, write_dataset
from mnemoscope.lab.planted import TABLE
from mnemoscope.models import load_model
from mnemoscope.ranking.prevalence import exact
from mnemoscope.reporting.audit import GIVEN_BACK, Found, found_of

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
        planted: Planted captions in the set.
        cost: Network calls over those of the exhaustive way.
    """

    found: Found
    hits: int
    missed: tuple[str, ...]
    planted: int
    cost: float

    @property
    def recall(self) -> Estimate:
        """Return the share of what gives an image back that was found."""
        return exact(self.hits, self.hits + len(self.missed))

    @property
    def precision(self) -> Estimate:
        """Return the share of what was found whose image was planted."""
        return exact(self.hits, sum(r["state"] in GIVEN_BACK for r in self.found.captions))


def judged(asked: Audit, data: Path) -> Judged:
    """Audit a data set of the lab, and sample the planted captions that were dropped."""
    model = load_model(asked.model)
    lines = [json.loads(line) for line in (data / METADATA).read_text("utf-8").splitlines()]
    planted = {line["text"]: line for line in lines if line["level"]}
    pictures = {line["file_name"] for line in planted.values()}
    found = found_of(audit(asked, model=model, notify=print))
    sampled = {row["prompt"] for row in found.captions}
    back = [row for row in found.captions if row["state"] in GIVEN_BACK]
    hits = sum(bool(pictures & set(row["items"])) for row in back)
    dropped = [line for text, line in planted.items() if text not in sampled]
    missed: tuple[str, ...] = ()
    if dropped:
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
    spent = next(row for row in found.funnel if row["stage"] == "confirm")
    each = spent["network_calls"] / (spent["items"] * asked.seeds)
    cost = found.calls / (found.listed * EXHAUSTIVE * round(each))
    return Judged(found, hits, missed, len(planted), cost)


def show(of: Judged) -> None:
    """Print the funnel, and what it is worth."""
    print(f"\n  {'stage':10} {'in':>8} {'on':>8} {'network calls':>14}")
    for row in of.found.funnel:
        print(f"  {row['stage']:10} {row['items']:8} {row['kept']:8} {row['network_calls']:14,}")
    print(of.found.title)
    print(*of.found.sentences, sep="\n")
    for name, value in (("recall", of.recall), ("precision", of.precision)):
        print(
            f"{name:10} {value.value:.3f} [{value.low:.3f}, {value.high:.3f}], {value.n} captions"
        )
    print(f"{'missed':10} {', '.join(of.missed) or 'none'}; {of.planted} planted")
    print(f"{'cost':10} {of.cost:.2%} of ten samples of each of {of.found.listed:,} captions")


def main(
    model: str, table: Path, data: Path, out: Path, further: int, seeds: int, steps: int
) -> None:
    """Judge an audit of a lab model."""
    start = time.process_time()
    write_dataset(data, further, table)
    asked = Audit(model=model, dataset=data, out=out, seeds=seeds, steps=steps, similarity=("l2",))
    show(judged(asked, data))
    print(f"{'CPU':10} {(time.process_time() - start) / 60:.1f} min")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="embedded")
    parser.add_argument("--table", type=Path, default=TABLE, help="what was planted")
    parser.add_argument("--data", type=Path, help="folder of the data set; beside --out if left")
    parser.add_argument("--out", type=Path, default=Path("runs/audit-lab"))
    parser.add_argument("--further", type=int, default=6000, help="captions that were seen once")
    parser.add_argument("--seeds", type=int, default=4, help="samples a caption in full")
    parser.add_argument("--steps", type=int, default=50)
    given = parser.parse_args()
    at = given.data or given.out.with_name(f"{given.out.name}-data")
    main(given.model, given.table, at, given.out, given.further, given.seeds, given.steps)
