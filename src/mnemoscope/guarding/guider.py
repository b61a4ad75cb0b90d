r"""A guider does what a guard does, where a pipeline takes guiders: diffusers' modular ones.

Formula, for what is not suspicious, in the order of operations of `ClassifierFreeGuidance`, whose
images it gives bit for bit::

    guided = u + g·(c - u)

A guider is told a timestep and no level, so the noise schedule is part of its settings. The state
is taken on its way into the network, by a hook that is there during its calls only.

Contents: `guider`, `MemorizationGuider`.

Source: ours; the interface is that of diffusers' `BaseGuidance`.
"""

from collections.abc import Mapping
from math import isclose
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor

from mnemoscope.core.level import Level
from mnemoscope.core.predict import Kind
from mnemoscope.core.record import Point
from mnemoscope.errors import InputError, ModelError
from mnemoscope.guarding.calibration import Calibration
from mnemoscope.guarding.record import Guarded
from mnemoscope.guarding.rule import Rule, chosen_action, guiding, rule_of
from mnemoscope.sampling.attach import NETWORKS, alike, tensors_in
from mnemoscope.sampling.hooks import Intervention, Step
from mnemoscope.sampling.loop import kind_of

HOOK = "mnemoscope_state"
"""Name of the hook in the network's registry."""

BETAS = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "rescale_betas_zero_snr")
"""What of a scheduler's configuration decides on its levels."""


class _State(ModelHook):
    """Keeps the state that a network is shown."""

    x: Tensor | None = None

    def pre_forward(self, module: Any, *args: Any, **options: Any) -> Any:
        """Keep it, and change nothing."""
        del module
        self.x = args[0] if args else options.get("hidden_states", options.get("sample"))
        return args, options


class MemorizationGuider(BaseGuidance):
    """Classifier-free guidance that scores prompts on the first step and acts by a rule.

    Args:
        guidance_scale: Scale g.
        schedule: Prediction kind and betas of the scheduler, as `guider` takes them from one.
        thresholds: Above which score a prompt is suspicious, by the number of its samples; none at
            all where empty.
        alpha: Weight of the clean image at the first step that they are of; None for any.
        detector: Score of the first step.
        action: "record", "mitigate" or "refuse".
        mitigation: What steers, by name with settings; None where nothing does.
        log: File of JSON lines; None for none.
        start: Share of the path at which guidance begins.
        stop: Share of the path at which it ends.
        enabled: Whether it guides at all.
    """

    _input_predictions: ClassVar[list[str]] = ["pred_cond", "pred_uncond"]
    # Annotated as numbers there, and None before a path.
    _step: Any
    _num_inference_steps: Any

    @register_to_config
    def __init__(
        self,
        guidance_scale: float = 7.5,
        schedule: dict[str, Any] | None = None,
        thresholds: dict[str, float] | None = None,
        alpha: float | None = None,
        detector: str = "gap_rms:clean",
        action: str = "record",
        mitigation: str | None = None,
        log: str | None = None,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        super().__init__(start, stop, enabled)
        self.guidance_scale = guidance_scale
        given: dict[str, Any] = dict(schedule or {"kind": "eps"})
        self._kind: Kind = given.pop("kind")
        self._abar = None if self._kind == "flow" else DDPMScheduler(**given).alphas_cumprod
        if action == "regenerate":
            raise InputError("a guider is given no noise, so it cannot regenerate; use a guard")
        self._rule = Rule(
            detector,
            {int(seeds): float(value) for seeds, value in (thresholds or {}).items()},
            chosen_action(action),
            None if mitigation is None else guiding(mitigation),
            1,
            None if log is None else Path(log),
            alpha,
        )
        self._state = _State()
        self._cond: Any = None

    @property
    def records(self) -> list[Guarded]:
        """Return what became of every image so far."""
        return self._rule.records

    @property
    def is_conditional(self) -> bool:
        """Return whether the call that comes is under the prompt."""
        return self._count_prepared == 1

    @property
    def num_conditions(self) -> int:
        """Return how many branches a step has: both on the first, which is scored."""
        return 2 if self._guides or self._watches else 1

    @property
    def _watches(self) -> bool:
        return self._enabled and not self._step

    @property
    def _guides(self) -> bool:
        if not self._enabled or isclose(self.guidance_scale, 1.0):
            return False
        steps = self._num_inference_steps
        if steps is None:
            return True
        return int(self._start * steps) <= self._step < int(self._stop * steps)

    def prepare_models(self, denoiser: Any) -> None:
        """Hear the state that the network is shown; what an exception has left goes first."""
        super().prepare_models(denoiser)
        registry = HookRegistry.check_if_exists_or_initialize(denoiser)
        registry.remove_hook(HOOK, recurse=False)
        registry.register_hook(self._state, HOOK)

    def cleanup_models(self, denoiser: Any) -> None:
        """Leave the network as it was."""
        HookRegistry.check_if_exists_or_initialize(denoiser).remove_hook(HOOK, recurse=False)

    def prepare_inputs(self, data: Any) -> list[Any]:
        """Return the inputs of each branch."""
        return self._prepared(
            [self._prepare_batch(data, at, name) for at, name in self._branches()]
        )

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Any) -> list[Any]:
        """Return the inputs of each branch."""
        return self._prepared(
            [
                self._prepare_batch_from_block_state(input_fields, data, at, name)
                for at, name in self._branches()
            ]
        )

    def _branches(self) -> list[tuple[int, str]]:
        return list(enumerate(("pred_cond", "pred_uncond")[: self.num_conditions]))

    def _prepared(self, batches: list[Any]) -> list[Any]:
        self._cond = batches[0]
        return batches

    @torch.no_grad()
    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """Return guided predictions, those of suspicious samples steered.

        Raises:
            RefusedError: If a prompt is suspicious and the action is "refuse".
        """
        pred = pred_cond
        if self._guides and pred_uncond is not None:
            # Bit for bit as the usual guider adds them.
            pred = pred_uncond + self.guidance_scale * (pred_cond - pred_uncond)
        if pred_uncond is not None and (self._step == 0 or self._rule.rows):
            step = self._seen(pred_cond, pred_uncond)
            found = self._rule.judge(step, self._samples(pred_cond)) if self._step == 0 else None
            used = self._rule.guided(step, pred.float())
            pred = pred if used is None else used.to(pred)
            if found is not None:
                self._rule.note(found)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    def _samples(self, pred: Tensor) -> tuple[int, ...]:
        parts = [p for p in tensors_in(self._cond.as_dict()) if p.ndim and len(p) == len(pred)]
        return alike(parts, len(pred))

    def _seen(self, cond: Tensor, uncond: Tensor) -> Step:
        level, shown = self._level(), self._state.x
        assert shown is not None, "the network was not called before its predictions were combined"
        raw = {"cond": cond.float(), "uncond": uncond.float()}
        x = shown.float() / level.scale.to(shown.device).float()
        point = Point(self._step, torch.as_tensor(self._timestep), level.unit())
        return Step(point, self._num_inference_steps, x, self._kind, raw, self.guidance_scale)

    def _level(self) -> Level:
        """Return the level of the state that the network is shown, in that scale."""
        t = float(self._timestep)
        if self._abar is None:
            sigma = torch.tensor(t / 1000, dtype=torch.float64)
            return Level(1 - sigma, sigma)
        abar = self._abar[min(round(t), len(self._abar) - 1)].double()
        return Level(abar.sqrt(), (1 - abar).sqrt())


