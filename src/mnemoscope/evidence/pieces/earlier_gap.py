r"""How the network differs from an earlier checkpoint of itself at the last call.

Formula, both under the prompt and at the same state::

    difference = eps_c - eps_c of the earlier network          or the diagonal of d difference / dx
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.level import Level
from mnemoscope.evidence.piece import Absent, Piece, Price
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.loop import Latents
from mnemoscope.sampling.probes import diagonal, predict

NO_EARLIER = "no earlier checkpoint was given; name one with --earlier"


@dataclass(frozen=True)
class Changed:
    """What training has changed between two checkpoints.

    Attributes:
        level: Level of the last call, unit form.
        values: The difference of the noise estimates, or the diagonal of its Jacobian.
    """

    level: Level
    values: Float[Tensor, "prompt seed *latent"]


@dataclass(frozen=True)
class EarlierGap(Piece[Changed]):
    """The difference from an earlier checkpoint at the last call.

    Attributes:
        probes: Random signs vectors for the diagonal of its Jacobian; 0 for the difference itself.
    """

    probes: int = 0

    @property
    def calls(self) -> int | None:
        """Return the whole path."""
        return None

    def extra(self, calls: int) -> Price:
        """Return both networks forward once and back once a probe."""
        return Price(forward=2, backward=2 * self.probes)

    def gather(self, sitting: Sitting) -> Changed | Absent:
        """Evaluate both networks at the last call."""
        bank, tape = sitting.bank, sitting.tape
        assert tape is not None, "a piece of the path was asked for without a path"
        if bank.earlier is None:
            return Absent(NO_EARLIER)
        earlier, network = bank.earlier, bank.network
        texts = [prompt.text for prompt in sitting.prompts]
        before = earlier.encode(texts)
        point = bank.point(bank.calls - 1)
        states = tape.x[:, -1].unflatten(1, sitting.model.latent_shape).to(sitting.noise)
        signs = bank.signs("curvature", self.probes) if self.probes else None

        def work(condition: Condition, samples: Tensor, seeds: Tensor) -> Tensor:
            old = before.take(samples // sitting.seeds)

            def difference(x: Latents) -> Latents:
                now = predict(network, x, point, condition).eps
                return now - predict(earlier.network, x, point, old).eps

            if signs is not None:
                return diagonal(difference, states[samples], signs[:, seeds])
            with torch.no_grad():
                return difference(states[samples])

        return Changed(bank.points[-1].level, sitting.each(work).reshape(sitting.shape))
