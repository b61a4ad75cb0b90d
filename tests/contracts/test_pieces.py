"""Every piece of evidence keeps the contract, on a tiny random pipeline."""

from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.data.prompts import Prompt
from mnemoscope.detectors import Detector
from mnemoscope.errors import NeedsError
from mnemoscope.evidence import (
    Absent,
    Bank,
    MissingEvidence,
    Needs,
    Piece,
    Price,
    gather,
    path_calls,
    price_in,
)
from mnemoscope.evidence.gather import sit
from mnemoscope.evidence.pieces.change_norms import ChangeNorms
from mnemoscope.evidence.pieces.cycled import Cycled
from mnemoscope.evidence.pieces.earlier_gap import EarlierGap
from mnemoscope.evidence.pieces.gap_derivative import GapDerivative
from mnemoscope.evidence.pieces.local_drift import LocalDrift
from mnemoscope.evidence.pieces.maps import Maps
from mnemoscope.evidence.pieces.noised_target import NoisedTarget
from mnemoscope.evidence.pieces.one_step import OneStep
from mnemoscope.evidence.pieces.path import PathRecord
from mnemoscope.evidence.pieces.probed import Probed
from mnemoscope.evidence.pieces.proximal import Proximal
from mnemoscope.evidence.pieces.text import Text
from mnemoscope.evidence.pieces.token_attention import TokenAttention
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.flows.detect import detect
from mnemoscope.mitigations.guidance_interval import GuidanceInterval
from mnemoscope.models import load_model
from mnemoscope.registry import classes
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.recipe import Recipe
from tests.sscd import sscd_network
from tests.tiny import tiny_pipeline

STEPS, SEEDS = 5, 3

KINDS = classes("mnemoscope.evidence.pieces", Piece)
SMALL = {LocalDrift: LocalDrift(3, 2)}
"""What is tried in the place of a default that takes hundreds of calls."""
PIECES = (
    *(SMALL.get(kind, kind()) for kind in KINDS),
    PathRecord(3),
    PathRecord(None),
    ChangeNorms(None),
    Maps("last"),
    OneStep(decoded=True),
    NoisedTarget(2, first=True),
    Proximal(normal=True),
    Cycled(1),
    EarlierGap(1),
    Probed("noise", seeds=2, stride=2),
    GapDerivative("difference"),
    TokenAttention(None),
)
NAMES = [str(piece) for piece in PIECES]


@pytest.fixture(scope="module")
def model():
    return load_model(tiny_pipeline(), device="cpu")


@pytest.fixture(scope="module", autouse=True)
def sscd(tmp_path_factory):
    with sscd_network(tmp_path_factory.mktemp("sscd")):
        yield


@pytest.fixture(scope="module")
def prompts():
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    texts = ("a cat", "the dog of a cat")
    return [
        Prompt(f"q{at}", text, images=(picture,))
        for at, (text, picture) in enumerate(zip(texts, pictures, strict=True))
    ]


def bank_of(model, noise="shared", **options):
    recipe = Recipe(scheduler="ddim", steps=STEPS, noise=noise, **options)
    return Bank(model, recipe, SEEDS, batch=4, earlier=model)


def gathered(model, prompts, pieces, noise="shared"):
    bank = bank_of(model, noise)
    return gather(sit(bank, prompts, range(len(prompts)), pieces), pieces)


