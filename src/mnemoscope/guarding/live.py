"""A guard scores each prompt of a live pipeline on its first step, and acts by its rule.

The pipeline is attached to and not modified. What is not suspicious is left alone: its images are
bit for bit those the pipeline makes by itself, and nothing is looked at after the first step. Where
no unconditional branch runs (guidance off, distilled guidance) nothing can be scored, and the
record says so.

Contents: `guard`, `Guard`.

Source: ours.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnemoscope.core.predict import Prediction
from mnemoscope.errors import InputError
from mnemoscope.guarding.calibration import Calibration
from mnemoscope.guarding.first_step import scores_of
from mnemoscope.guarding.record import Guarded
from mnemoscope.guarding.rule import Judged, Rule, acts, rule_of
from mnemoscope.sampling.attach import NETWORKS, Attachment, Steered, Update, attach
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.hooks import Intervention, Latents, Start, Step, ask, checked
from mnemoscope.sampling.loop import generators_of
from mnemoscope.sampling.recipe import seed_of


@dataclass(eq=False)
class Guard(AbstractContextManager["Guard"]):
    """A pipeline under guard: called like it, or a context in which it is guarded.

    Any other attribute is the pipeline's.

    Attributes:
        pipeline: The pipeline, unmodified.
        rule: What is suspicious, and what is done about it.
    """

    pipeline: Any
    rule: Rule
    _attached: AbstractContextManager[Attachment] | None = None
    _seen: Attachment | None = None

    @property
    def records(self) -> list[Guarded]:
        """Return what became of every image so far."""
        return self.rule.records

    def __enter__(self) -> "Guard":
        """Guard the pipeline.

        Raises:
            InputError: If it is guarded or attached to already.
            ModelError: If it cannot be read.
        """
        attached = attach(self.pipeline, steer=self._steer)
        self._seen = attached.__enter__()
        self._attached = attached
        return self

    def __exit__(self, *told: Any) -> None:
        """Leave the pipeline as it was."""
        attached, self._attached, self._seen = self._attached, None, None
        if attached is not None:
            attached.__exit__(*told)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run the pipeline under guard; arguments and result are its own.

        Raises:
            RefusedError: If a prompt is suspicious and the action is "refuse".
        """
        if self._attached is not None:
            return self.pipeline(*args, **options)
        with self:
            return self.pipeline(*args, **options)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the pipeline."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.pipeline, name)

    def _steer(self, update: Update) -> Steered | None:
        rule, seen = self.rule, self._seen
        assert seen is not None, "an update was shown outside of the guard's context"
        if update.step.point.call:
            used = rule.guided(update.step, update.used)
            return None if used is None else Steered(used)
        found = rule.judge(update.step, update.samples, self._unscored(update, seen))
        steered = None
        if rule.action == "regenerate" and any(map(found.over, range(len(found.groups)))):
            steered = _regenerated(rule, update, found)
        elif rule.rows and rule.mitigation is not None and acts(rule.mitigation, "noise"):
            steered = _moved(rule, update, found)
        elif (used := rule.guided(update.step, update.used)) is not None:
            steered = Steered(used)
        if not rule.rows:
            # From here on nothing of this run is of interest.
            seen.rest()
        rule.note(found)
        return steered

    def _unscored(self, update: Update, seen: Attachment) -> str:
        """Say why the first step of a run cannot be scored; empty where it can."""
        if "uncond" not in update.step.raw:
            return seen.no_uncond
        if seen.place > 0:
            return "the run does not begin at noise, and its first step tells of a picture instead"
        return ""


def _regenerated(rule: Rule, update: Update, found: Judged) -> Steered:
    """Start suspicious prompts from other noise; `found` then tells of what is kept."""
    x, used = update.step.x.clone(), update.used.clone()
    left = [at for at in range(len(found.groups)) if found.over(at)]
    for turn in range(rule.tries):
        fresh = x.clone()
        rows = [row for at in left for row in found.groups[at]]
        seeds = [seed_of("regenerate", rule.run, turn, row) for row in rows]
        for row, generator in zip(rows, generators_of(seeds), strict=True):
            fresh[row] = torch.randn(x.shape[1:], generator=generator).to(fresh)
        step = update.again(fresh)
        scores, guided = scores_of(rule.scorer, step, [found.groups[at] for at in left]), None
        for at, score in zip(left, scores, strict=True):
            found.tries[at] = found.tries.get(at, 0) + 1
            if score < found.scores[at]:
                found.scores[at] = score
                guided = step.guided() if guided is None else guided
                for row in found.groups[at]:
                    x[row], used[row] = fresh[row], guided[row].to(used)
        found.passed |= {at for at in left if not found.over(at)}
        left = [at for at in left if at not in found.passed]
        if not left:
            break
    return Steered(used, x)