def guider(
    pipeline: Any,
    *,
    guidance_scale: float | None = None,
    calibration: Calibration | str | Path | None = None,
    threshold: float | None = None,
    detector: str | None = None,
    action: str | None = None,
    mitigation: Intervention | str | None = None,
    log: str | Path | None = None,
) -> MemorizationGuider:
    """Make a guider for a modular pipeline: `pipe.update_components(guider=guider(pipe))`.

    Args:
        pipeline: The pipeline, whose scheduler and network are looked at.
        guidance_scale: Scale g; that of the pipeline's present guider where not given.
        calibration: As for `guarding.live.guard`.
        threshold: As there.
        detector: As there.
        action: "record", "mitigate" or "refuse"; as there where not given.
        mitigation: As there; an intervention that is not registered by name cannot be saved.
        log: As there.

    Returns:
        The guider; it is saved and loaded like any other, by `save_pretrained`.

    Raises:
        InputError: If an argument cannot be used, or the pipeline takes no guider.
        ModelError: If its scheduler tells of no levels.

    Source: ours.
    """
    scheduler = getattr(pipeline, "scheduler", None)
    present = getattr(pipeline, "guider", None)
    networks = (getattr(pipeline, name, None) for name in NETWORKS)
    network = next((one for one in networks if one is not None), None)
    if present is None or scheduler is None or network is None:
        raise InputError(
            f"{type(pipeline).__name__} given; expected a modular pipeline of diffusers with a "
            "guider, a scheduler and a denoiser; guard any other by `mnemoscope.guard`"
        )
    rule = rule_of(
        network, type(pipeline).__name__, calibration=calibration, threshold=threshold,
        detector=detector, action=action, mitigation=mitigation, log=log,
    )  # fmt: skip
    scale = getattr(present, "guidance_scale", 7.5) if guidance_scale is None else guidance_scale
    return MemorizationGuider(
        float(scale),
        _schedule(scheduler),
        {str(seeds): value for seeds, value in rule.thresholds.items()},
        rule.alpha,
        rule.detector,
        rule.action,
        None if rule.mitigation is None else str(rule.mitigation),
        None if log is None else str(log),
    )


def _schedule(scheduler: Any) -> dict[str, Any]:
    """Return what of a scheduler decides on the levels of its timesteps.

    Raises:
        ModelError: If it is neither a flow's nor one with betas.
    """
    kind = kind_of(scheduler)
    if kind == "flow":
        return {"kind": kind}
    held: Mapping[str, Any] = scheduler.config
    if "beta_start" not in held or held.get("trained_betas") is not None:
        raise ModelError(
            f"{type(scheduler).__name__} has no beta schedule in its configuration; guard the "
            "pipeline by `mnemoscope.guard`, which asks the scheduler itself"
        )
    return {"kind": kind} | {name: held[name] for name in BETAS if name in held}