def parts_of(value, name=""):
    """Yield every array and every other value within a value, with where it is."""
    if isinstance(value, Tensor):
        yield name, value.detach().double().cpu().numpy()
    elif is_dataclass(value):
        for field in fields(value):
            yield from parts_of(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from parts_of(part, f"{name}[{key}]")
    elif isinstance(value, tuple | list):
        for at, part in enumerate(value):
            yield from parts_of(part, f"{name}[{at}]")
    else:
        yield name, value


def assert_same(found, wanted):
    pairs = list(zip(parts_of(found), parts_of(wanted), strict=True))
    assert pairs
    for (name, one), (other_name, other) in pairs:
        assert name == other_name
        if isinstance(one, np.ndarray):
            # Batches of other sizes agree to 5e-6; products and derivatives amplify it.
            size = max(1.0, float(np.nanmax(np.abs(other), initial=0.0)))
            np.testing.assert_allclose(one, other, rtol=0, atol=5e-5 * size, err_msg=name)
        elif isinstance(one, float):
            assert one == pytest.approx(other, rel=1e-4, nan_ok=True), name
        else:
            assert one == other, name


def test_there_are_pieces_and_every_kind_is_tried():
    assert len(KINDS) >= 20
    assert {type(piece) for piece in PIECES} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_is_a_value(kind):
    piece = kind()
    assert piece == kind()
    assert hash(piece) == hash(kind())
    assert str(piece).startswith(kind.__name__)
    assert (kind.__doc__ or "").strip()
    assert is_dataclass(kind)
    with pytest.raises(FrozenInstanceError):
        piece.anything = 1


@pytest.mark.parametrize("noise", ["shared", "independent"])
@pytest.mark.parametrize("piece", PIECES, ids=NAMES)
def test_costs_what_it_says(model, prompts, piece, noise):
    bank = bank_of(model, noise)
    length = path_calls([piece], bank.calls)
    if length and bank.shared:
        bank.unconditional_of_seeds(0)
    piece.warm(bank)
    before = bank.network.rows
    sitting = sit(bank, prompts, range(2), [piece])
    path = bank.network.rows - before
    found = gather(sitting, [piece]).pieces[piece]
    beside = bank.network.rows - before - path
    assert not isinstance(found, Absent)
    told = piece.total(bank.calls, SEEDS)
    if not bank.shared:
        told = told + piece.apart(bank.calls) * SEEDS
    assert beside == 2 * told.forward
    assert path == 2 * SEEDS * (2 * length - (1 if bank.shared and length else 0))
    assert path + beside == 2 * price_in(bank, [piece]).forward


def test_an_intervention_leaves_nothing_known_of_the_first_call(model, prompts):
    bank = bank_of(model, intervention=GuidanceInterval())
    piece = PathRecord(2)
    piece.warm(bank)
    sit(bank, prompts, range(2), [piece])
    assert bank.network.rows == 2 * price_in(bank, [piece]).forward == 2 * SEEDS * 2 * 2


@pytest.fixture(scope="module", params=["shared", "independent"])
def company(request, model, prompts):
    return request.param, gathered(model, prompts, PIECES, request.param)


@pytest.mark.parametrize("piece", PIECES, ids=NAMES)
def test_is_the_same_alone_and_in_company(model, prompts, company, piece):
    noise, whole = company
    assert_same(gathered(model, prompts, [piece], noise)[piece], whole[piece])


@pytest.mark.parametrize("piece", PIECES, ids=NAMES)
def test_says_why_it_lacks_what_a_model_or_prompt_has_not(piece):
    oracle = load_model("oracle:memorizer")
    oracle.has_uncond, oracle.guidance = False, "none"
    oracle.no_uncond = "one branch alone"
    bank = Bank(oracle, Recipe(scheduler="ddim", steps=STEPS, guidance=1.0), SEEDS)
    prompts = [Prompt("a", "target 0")]
    found = gather(sit(bank, prompts, [0], [piece]), [piece])
    if piece.uncond:
        with pytest.raises(MissingEvidence, match="one branch alone"):
            found[piece]
    elif piece.pair:
        with pytest.raises(MissingEvidence, match="no training image"):
            found[piece]
    elif piece.attention:
        with pytest.raises(MissingEvidence, match="no cross-attention"):
            found[piece]
    elif isinstance(piece, EarlierGap):
        with pytest.raises(MissingEvidence, match="--earlier"):
            found[piece]
    else:
        assert not isinstance(found[piece], Absent)


def test_what_was_not_declared_is_not_shown(model, prompts):
    found = gathered(model, prompts, [Text(), PathRecord(1)])
    part = found.only(Needs((Text(),)))
    assert part[Text()].texts == ("a cat", "the dog of a cat")
    with pytest.raises(NeedsError, match="not declared"):
        part[PathRecord(1)]


def test_a_path_that_failed_is_a_reason(prompts):
    oracle = load_model("oracle:memorizer")

    class Failing(type(oracle.denoiser)):
        def __call__(self, x, timestep, condition):
            raise RuntimeError("a fuse blew")

    oracle.denoiser = Failing(oracle.denoiser.means, oracle.denoiser.spreads)
    bank = Bank(oracle, Recipe(scheduler="ddim", steps=2), SEEDS)
    sitting = sit(bank, prompts, range(2), [PathRecord(1)])
    assert {outcome.status for outcome in sitting.outcomes} == {"error"}
    with pytest.raises(MissingEvidence, match="a fuse blew"):
        gather(sitting, [PathRecord(1)])[PathRecord(1)]


# A piece and a detector of one's own: one class each, nothing edited.


@dataclass(frozen=True)
class Loudness(Piece[Float[Tensor, "prompt seed"]]):
    """The norm of the conditional noise estimate for the noise, shown at a late call.

    Attributes:
        call: Which call.
    """

    call: int = 2

    def extra(self, calls: int) -> Price:
        """Return one evaluation."""
        return Price(forward=1)

    def gather(self, sitting: Sitting) -> Float[Tensor, "prompt seed"]:
        """Evaluate the prompt's branch."""
        bank = sitting.bank
        point = bank.point(self.call)

        def work(condition: Condition, samples: Tensor, seeds: Tensor) -> Tensor:
            with torch.no_grad():
                raw = bank.network(sitting.noise[samples], point.timestep, condition)
            return raw.flatten(1).norm(dim=1)

        return sitting.each(work)


@dataclass(frozen=True)
class Loud(Detector):
    """A score of that piece and of a path."""

    source: ClassVar[str] = "this test"

    @property
    def name(self) -> str:
        return "loud"

    @property
    def formula(self) -> str:
        return "||eps_c||"

    @property
    def needs(self) -> Needs:
        return Needs((Loudness(), PathRecord(1)))

    def score(self, evidence):
        return evidence[Loudness()].double().mean(dim=1) + 0 * evidence[PathRecord(1)].prompts


def test_a_piece_of_ones_own_is_gathered_with_the_others(model, prompts):
    found = gathered(model, prompts, [PathRecord(None), Loudness(2), Loudness(3), Text()])
    bank = bank_of(model)
    seeds = [bank.recipe.sample_seed("", 0, s) for s in range(SEEDS)]
    noise, _ = bank.noise(seeds)
    for call in (2, 3):
        with torch.no_grad():
            raw = model.denoiser(
                noise,
                model.make_scheduler("ddim", STEPS).timesteps[call],
                model.encode_prompts(["a cat"]).expand(SEEDS),
            )
        wanted = raw.flatten(1).norm(dim=1)
        torch.testing.assert_close(found[Loudness(call)][0], wanted, rtol=1e-5, atol=1e-5)


def test_a_detector_of_ones_own_is_scored_and_priced(model, prompts):
    scored = detect(model, prompts, detectors=[Loud(), "gap_norm"], seeds=SEEDS, steps=STEPS)
    assert (scored.of("loud") > 0).all()
    rows = [row for row in scored.table.to_pylist() if row["detector"] == "loud"]
    # Half of the first call is the bank's; the piece is one evaluation more.
    assert {row["network_calls"] for row in rows} == {2 * SEEDS}
    assert not Loud().first_step
