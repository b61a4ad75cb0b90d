r"""Alignment is the cosine of each noise estimate with the training image or the initial noise.

Formula::

    raw       cos(eps_b, y)                      b = c, u, g;  y = x (training image) or x_T
    freed     cos(eps_b - P·eps_b, x - P·x)      P projects onto the state x_t

Late in a guided path the state holds more of x than its level says, so even the unconditional
estimate turns towards x. Whether it *knows* x is told only from pure noise, or with the state
removed. Where a path begins at alpha = 0 its first noise estimate *is* the state, and tells
nothing.
"""

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
        "The median cos(eps_c, x) of memorized prompts at the first call is below -1/sqrt(d)",
        "It is within 50 % of -alpha_T·rms(x)",
        "The median |cos(eps_u, x)| over memorized prompts at the first call is at most 1/sqrt(d)",
        "With the state removed, the median cos(eps_c, x) of memorized prompts at the first call "
        "is below that of the others by 0.1 or more",
        "cos(eps_c, x_T) and cos(eps_u, x_T) have medians above 0.95 at the first call",
    )

    def measure(self, record: Record) -> Measured:
        """Compute the cosines of the three noise estimates on the path and from pure noise."""
        samples = with_target(record.take())
        gram = samples.gram
        noise = 1 / sqrt(gram.d)
        panels: list[Panel] = []
        traces: dict[str, Trace] = {}
        zero = np.zeros(gram.calls)
        for branch, prose in BRANCHES.items():
            for quantity, values, reference in (
                (f"cos({branch}, x)", gram.cosine(branch, "target"), "target"),
                (f"cos({branch}, x_T)", gram.cosine(branch, "x_T"), ""),
                (f"cos({branch}, x) without x_t", freed(gram, branch), "target"),
            ):
                trace = record.trace(quantity, samples, values, reference=reference)
                traces[quantity] = trace
                title = f"{prose.capitalize()} estimate"
                panels.append(self.panel(record, trace, title, quantity, ("0", zero)))
        probes = self._probes(record, "noise")
        size = record.trace(
            "alpha·rms(x)", samples, gram.level.alpha * gram.rms("target"), reference="target"
        )
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

        def first(quantity: str, prompts: frozenset[str]) -> float:
            return float(traces[quantity].typical(prompts)[0])

        ours, everyone = record.memorized, record.memorized | record.others
        cos_c, cos_u = first("cos(eps_c, x)", ours), first("cos(eps_u, x)", ours)
        length = float(size.typical(ours)[0])
        ratio = -cos_c / length if length else nan
        bare = [first("cos(eps_c, x) without x_t", who) for who in (ours, record.others)]
        parallel = [first(f"cos({b}, x_T)", everyone) for b in ("eps_c", "eps_u")]
        told = bool(gram.level.alpha[0] > 0)

        def first_call(claim: int, measured: str, holds: bool | None) -> Check:
            if not told:
                return self.check(claim, "not measured", None, PURE_NOISE)
            return self.check(claim, measured, holds)

        return Measured(
            panels[0].caption,
            tuple(panels),
            statistics,
            self.curves(record, *traces.values(), *probes),
            (
                first_call(
                    0, f"{cos_c:.4f}, 1/sqrt(d) = {noise:.4f}", ruling(cos_c < -noise, cos_c)
                ),
                first_call(
                    1,
                    f"{ratio:.2f} times -alpha_T·rms(x)",
                    ruling(0.5 <= ratio <= 1.5, ratio),
                ),
                first_call(
                    2, f"{cos_u:.4f}, 1/sqrt(d) = {noise:.4f}", ruling(abs(cos_u) <= noise, cos_u)
                ),
                first_call(
                    3,
                    f"{bare[0]:.3f} against {bare[1]:.3f}",
                    ruling(bare[0] <= bare[1] - 0.1, *bare),
                ),
                first_call(
                    4,
                    f"{parallel[0]:.4f} and {parallel[1]:.4f}",
                    ruling(min(parallel) > 0.95, *parallel),
                ),
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


def freed(gram: Gram, vector: str, other: str = "target") -> Float[Tensor, "sample call"]:
    """Return the cosine of a vector with another once the state is regressed out of both.

    Source: ours; at pure noise a perfect conditional estimate gives -1.
    """
    squared = gram.square("x")
    sides = [{name: 1.0, "x": -gram.inner(name, "x") / squared} for name in (vector, other)]
    return gram.cosine(sides[0], sides[1])
