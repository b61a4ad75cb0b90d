r"""Alignment is the cosine of each noise estimate with the training image or the initial noise.

Formula::

    raw       cos(eps_b, y)                      b = c, u, g;  y = x (training image) or x_T
    paired    cos(eps_b, x) - cos(x_T, x)
    freed     cos(eps_b - P·eps_b, x - P·x)      P projects onto the state x_t
    implied   cos(eps_b, x_t - alpha·x_0)        x_0 the final sample: the noise that is in x_t if
                                                 the path was to end there

At the first call an estimate is nearly x_T, whose own cosine with x is noise of size 1/sqrt(d):
what is left when that is taken off is what the network put there.

Late in a guided path the state holds more of x than its level says, so even the unconditional
estimate turns towards x. Whether it *knows* x is told only from pure noise, or with the state
removed. Where a path begins at alpha = 0 its first noise estimate *is* the state, and tells
nothing.
"""

from collections.abc import Mapping
from math import nan, sqrt
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.gram import Gram
from mnemoscope.core.panels import Panel
from mnemoscope.core.stats import bootstrap, median
from mnemoscope.errors import NeedsError
from mnemoscope.mechanism.base import (
    PURE_NOISE,
    Analysis,
    Check,
    Law,
    Measured,
    Record,
    Statistic,
    Trace,
    against_swapped,
    middle,
    ruling,
    with_target,
)

BRANCHES = {"eps_c": "conditional", "eps_u": "unconditional", "eps_g": "guided"}


