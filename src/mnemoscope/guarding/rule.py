r"""The rule of a guard: what is suspicious, what is done about it, and what was done.

Rule, with s the score of a prompt and t the threshold for as many samples::

    s <= t    nothing: images are bit for bit those made without a guard
    s > t     record       nothing but a record
              mitigate     an intervention guides these samples from the first step on, or moves
                           their noise and has the first step made again
              regenerate   they start from other noise, up to so many times until s <= t;
                           from what scored lowest if it never is
              refuse       the run ends with an error before its second step

The score is made of what the pipeline's own network said, so it costs no network call.

Contents: `Rule`, `Judged`, `rule_of`, `guiding`, `acts`, `SCORE`, `DEFAULT`.

Source: ours.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isclose
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnemoscope.errors import InputError, RefusedError, did_you_mean
from mnemoscope.guarding.calibration import Calibration, fingerprint
from mnemoscope.guarding.first_step import rows_of, scorer, scores_of
from mnemoscope.guarding.record import ACTIONS, Action, Guarded, append
from mnemoscope.mitigations import parse
from mnemoscope.models.shipped import CALIBRATION
from mnemoscope.sampling.chain import Chain
from mnemoscope.sampling.hooks import Intervention, Step, ask, checked

log = logging.getLogger(__name__)

SCORE = "gap_rms:clean"
"""Score where none is named: one sample is enough for it, and it holds at pure noise as well."""

SLACK = 0.1
"""How far the level of a first step may lie from that of a calibration, relative to its alpha."""

DEFAULT = "picture_repulsion"
"""Mitigation where none is named."""


@dataclass
class Judged:
    """What was found of the prompts of a run on its first step.

    Attributes:
        groups: Rows of each prompt.
        scores: Score of each; NaN where it could not be scored.
        limits: Threshold of each; None where there is none.
        unscored: Why nothing could be scored; empty where it could.
        tries: How often each suspicious prompt was started from other noise.
        moves: How often the network was asked where to move the noise of suspicious prompts.
        passed: Prompts that were no longer suspicious then.
    """

    groups: list[list[int]]
    scores: list[float]
    limits: list[float | None]
    unscored: str = ""
    tries: dict[int, int] = field(default_factory=dict[int, int])
    passed: set[int] = field(default_factory=set[int])
    moves: int = 0

    def over(self, at: int) -> bool:
        """Return whether the score of a prompt exceeds its threshold."""
        limit = self.limits[at]
        return limit is not None and self.scores[at] > limit


@dataclass(eq=False)
class Rule:
    """A rule, and what came of it so far.

    Attributes:
        detector: Name of the score.
        thresholds: Above which a prompt is suspicious, by the number of its samples: that of as
            many, or of the most below, for a mean of more strays less. None where empty.
        action: What is done then.
        mitigation: What steers where the action is "mitigate".
        tries: How often "regenerate" starts from other noise.
        log: File of JSON lines to which records are appended; None for none.
        alpha: Weight of the clean image at the first step that the thresholds are of; None where
            they are of any.
        records: What became of every image so far.
        run: Index of the run that is under way; -1 before one.
        rows: Samples of it that are steered.
    """

    detector: str
    thresholds: Mapping[int, float]
    action: Action
    mitigation: Intervention | None
    tries: int
    log: Path | None
    alpha: float | None = None
    records: list[Guarded] = field(default_factory=list[Guarded])
    run: int = -1
    rows: tuple[int, ...] = ()
    _history: tuple[Step, ...] = ()
    _first: Step | None = None
    _samples: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Find the detector."""
        self.scorer = scorer(self.detector)

    def limit(self, samples: int) -> float | None:
        """Return the threshold for a number of samples; None where there is none."""
        fit = [seeds for seeds in self.thresholds if seeds <= samples]
        return self.thresholds[max(fit)] if fit else None

    def judge(self, step: Step, samples: Sequence[int], unscored: str = "") -> Judged:
        """Begin a run: score its prompts, and say whose samples are to be steered.

        Args:
            step: Its first step.
            samples: For each sample, the index of the first of the same prompt.
            unscored: Why it cannot be scored; empty where it can.
        """
        self.run, self.rows = self.run + 1, ()
        self._history, self._first, self._samples = (), None, tuple(samples)
        groups = _groups(samples)
        unscored = unscored or self._elsewhere(step)
        if unscored:
            log.warning("not guarded: %s", unscored)
            nothing = [math.nan] * len(groups)
            return Judged(groups, nothing, [None] * len(groups), unscored)
        scores = scores_of(self.scorer, step, groups)
        found = Judged(groups, scores, [self.limit(len(rows)) for rows in groups])
        if self.action == "mitigate":
            bad = [rows for at, rows in enumerate(groups) if found.over(at)]
            self.rows = tuple(sorted(row for rows in bad for row in rows))
        return found

    def _elsewhere(self, step: Step) -> str:
        """Say that a run begins at another level than the thresholds are of; empty where not."""
        alpha = float(step.point.level.alpha)
        if self.alpha is None or isclose(alpha, self.alpha, rel_tol=SLACK, abs_tol=1e-3):
            return ""
        return (
            f"the run begins at alpha {alpha:.3g} and the thresholds are of {self.alpha:.3g}; "
            "calibrate with its sampler and as many --steps"
        )

    def guided(self, step: Step, used: Tensor) -> Tensor | None:
        """Return what the sampler is given where suspicious samples are steered; None elsewhere.

        Args:
            step: The step, all samples.
            used: What it would be given.
        """
        asked = self.mitigation
        if not self.rows or asked is None:
            return None
        some = replace(
            rows_of(step, self.rows),
            history=self._history,
            start=self._first,
            groups=torch.tensor([self._samples[row] for row in self.rows]),
        )
        made = checked(asked, "guide", ask(asked, "guide", some), some.raw["cond"])
        self._first = self._first or some
        if asked.memory:
            self._history = (*self._history, some)[-asked.memory :]
        changed = used.clone()
        changed[list(self.rows)] = made.to(changed)
        return changed

    def note(self, found: Judged) -> None:
        """Record what was found and done.

        Raises:
            RefusedError: If a prompt is suspicious and the action is "refuse".
        """
        acted = str(self.mitigation) if self.action == "mitigate" else self.action
        fewer = f"{self.detector} takes at least {self.scorer.needs.seeds} samples of a prompt"
        made: list[Guarded] = []
        for at, rows in enumerate(found.groups):
            score, limit, tries = found.scores[at], found.limits[at], found.tries.get(at, 0)
            known, bad = not math.isnan(score), found.over(at) or at in found.tries
            reason = "" if known else found.unscored or fewer
            if known and limit is None and self.thresholds:
                reason = f"thresholds are of at least {min(self.thresholds)} samples of a prompt"
            if tries:
                ended = "passed" if at in found.passed else "none passed, the lowest score was kept"
                reason = f"other noise {tries} times: {ended}"
            made += [
                Guarded(
                    self.run, row, at, self.detector,
                    score=score if known else None,
                    threshold=limit,
                    suspicious=bad if known and limit is not None else None,
                    action=acted if bad else "none",
                    # Both branches of the whole batch go through the network again.
                    network_calls=2 * (tries + (found.moves if bad else 0)),
                    reason=reason,
                )
                for row in rows
            ]  # fmt: skip
        made.sort(key=lambda record: record.image)
        self.records += made
        if self.log is not None:
            append(self.log, made)
        over = [at for at in range(len(found.groups)) if found.over(at)]
        if over and self.action == "refuse":
            told = ", ".join(f"{found.scores[at]:.4g} > {found.limits[at]:.4g}" for at in over)
            raise RefusedError(
                f"{len(over)} of {len(found.groups)} prompts look memorized ({self.detector} "
                f"{told}) and were refused; change the prompt, or mitigate"
            )


