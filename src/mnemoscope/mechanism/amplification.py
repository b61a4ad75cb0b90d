r"""Amplification is what the guidance scale multiplies: k, the deviations and severity as g grows.

Formula::

    x0_g = x0_u + g·(x0_c - x0_u)   hence   k(g) = k_u + g·(k_c - k_u)   at one state
    w0 after the first update = kappa_T·k,   kappa = alpha' - alpha·sigma'/sigma

with k = <x0, x> / ||x||². A sampler that injects noise has a kappa of its own: kappa_T is what the
exact predictor's path has after the first update. The first call's state does not depend on g, so
its k(g) is known for every g from one run; whole-path quantities are compared over the guidance
scales the run has.
"""

from functools import partial
from typing import ClassVar

import numpy as np

from mnemoscope.core.panels import CurvePanel, Panel, Series
from mnemoscope.core.stats import bootstrap, median
from mnemoscope.errors import NeedsError
from mnemoscope.mechanism.base import (
    GROUPS,
    Analysis,
    Check,
    Measured,
    Record,
    Statistic,
    against_swapped,
    departures,
    early,
    exact_unguided,
    middle,
    quantiles,
    ruling,
    weights,
    with_target,
)

SWEPT = (
    "severity",
    "k at the first call",
    "D1",
    "D2",
    "D1, first fifth of the updates",
    "final seed variance",
)


class Amplification(Analysis):
    """What does more guidance do?"""

    name: ClassVar = "amplification"
    order: ClassVar = 5
    question: ClassVar = "Does guidance multiply the training image, and memorization with it?"
    formula: ClassVar = "k(g) = k_u + g·(k_c − k_u); severity, D1, D2 against g"
    source: ClassVar = "Kim, Kim & Lee 2025, eqs. 11-13 and the guidance ablation"
    expected: ClassVar = (
        "Severity, k at the first call, D1 and D2 of memorized prompts rise with g; at g = 1 D1 is "
        "near that of the exact unguided predictor (−2.7 at 50 steps) or below."
    )
    claims: ClassVar = (
        "The severity of memorized prompts rises from the lowest to the highest guidance (median "
        "difference above 0), by more than their similarity to other images",
        "k at the first call rises likewise",
        "D1 rises likewise",
        "D2 rises from the lowest to the highest guidance (median difference above 0)",
        "At g = 1 the median D1 of memorized prompts is at most 0.5 above that of the exact "
        "unguided predictor",
        "The weight of x after the first update is g times the conditional estimate's, within 25 "
        "% (median over memorized prompts)",
    )
    guided: ClassVar = (5,)
    evidence: ClassVar = (0, 1, 2)

    def measure(self, record: Record) -> Measured:
        """Compute the swept quantities at every guidance scale of the run."""
        if not record.guidances:
            raise NeedsError("the run holds no finished sample; generate some first")
        swept = {g: _at(record, g) for g in record.guidances}
        statistics: list[Statistic] = []
        panels: list[Panel] = []
        scales = np.array(record.guidances)
        for quantity in SWEPT:
            series: list[Series] = []
            for group in GROUPS:
                prompts = record.groups.get(group, frozenset())
                table = np.array(
                    [
                        [swept[g].get(quantity, {}).get(p, np.nan) for g in record.guidances]
                        for p in sorted(prompts)
                    ]
                ).reshape(-1, len(scales))
                if not np.isfinite(table).any():
                    continue
                y, low, high = quantiles(table, (0.5, 0.16, 0.84))
                label = f"{group} (n = {len(table)})"
                series.append(Series(label, group, scales, y, low, high, np.full(len(y), np.nan)))
                for column, g in enumerate(record.guidances):
                    statistics.append(
                        Statistic.of(
                            self.name,
                            quantity,
                            bootstrap(median, table[:, column]),
                            population=f"{group} prompts",
                            guidance=g,
                            reference="" if quantity == "final seed variance" else "target",
                        )
                    )
            if series:
                title = f"{quantity[0].upper()}{quantity[1:]} and guidance"
                note = (
                    "Line: median over prompts of the mean over a prompt's seeds; band: 16 % to 84 "
                    "% of prompts; n in the legend."
                )
                panels.append(CurvePanel(title, "guidance scale g", quantity, note, tuple(series)))
        return Measured(
            panels[0].caption if panels else "",
            tuple(panels),
            tuple(statistics),
            (),
            (
                *self._rises(record.apart),
                self._unguided(record, swept),
                self._first(record),
            ),
        )

    def _rises(self, record: Record) -> tuple[Check, ...]:
        """Compare the lowest and the highest guidance, on seeds that did not choose the groups."""
        checks: list[Check] = []
        for claim, quantity in enumerate(("severity", "k at the first call", "D1", "D2")):
            if len(record.guidances) < 2:
                reason = "the run has one guidance scale; a sweep needs two or more"
                checks.append(self.check(claim, "not measured", None, reason))
                continue
            of = partial(_rise, quantity=quantity)
            rise = of(record)
            found = bootstrap(
                median, np.array([rise.get(p, np.nan) for p in sorted(record.memorized)])
            )
            low, high = record.guidances[0], record.guidances[-1]
            measured = f"{found.value:+.3g} from g = {low:g} to {high:g}, n = {found.n}"
            if claim in self.evidence:
                met = ruling(found.value > 0, found.value)
                against = against_swapped(record, of, record.memorized)
                checks.append(self.weigh(claim, measured, met, against))
            else:
                holds = ruling(found.low > 0, found.low)
                checks.append(self.check(claim, measured, holds, found.reason))
        return tuple(checks)

    def _unguided(self, record: Record, swept: dict[float, dict[str, dict[str, float]]]) -> Check:
        if 1.0 not in swept:
            return self.check(4, "not measured", None, "the run has no samples at guidance 1")
        gram = record.take("path", 1.0).gram
        states = gram.states().level
        exact = record.exact or exact_unguided(gram.level.at(0), states)
        anchor = float((exact.w0 - states.alpha.numpy()).sum())
        held = swept[1.0].get("D1", {})
        found = middle(held.get(p, np.nan) for p in record.memorized)
        return self.check(
            4, f"{found:.2f} against {anchor:.2f}", ruling(found <= anchor + 0.5, found)
        )

    def _first(self, record: Record) -> Check:
        try:
            samples = with_target(record.take())
        except NeedsError as missing:
            return self.check(5, "not measured", None, str(missing))
        gram, g = samples.gram, record.guidance
        entered, _, _ = weights(record, samples.states(), "target")
        alone = record.trace(
            "", samples, gram.fit("x0_c", ["target", "x_T"]).weights[..., 0], reference="target"
        )
        exact = record.exact or exact_unguided(gram.level.at(0), gram.states().level)
        kappa = float(exact.w0[0])
        unguided = alone.at(0)
        ratio = middle(
            w0 / (kappa * g * unguided[p])
            for p, w0 in entered.at(0).items()
            if p in record.memorized
        )
        return self.check(
            5, f"{ratio:.2f} times g·kappa_T·k_c", ruling(abs(ratio - 1) <= 0.25, ratio)
        )