class Alignment(Analysis):
    """Which noise estimate carries the training image?"""

    name: ClassVar = "alignment"
    order: ClassVar = 3
    question: ClassVar = (
        "Does the conditional noise estimate carry x, and the unconditional none of it?"
    )
    formula: ClassVar = "cos(ε_b, x), cos(ε_b, x_T), and cos(ε_b, x) with x_t removed by regression"
    source: ClassVar = "Kim, Kim & Lee 2025, section 3.3; the removal of x_t is ours"
    expected: ClassVar = (
        "At the first call cos(ε_c, x) is negative, about −α_T·rms(x), for memorized prompts; "
        "cos(ε_u, x) is within its noise 1/√d; both are almost parallel to x_T."
    )
    claims: ClassVar = (
        "The median of cos(eps_c, x) - cos(x_T, x) over memorized prompts at the first call is "
        "negative, and below what it is with other images",
        "It is within 50 % of -alpha_T·rms(x), and below what it is with other images",
        "The median of |cos(eps_u, x)| over memorized prompts at the first call is at most "
        "1/sqrt(d)",
        "With the state removed, the median cos(eps_c, x) of memorized prompts at the first call "
        "is below that of the others by 0.1 or more, and below what it is with other images",
        "cos(eps_c, x_T) and cos(eps_u, x_T) have medians above 0.95 at the first call",
    )
    evidence: ClassVar = (0, 1, 3)

    def measure(self, record: Record) -> Measured:
        """Compute the cosines of the three noise estimates on the path and from pure noise."""
        samples = with_target(record.take())
        gram = samples.gram
        panels: list[Panel] = []
        traces: dict[str, Trace] = {}
        zero = np.zeros(gram.calls)
        for branch, prose in BRANCHES.items():
            for quantity, values, reference in (
                (f"cos({branch}, x)", gram.cosine(branch, "target"), "target"),
                (f"cos({branch}, x_T)", gram.cosine(branch, "x_T"), ""),
                (
                    f"cos({branch}, x) - cos(x_T, x)",
                    gram.cosine(branch, "target") - gram.cosine("x_T", "target"),
                    "target",
                ),
                (f"cos({branch}, x) without x_t", freed(gram, branch), "target"),
                (
                    f"cos({branch}, implied noise)",
                    gram.cosine(branch, {"x": 1.0, "x_0": -gram.level.alpha}),
                    "final sample",
                ),
            ):
                trace = record.trace(quantity, samples, values, reference=reference)
                traces[quantity] = trace
                title = f"{prose.capitalize()} estimate"
                panels.append(self.panel(record, trace, title, quantity, ("0", zero)))
        probes = self._probes(record, "noise")
        statistics = tuple(
            Statistic.of(
                self.name,
                trace.quantity,
                bootstrap(median, trace.of(prompts)[:, 0]),
                population=f"{group} prompts, law {trace.law}",
                guidance=record.guidance,
                reference=trace.reference,
                window="first call",
            )
            for trace in (*traces.values(), *probes)
            for group, prompts in record.groups.items()
        )

        return Measured(
            panels[0].caption,
            tuple(panels),
            statistics,
            self.curves(record, *traces.values(), *probes),
            self._checks(record.apart),
        )

    def _checks(self, record: Record) -> tuple[Check, ...]:
        """Judge on seeds that did not choose the groups."""
        samples = with_target(record.take())
        if not bool(samples.gram.level.alpha[0] > 0):
            return tuple(
                self.check(claim, "not measured", None, PURE_NOISE)
                for claim in range(len(self.claims))
            )
        noise = 1 / sqrt(samples.gram.d)
        ours, everyone = record.memorized, record.memorized | record.others

        def typical(values: Mapping[str, float], prompts: frozenset[str]) -> float:
            return middle(value for prompt, value in values.items() if prompt in prompts)

        pair, bare = typical(_paired(record), ours), _freed(record)
        size = typical(_first(record, samples.gram.level.alpha * samples.gram.rms("target")), ours)
        ratio = -pair / size if size else nan
        cos_u = _first(record, samples.gram.cosine("eps_u", "target"))
        blind = typical({prompt: abs(value) for prompt, value in cos_u.items()}, ours)
        sides = [typical(bare, who) for who in (ours, record.others)]
        parallel = [
            typical(_first(record, samples.gram.cosine(b, "x_T")), everyone)
            for b in ("eps_c", "eps_u")
        ]
        swapped = against_swapped(record, _paired, ours)
        return (
            self.weigh(0, f"{pair:.4f}", ruling(pair < 0, pair), swapped, -1),
            self.weigh(
                1,
                f"{ratio:.2f} times -alpha_T·rms(x)",
                ruling(0.5 <= ratio <= 1.5, ratio),
                swapped,
                -1,
            ),
            self.check(2, f"{blind:.4f}, 1/sqrt(d) = {noise:.4f}", ruling(blind <= noise, blind)),
            self.weigh(
                3,
                f"{sides[0]:.3f} against {sides[1]:.3f}",
                ruling(sides[0] <= sides[1] - 0.1, *sides),
                against_swapped(record, _freed, ours),
                -1,
            ),
            self.check(
                4,
                f"{parallel[0]:.4f} and {parallel[1]:.4f}",
                ruling(min(parallel) > 0.95, *parallel),
            ),
        )

    def _probes(self, record: Record, law: Law) -> tuple[Trace, ...]:
        try:
            samples = with_target(record.take(law))
        except NeedsError:
            return ()
        return tuple(
            record.trace(quantity, samples, values, law=law, reference="target")
            for branch in BRANCHES
            for quantity, values in (
                (f"cos({branch}, x)", samples.gram.cosine(branch, "target")),
                (f"cos({branch}, x) without x_t", freed(samples.gram, branch)),
            )
        )


def _first(record: Record, values: Float[Tensor, "sample call"]) -> dict[str, float]:
    """Return the value at the first call of every prompt that has an image."""
    return record.trace("", with_target(record.take()), values).at(0)


def _paired(record: Record) -> dict[str, float]:
    gram = with_target(record.take()).gram
    return _first(record, gram.cosine("eps_c", "target") - gram.cosine("x_T", "target"))


def _freed(record: Record) -> dict[str, float]:
    return _first(record, freed(with_target(record.take()).gram, "eps_c"))


def freed(gram: Gram, vector: str, other: str = "target") -> Float[Tensor, "sample call"]:
    """Return the cosine of a vector with another once the state is regressed out of both.

    Source: ours; at pure noise a perfect conditional estimate gives -1.
    """
    squared = gram.square("x")
    sides = [{name: 1.0, "x": -gram.inner(name, "x") / squared} for name in (vector, other)]
    return gram.cosine(sides[0], sides[1])