def _groups(samples: Sequence[int]) -> list[list[int]]:
    """Return the rows of each prompt, prompts in the order of their first row."""
    groups: dict[int, list[int]] = {}
    for row, first in enumerate(samples):
        groups.setdefault(first, []).append(row)
    return list(groups.values())


def rule_of(
    network: Any,
    name: str,
    *,
    calibration: Calibration | str | Path | None = None,
    threshold: float | None = None,
    detector: str | None = None,
    action: str | None = None,
    mitigation: Intervention | str | None = None,
    tries: int = 4,
    log: str | Path | None = None,
    noise: bool = False,
) -> Rule:
    """Make a rule of what a user gives; see `guarding.live.guard`.

    Args:
        network: Denoiser of the pipeline, which tells whose calibration it is.
        name: What the pipeline is called.
        calibration: Thresholds, or the file that holds them.
        threshold: One threshold for any number of samples.
        detector: Name of the score.
        action: What is done about a suspicious prompt.
        mitigation: What steers.
        tries: How often "regenerate" starts from other noise.
        log: File of JSON lines.
        noise: Whether noise can be moved.

    Raises:
        InputError: If an argument cannot be used, or the calibration is of another model.
    """
    known = Calibration.read(calibration) if isinstance(calibration, str | Path) else calibration
    if known is not None:
        if threshold is not None:
            raise InputError("a calibration and a threshold given; expected one of them")
        if detector not in (None, known.detector):
            raise InputError(
                f"detector {detector!r} given, and the calibration is of {known.detector!r}; "
                "leave the detector out"
            )
        known.check(fingerprint(network), name)
    elif threshold is None and detector is None:
        known = _shipped(network)
    if threshold is not None and not math.isfinite(threshold):
        raise InputError(f"threshold {threshold} given; expected a finite number")
    thresholds = {} if threshold is None else {1: threshold}
    if known is not None:
        thresholds = {one.seeds: one.value for one in known.thresholds}
    chosen = action or ("mitigate" if thresholds else "record")
    if chosen_action(chosen) != "record" and not thresholds:
        raise InputError(
            f"action {chosen!r} given without calibration or threshold, so nothing is suspicious; "
            "make one with `mnemoscope calibrate`, or record scores first"
        )
    if tries < 1:
        raise InputError(f"tries {tries} given; expected at least 1")
    return Rule(
        detector or (known.detector if known else SCORE),
        thresholds,
        chosen_action(chosen),
        guiding(mitigation, noise=noise) if chosen == "mitigate" else None,
        tries,
        None if log is None else Path(log),
        None if known is None else known.alpha,
    )


