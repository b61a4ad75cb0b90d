r"""The loss is how far the clean estimate is from the training image, squared and summed over d.

Formula::

    L_t(b) = ||x0_b - x||² = ||eps - eps_b||² / SNR_t     with  x_t = alpha·x + sigma·eps

for the conditional estimate (b = c) and the guided one (b = g), under each of the three input laws.
"""

from typing import ClassVar, Literal

from mnemoscope.core.panels import Panel
from mnemoscope.core.stats import bootstrap, median
from mnemoscope.errors import NeedsError
from mnemoscope.mechanism.base import (
    LAW_IN_WORDS,
    LAWS,
    Analysis,
    Check,
    Law,
    Measured,
    Record,
    Statistic,
    Trace,
    middle,
    ruling,
    share,
    with_target,
)

FITTED: tuple[tuple[int, Law], ...] = ((3, "forward"), (4, "noise"), (5, "path"))
"""Which claim speaks of the first call under which law."""

EARLY, LATE = 0.1, 0.2
"""Shares of the path that count as its beginning and its end: 5 and 10 of 50 calls."""


class Loss(Analysis):
    """Is the loss against the training image smaller or larger for memorized prompts?"""

    name: ClassVar = "loss"
    order: ClassVar = 1
    question: ClassVar = "Does guidance make the loss of memorized prompts larger?"
    formula: ClassVar = "L_t(b) = ‖x̂0_b − x‖², b conditional or guided"
    source: ClassVar = "Kim, Kim & Lee 2025, section 3.2 and figure 1"
    expected: ClassVar = (
        "Without guidance the loss of memorized prompts is the smaller one at all steps; with "
        "guidance it is larger early on and smaller at the end."
    )
    claims: ClassVar = (
        "Without guidance, on its own path, the median loss of memorized prompts is below that of "
        "the others at 95 % of the calls or more",
        "With guidance the median loss of memorized prompts is above that of the others over the "
        "first tenth of the calls",
        "With guidance the median loss of memorized prompts is below that of the others over the "
        "last fifth of the calls",
        "On noised training images the conditional loss of memorized prompts is the smaller one "
        "at the first call",
        "From pure noise the conditional loss of memorized prompts is the smaller one at the "
        "first call",
        "On generated states the conditional loss of memorized prompts is the smaller one at the "
        "first call",
    )
    guided: ClassVar = (1, 2)

    def measure(self, record: Record) -> Measured:
        """Compute the loss of both estimates under every law the run holds."""
        panels: list[Panel] = []
        traces: list[Trace] = []
        first: dict[Law, Trace] = {}
        for law in LAWS:
            try:
                found = loss(record, law, "x0_c"), loss(record, law, "x0_g")
            except NeedsError:
                if law == "path":
                    raise
                continue
            first[law] = found[0]
            for trace, branch in zip(found, ("conditional", "guided"), strict=True):
                traces.append(trace)
                title = f"{LAW_IN_WORDS[law].capitalize()}, {branch} estimate"
                panels.append(
                    self.panel(record, trace, title, "squared error, sum over d", log_y=True)
                )
        guided = traces[1]
        checks = [
            self._unguided(record),
            *self._guided(record, guided),
            *(self._fitted(record, claim, law, first.get(law)) for claim, law in FITTED),
        ]
        statistics = [
            Statistic.of(
                self.name,
                f"{trace.quantity} at the first call",
                bootstrap(median, trace.of(prompts)[:, 0]),
                population=f"{group} prompts, {LAW_IN_WORDS[trace.law]}",
                guidance=trace.guidance,
                reference="target",
                window="first call",
            )
            for trace in traces
            for group, prompts in record.groups.items()
        ]
        return Measured(
            panels[1].caption,
            tuple(panels),
            tuple(statistics),
            self.curves(record, *traces),
            tuple(checks),
        )

    def _unguided(self, record: Record) -> Check:
        if 1.0 not in record.guidances:
            reason = "the run has no samples at guidance 1; add 1 to its guidance scales"
            return self.check(0, "not measured", None, reason)
        trace = loss(record, "path", "x0_c", 1.0)
        ours, theirs = trace.typical(record.memorized), trace.typical(record.others)
        below = share(ours < theirs, ours, theirs)
        measured = f"below at {below:.0%} of {len(ours)} calls, g = 1"
        return self.check(0, measured, ruling(below >= 0.95, below))

    def _guided(self, record: Record, trace: Trace) -> tuple[Check, Check]:
        calls = len(trace.calls)
        ends = (slice(0, max(1, round(EARLY * calls))), slice(-max(1, round(LATE * calls)), None))
        ratios: list[float] = []
        for end in ends:
            mean = {
                name: middle(trace.of(prompts)[:, end].mean(axis=1))
                for name, prompts in (("ours", record.memorized), ("theirs", record.others))
            }
            ratios.append(mean["ours"] / mean["theirs"])
        early, late = ratios
        words = f"of the others' loss, g = {trace.guidance:g}"
        return (
            self.check(1, f"{early:.3g} times the median {words}", ruling(early > 1, early)),
            self.check(2, f"{late:.3g} times the median {words}", ruling(late < 1, late)),
        )

    def _fitted(self, record: Record, claim: int, law: Law, trace: Trace | None) -> Check:
        if trace is None:
            return self.check(claim, "not measured", None, f"the run holds no {LAW_IN_WORDS[law]}")
        ours, theirs = (
            float(trace.typical(prompts)[0]) for prompts in (record.memorized, record.others)
        )
        measured = f"{ours:.4g} against {theirs:.4g}"
        return self.check(claim, measured, ruling(ours < theirs, ours, theirs))


def loss(
    record: Record, law: Law, estimate: Literal["x0_c", "x0_g"], guidance: float | None = None
) -> Trace:
    """Return ||estimate - target||² per prompt and call, summed over the latent's coordinates.

    Raises:
        NeedsError: If the run lacks the law, or any training image.

    Source: Kim, Kim & Lee 2025, eq. 10.
    """
    samples = with_target(record.take(law, guidance))
    branch = {"x0_c": "conditional", "x0_g": "guided"}[estimate]
    return record.trace(
        f"{branch} loss",
        samples,
        samples.gram.square({estimate: 1.0, "target": -1.0}),
        law=law,
        reference="target",
    )
