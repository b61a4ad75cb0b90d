"""What the network says of the initial noise when it is shown as an almost clean state."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mnemoscope.core.predict import Prediction
from mnemoscope.evidence.bank import Bank
from mnemoscope.evidence.piece import Piece, Price
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.evidence.values import LatentMaps
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.probes import predict


@dataclass(frozen=True)
class LowNoise(Piece[LatentMaps]):
    """Predictions for the initial noise when it is shown as if it were an almost clean state.

    Attributes:
        before_last: Which call's time and level are pretended, counted from the end; 1 is the last.
    """

    before_last: int = 3

    @property
    def uncond(self) -> bool:
        """Return True."""
        return True

    def extra(self, calls: int) -> Price:
        """Return one evaluation; the unconditional branch is the bank's."""
        return Price(forward=1)

    def apart(self, calls: int) -> Price:
        """Return the unconditional branch."""
        return Price(forward=1)

    def warm(self, bank: Bank) -> None:
        """Fill the bank with the unconditional branch."""
        if bank.shared and bank.model.has_uncond:
            bank.unconditional_of_seeds(bank.late(self.before_last))

    def gather(self, sitting: Sitting) -> LatentMaps:
        """Evaluate the conditional branch at the noise."""
        bank = sitting.bank
        call = bank.late(self.before_last)
        point = bank.point(call)
        raw = sitting.unconditional(call)
        blank = Prediction.from_raw(bank.network.kind, raw, sitting.noise, point.level)

        def work(condition: Condition, samples: Tensor, _seeds: Tensor) -> Tensor:
            with torch.no_grad():
                found = predict(bank.network, sitting.noise[samples], point, condition)
            return torch.stack([found.eps, found.x0], dim=1)

        found = sitting.each(work)

        def placed(values: Tensor) -> Tensor:
            return values.float().cpu().reshape(sitting.shape)

        return LatentMaps(
            bank.points[call].level,
            placed(sitting.noise),
            placed(blank.eps),
            found[:, :, 0],
            placed(blank.x0),
            found[:, :, 1],
        )