def _shipped(network: Any) -> Calibration | None:
    """Return the calibration that ships with the embedded model, if the network is its."""
    if not CALIBRATION.exists():
        return None
    shipped = Calibration.read(CALIBRATION)
    return shipped if shipped.model.get("fingerprint") == fingerprint(network) else None


def chosen_action(name: str) -> Action:
    """Return an action by its name.

    Raises:
        InputError: If there is none of that name.
    """
    for action in ACTIONS:
        if action == name:
            return action
    raise InputError(did_you_mean(name, ACTIONS, "action"))


ELSEWHERE: Mapping[str, str] = {
    "condition": "the prompt reaches the network as embeddings, with every call anew",
    "branches": "the pipeline's calls have no rows for further branches",
    "attention": "its layers would compute otherwise for all prompts of a batch",
    "noise": "a guider is given no noise",
}
"""Why a guard cannot have a mitigation act at a hook."""


def guiding(given: Intervention | str | None, *, noise: bool = False) -> Intervention:
    """Return an intervention that can steer a pipeline that is under way.

    Args:
        given: The intervention, or its name with settings; `DEFAULT` where not given.
        noise: Whether the first step can be made again from other noise.

    Raises:
        InputError: If it acts where a guard cannot.
    """
    asked = given if isinstance(given, Intervention) else parse(given or DEFAULT)
    refused = [hook for hook in ELSEWHERE if hook != "noise" or not noise]
    elsewhere = [hook for hook in refused if acts(asked, hook)]
    if elsewhere:
        raise InputError(
            f"{asked} acts on {' and '.join(elsewhere)}, where a guard cannot: "
            f"{'; '.join(map(ELSEWHERE.__getitem__, elsewhere))}. Choose one that guides"
            f"{' or moves noise' if noise else ''}, or sample with it through `mnemoscope study "
            "--intervention`"
        )
    return asked


def acts(asked: Intervention, hook: str) -> bool:
    """Return whether an intervention, or a part of a chain, acts at a hook."""
    parts = asked.parts if isinstance(asked, Chain) else (asked,)
    return any(getattr(type(part), hook) is not getattr(Intervention, hook) for part in parts)