def _rise(record: Record, quantity: str) -> dict[str, float]:
    """Return what a quantity gains from the lowest to the highest guidance, by prompt."""
    low, high = (
        _at(record, g).get(quantity, {}) for g in record.guidances[:: len(record.guidances) - 1]
    )
    return {prompt: value - low[prompt] for prompt, value in high.items() if prompt in low}


def _at(record: Record, g: float) -> dict[str, dict[str, float]]:
    """Return the swept quantities of every prompt at one guidance scale."""
    swept: dict[str, dict[str, float]] = {"severity": dict(record.severity.get(g, {}))}
    spread = record.convergence.get(g)
    if spread is not None and "x0_g_variance" in spread.values:
        last = spread.values["x0_g_variance"][:, -1].tolist()
        swept["final seed variance"] = dict(zip(spread.prompts, last, strict=True))
    try:
        samples = with_target(record.take("path", g))
    except NeedsError:
        return swept
    k = samples.gram.fit("x0_g", ["target"]).weights[..., 0]
    swept["k at the first call"] = record.trace("", samples, k).at(0)
    states = samples.states()
    w0, wT, _ = weights(record, states, "target")
    level = states.gram.level
    first, second, _ = departures(w0, wT, level.alpha.numpy(), level.sigma.numpy())
    for name, total in (
        ("D1", first.values.sum(axis=1)),
        ("D2", second.values.sum(axis=1)),
        ("D1, first fifth of the updates", first.values[:, : early(first)].sum(axis=1)),
    ):
        swept[name] = dict(zip(w0.prompts, total.tolist(), strict=True))
    return swept
