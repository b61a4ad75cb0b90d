r"""The weights of a state are those of the clean image and of the initial noise in it.

Formula::

    (w0, wT) = argmin ||x_t - w0·x - wT·x_T||²          at the destination of every update
    exact, unguided:  wT = sigma / sigma_T,  w0 = alpha - alpha_T·wT

More than one analysis reads them: each state's weights, their departure from the schedule, and the
weights that the exact unguided predictor would have.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from mnemoscope.core.level import Level
from mnemoscope.mechanism.base.record import Exact, Record, Samples, Trace, with_target

REFERENCES = {"target": "target", "final sample": "x_0"}
"""What stands for x, and the vector of the record that is it."""

NO_TARGET = "no prompt of the run has a training image"

PURE_NOISE = (
    "the path begins at pure noise (alpha = 0), where the noise estimate is the state whatever the "
    "network says"
)
"""Why a claim about the first noise estimate cannot be told with zero terminal SNR."""

EARLY = 0.2
"""Share of the updates that is early: 10 of Stable Diffusion's usual 50."""


def weights(record: Record, states: Samples, reference: str) -> tuple[Trace, Trace, Trace]:
    """Return w0, wT and the residual of every state, averaged over seeds.

    Args:
        record: The record the samples are of.
        states: Samples at the destinations of the updates (`Samples.states`).
        reference: "target" or "final sample".

    Raises:
        NeedsError: If the reference is the target and no prompt has one.

    Source: Kim, Kim & Lee 2025, the decomposition of x_t.
    """
    samples = with_target(states) if reference == "target" else states
    fit = samples.gram.fit("x", [REFERENCES[reference], "x_T"])
    return (
        record.trace("w0", samples, fit.weights[..., 0], reference=reference),
        record.trace("wT", samples, fit.weights[..., 1], reference=reference),
        record.trace("residual", samples, fit.residual, reference=reference),
    )


def exact_unguided(first: Level, states: Level) -> Exact:
    """Return the weights under the exact unguided predictor and a sampler without noise of its own.

    Args:
        first: Level of the first call, unit form, 0-d.
        states: Level at the destination of every update, unit form.

    Source: ours; the solution of DDIM's recursion (Song et al. 2021, eq. 12) for a constant
    estimate.
    """
    leaving = states.sigma / first.sigma
    return Exact((states.alpha - first.alpha * leaving).numpy(), leaving.numpy())


def departures(
    w0: Trace,
    wT: Trace,
    alpha: Float[np.ndarray, " call"],
    sigma: Float[np.ndarray, " call"],
) -> tuple[Trace, Trace, Trace]:
    """Return the summands of D1, D2 and D1 + D2 at the destination of every update.

    A sampler of second order calls the network at a trial state of each level before it arrives
    there; of states of one level in a row only the last is a destination.

    Source: Kim, Kim & Lee 2025, the deviation from the schedule.
    """
    arrived = np.append(np.diff(alpha) != 0, True)
    first, second = (w0.values - alpha)[:, arrived], (sigma - wT.values)[:, arrived]
    calls, log_snr = w0.calls[arrived], w0.log_snr[arrived]
    return (
        replace(w0, quantity="summand of D1", calls=calls, log_snr=log_snr, values=first),
        replace(w0, quantity="summand of D2", calls=calls, log_snr=log_snr, values=second),
        replace(
            w0, quantity="summand of D1 + D2", calls=calls, log_snr=log_snr, values=first + second
        ),
    )


def early(summands: Trace) -> int:
    """Return how many of the updates are early, at least one.

    Source: ours.
    """
    return max(1, round(EARLY * len(summands.calls)))
