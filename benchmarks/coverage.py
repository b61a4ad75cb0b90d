"""Coverage: how often the interval that an audit states holds the share that there is.

Of a lab model it is known what each caption gives back: planted ones by a study of all of them,
scenes that were seen once by assumption nothing. So the choice of captions is made again and again
with other draws, from the scores of one screen, and no network is called:

    coverage    repetitions whose interval holds the true share / repetitions

The funnel is as wide as an audit makes it, and for comparison a quarter of that, so that it misses
many.

    python -m benchmarks.coverage runs/audit-lab --study DIR/study

Contents: `main`.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from benchmarks.audit import recorded
from mnemoscope.detectors import Detector
from mnemoscope.flows.audit import LEAST, WIDEST, Audit, prevalence_of
from mnemoscope.flows.scores import choose
from mnemoscope.lab.dataset import METADATA
from mnemoscope.ranking.funnel import ROUND, SUSPICIOUS, plan, refined, widens
from mnemoscope.ranking.prevalence import exact
from mnemoscope.reporting.audit import GIVEN_BACK
from mnemoscope.runs.folder import open_run


def scores_of(folder: Path, detectors: Sequence[Detector]) -> dict[str, list[float]]:
    """Return the scores of a detection, a row a caption; NaN is none."""
    found: dict[str, dict[str, float]] = {}
    for row in open_run(folder).table("scores").to_pylist():
        value = np.nan if row["score"] is None else row["score"]
        found.setdefault(row["prompt_id"], {})[row["detector"]] = value
    return {name: [some[one.name] for one in detectors] for name, some in found.items()}


@dataclass(frozen=True)
class World:
    """What is known of a lab model's captions.

    Attributes:
        tail: How far out each lies.
        back: Whether each gives an image back.
    """

    tail: Float[np.ndarray, " caption"]
    back: Bool[np.ndarray, " caption"]

    def finalists(self, first: int) -> int:
        """Return how many captions an audit ends up sampling as suspicious."""
        order = np.argsort(self.tail, kind="stable")
        count, before = first, 0
        most = max(first, round(WIDEST * len(order)))
        while widens(self.back[order[before:count]].tolist()) and count < most:
            before, count = count, min(most, count + max(ROUND, first // 4))
        return count

    def covered(self, finalists: int, drawn: int, seed: int) -> tuple[bool, float]:
        """Draw anew; say whether the interval holds the truth, and how wide it is."""
        none = np.array([], dtype=np.intp)
        chosen = plan(self.tail, none, none, finalists, 0, drawn, seed)
        kinds = zip(
            (SUSPICIOUS[0], "nearest", "others"), (chosen.finalists, *chosen.drawn), strict=True
        )
        rows = [
            {"prompt_id": str(at), "chosen": kind} for kind, some in kinds for at in some.tolist()
        ]
        known = {row["prompt_id"]: bool(self.back[int(row["prompt_id"])]) for row in rows}
        share = prevalence_of(rows, known, chosen).share
        return share.low <= self.back.mean() <= share.high, share.high - share.low


def world(folder: Path, data: Path, study: Path) -> World:
    """Read an audit's screen, and what its captions give back."""
    asked = Audit(dataset=data)
    detectors, closer = choose(asked.detectors), choose(asked.closer)
    states = recorded(study, asked.guidance)
    lines = [json.loads(line) for line in (data / METADATA).read_text("utf-8").splitlines()]
    planted = {line["text"] for line in lines if line["level"]}
    rows = open_run(folder / "screen").table("prompts").to_pylist()
    texts = {row["prompt_id"]: row["prompt"] for row in rows}
    scores = scores_of(folder / "screen", detectors)
    more = scores_of(folder / "closer", closer)
    back = [texts[name] in planted and states[texts[name]] in GIVEN_BACK for name in scores]
    own = np.array([detector.kind == "pair" for detector in detectors])
    some = np.array([at for at, name in enumerate(scores) if name in more])
    looked = np.array([more[name] for name in scores if name in more])
    return World(refined(np.array([*scores.values()]), own, some, looked), np.array(back))


def main(folder: Path, data: Path, study: Path, times: int = 200) -> bool:
    """Print coverage by width of the funnel and number of draws; say whether it reaches 93 %."""
    of = world(folder, data, study)
    first = round(Audit(dataset=data).finalists * len(of.tail))
    wide = of.finalists(max(LEAST, first))
    print(
        f"{of.back.sum()} of {len(of.back)} captions give an image back; {times} repetitions each"
    )
    print(f"  {'finalists':>9} {'missed':>7} {'drawn':>6} {'covered':>9} {'95 %':>16} {'width':>7}")
    order, held = np.argsort(of.tail, kind="stable"), True
    for finalists in (wide, wide // 4):
        missed = int(of.back[order[finalists:]].sum())
        for drawn in (20, 100, 300):
            found = [of.covered(finalists, drawn, seed) for seed in range(times)]
            hits = sum(covered for covered, _ in found)
            rate, width = exact(hits, times), float(np.mean([wide for _, wide in found]))
            told = f"[{rate.low:.3f}, {rate.high:.3f}]"
            print(f"  {finalists:9} {missed:7} {drawn:6} {hits:5}/{times} {told:>16} {width:7.4f}")
            held = held and hits >= 0.93 * times
    return held


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="an audit by benchmarks.audit")
    parser.add_argument("--data", type=Path, help="its data set; beside it if left")
    parser.add_argument("--study", type=Path, required=True, help="study of the planted prompts")
    parser.add_argument("--times", type=int, default=200)
    given = parser.parse_args()
    beside = given.folder.with_name(f"{given.folder.name}-data")
    if not main(given.folder, given.data or beside, given.study, given.times):
        raise SystemExit("an interval covers the truth too seldom")