def _moved(rule: Rule, update: Update, found: Judged) -> Steered:
    """Move the noise of suspicious samples, and guide the first step from there."""
    asked, rows = rule.mitigation, torch.tensor(rule.rows)
    assert asked is not None, "asked by who knows"
    start = _start(rule, update, rows, found)
    x = update.step.x.clone()
    x[rows] = checked(asked, "noise", ask(asked, "noise", start), start.noise).to(x)
    found.moves += 1
    used = rule.guided(update.again(x), update.used)
    assert used is not None, "there are rows"
    return Steered(used, x)


def _start(rule: Rule, update: Update, rows: Tensor, found: Judged) -> Start:
    """Return what an intervention is told before the first call, of suspicious samples alone."""
    step, whole = update.step, update.step.x
    asked: list[tuple[Latents, Step]] = []

    def predict(x: Latents, condition: Condition, mine: Tensor) -> Prediction:
        # Both branches come of one call; the gap asks for one after the other.
        if not asked or asked[-1][0] is not x:
            every = whole.index_copy(0, rows[mine].to(whole.device), x.to(whole))
            asked[:] = [(x, update.again(every))]
            # A gradient is counted as two calls.
            found.moves += 3 if x.requires_grad else 1
        branch = "cond" if bool(condition.parts["cond"].all()) else "uncond"
        told = asked[-1][1].prediction(branch)
        at = rows[mine].to(whole.device)
        return Prediction(told.x0[at], told.eps[at])

    def encode(texts: Any) -> Condition:
        raise InputError("a live pipeline hands on embeddings; there is nothing to encode text by")

    return Start(
        prompts=("",) * len(rows),
        cond=Condition({"cond": torch.ones(len(rows))}),
        uncond=Condition({"cond": torch.zeros(len(rows))}),
        noise=whole[rows],
        seeds=tuple(seed_of("guard", rule.run, row) for row in rule.rows),
        points=(step.point,),
        encode=encode,
        words=tuple,
        predict=predict,
        guidance=step.guidance,
    )


def guard(
    pipeline: Any,
    *,
    calibration: Calibration | str | Path | None = None,
    threshold: float | None = None,
    detector: str | None = None,
    action: str | None = None,
    mitigation: Intervention | str | None = None,
    tries: int = 4,
    log: str | Path | None = None,
) -> Guard:
    """Guard a live pipeline against giving back what it has memorized.

    Args:
        pipeline: A pipeline of diffusers; it is not modified.
        calibration: What is suspicious, made by `mnemoscope calibrate`, or the file it wrote; the
            embedded model's own where its pipeline is guarded.
        threshold: The threshold itself, in place of a calibration.
        detector: Score of the first step; the calibration's, else `gap_rms:clean`.
        action: "record", "mitigate", "regenerate" or "refuse"; where not given "mitigate" with a
            threshold, "record" without one.
        mitigation: An intervention that guides or moves noise, or its name with settings.
        tries: How often "regenerate" may start a prompt from other noise.
        log: File of JSON lines to which a record of every image is appended.

    Returns:
        The guard, which is called like the pipeline, or used as a context around calls of it.

    Raises:
        InputError: If an argument cannot be used, or the calibration is of another model.

    Source: ours.
    """
    found = [getattr(pipeline, name, None) for name in NETWORKS]
    network = next((one for one in found if one is not None), None)
    if network is None:
        raise InputError(
            f"{type(pipeline).__name__} given; expected a pipeline of diffusers with one of "
            f"{', '.join(NETWORKS)}"
        )
    rule = rule_of(
        network, type(pipeline).__name__, calibration=calibration, threshold=threshold,
        detector=detector, action=action, mitigation=mitigation, tries=tries, log=log,
        noise=True,
    )  # fmt: skip
    return Guard(pipeline, rule)
