"""Every registered detector keeps the contract, on a tiny random pipeline."""

import dataclasses

import numpy as np
import pytest
import torch

from mnemoscope.data.prompts import Prompt
from mnemoscope.detectors import all_detectors, get_detector
from mnemoscope.errors import InputError, NeedsError
from mnemoscope.evidence import Bank, Needs, Price, gather, price
from mnemoscope.evidence.gather import sit
from mnemoscope.evidence.pieces.earlier_gap import EarlierGap
from mnemoscope.evidence.pieces.path import PathRecord
from mnemoscope.evidence.pieces.text import Text
from mnemoscope.flows.detect import detect
from mnemoscope.flows.scores import choose
from mnemoscope.models import load_model
from mnemoscope.sampling.recipe import Recipe
from tests.sscd import sscd_network
from tests.tiny import tiny_pipeline

NAMES = [detector.name for detector in all_detectors()]
QUICK = [detector.name for detector in all_detectors() if not detector.dear]
STEPS, SEEDS = 4, 3


def close(found, wanted):
    # Networks agree across row orders to about 5e-6; derivatives amplify it.
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-6)


@pytest.fixture(scope="module")
def model():
    return load_model(tiny_pipeline(), device="cpu")


@pytest.fixture(scope="module")
def earlier():
    """An earlier checkpoint: the same network with other weights."""
    return load_model(tiny_pipeline(seed=1), device="cpu")


@pytest.fixture(scope="module", autouse=True)
def sscd(tmp_path_factory):
    with sscd_network(tmp_path_factory.mktemp("sscd")):
        yield


@pytest.fixture(scope="module")
def prompts():
    pictures = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    texts = ["a cat", "the dog of a cat", "mice", "a cat on the moon"]
    return [
        Prompt(f"q{at}", text, images=(picture,))
        for at, (text, picture) in enumerate(zip(texts, pictures, strict=True))
    ]


def run(model, prompts, detectors, **options):
    options = {"seeds": SEEDS, "steps": STEPS} | options
    return detect(model, prompts, detectors=detectors, **options)


@pytest.fixture(scope="module")
def whole(model, earlier, prompts):
    return run(model, prompts, NAMES, earlier=earlier)


@pytest.mark.parametrize("name", NAMES)
def test_scores_every_prompt(whole, name):
    scores = whole.of(name)
    assert scores.shape == (4,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all(), whole.table.to_pylist()


@pytest.mark.parametrize("name", NAMES)
def test_evidence_gives_one_double_a_prompt(model, earlier, prompts, name):
    detector = get_detector(name)
    pieces = detector.needs.pieces
    recipe = Recipe(scheduler="ddim", steps=STEPS, noise="shared")
    bank = Bank(model, recipe, SEEDS, earlier=earlier)
    for piece in pieces:
        piece.warm(bank)
    bank.unconditional_of_seeds(0)
    before = bank.network.rows
    evidence = gather(sit(bank, prompts, range(4), pieces), pieces)
    scores = detector.score(evidence.only(detector.needs))
    assert scores.shape == (4,)
    assert scores.dtype == torch.float64
    asked = price(pieces, calls=STEPS, seeds=SEEDS)
    assert bank.network.rows - before == 4 * asked.forward


def test_order_does_not_matter(model, earlier, prompts, whole):
    turned = run(model, prompts[::-1], QUICK, earlier=earlier)
    for name in QUICK:
        close(turned.of(name)[::-1], whole.of(name))


def test_batches_do_not_matter(model, earlier, prompts, whole):
    # Two rows a batch cut through the seeds of a prompt.
    cut = run(model, prompts, QUICK, earlier=earlier, batch=2)
    for name in QUICK:
        close(cut.of(name), whole.of(name))


# One score for each combination of pieces: what is gathered does not depend on who else asks.
ALONE = {detector.needs: detector.name for detector in all_detectors()}


@pytest.mark.parametrize("name", sorted(ALONE.values()))
def test_alone_or_in_company(model, earlier, prompts, whole, name):
    alone = run(model, prompts[:1], [name], earlier=earlier).of(name)[0]
    if name != "word_rarity":  # it is about the list
        close(alone, whole.of(name)[0])


@pytest.mark.parametrize("name", NAMES)
def test_undeclared_evidence_is_refused(model, prompts, name):
    detector = get_detector(name)
    bank = Bank(model, Recipe(scheduler="ddim", steps=STEPS), SEEDS)
    sitting = sit(bank, prompts[:1], [0], [Text()])
    evidence = gather(sitting, [Text()]).only(Needs(()))
    with pytest.raises(NeedsError, match="not declared"):
        detector.score(evidence)


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_is(name):
    detector = get_detector(name)
    assert detector.formula
    assert detector.source
    assert (type(detector).__doc__ or "").strip()
    assert dataclasses.is_dataclass(detector)
    assert isinstance(detector.needs, Needs)
    hash(detector.needs)
    module = __import__(type(detector).__module__, fromlist=["x"])
    assert "Formula" in module.__doc__
    assert detector.kind == ("pair" if any(p.pair for p in detector.needs.pieces) else "prompt")


def test_trajectory_detectors_share_one_path():
    alone = price([PathRecord(None)], calls=50, seeds=4).calls
    path = [
        d
        for d in all_detectors()
        if d.kind == "prompt"
        and any(p.calls is None for p in d.needs.pieces)
        # Those apart that are asked for by name, or take a second model.
        and not d.dear
        and not any(isinstance(p, EarlierGap) for p in d.needs.pieces)
    ]
    forward = [d for d in path if price(d.needs.pieces, calls=50, seeds=4).calls == alone]
    assert len(forward) >= 6
    union = price([p for d in path for p in d.needs.pieces], calls=50, seeds=4)
    assert union.calls <= 1.15 * alone
    assert price([p for d in forward for p in d.needs.pieces], calls=50, seeds=4).calls == alone


def test_first_step_scores_cost_one_call_a_seed(model, prompts):
    chosen = choose(["first-step"])
    assert {"gap_norm", "consensus_sharpness", "noise_similarity"} <= {d.name for d in chosen}
    scores = run(model, prompts, chosen)
    # The bank's unconditional branch is computed once, the conditional one for every prompt.
    assert scores.network_calls == SEEDS + 4 * SEEDS


def test_unknown_detector_gets_a_suggestion(model):
    with pytest.raises(InputError, match="gap_norm"):
        detect(model, ["a"], detectors=["gap_nrm"])


def test_a_price_is_forward_tangent_and_twice_backward():
    assert Price(3, 2, 5).calls == 15
    assert Price(1, 2, 3) + Price(4, 5, 6) * 2 == Price(9, 12, 15)
    paths = [PathRecord(1), PathRecord(3), Text()]
    assert price(paths, calls=50, seeds=2) == Price(forward=10)
    assert price(paths, calls=50, seeds=2, shared=False) == Price(forward=12)
    assert price(paths, calls=50, seeds=2, branches=3) == Price(forward=16)
    assert price([PathRecord(None)], calls=50, seeds=1, branches=1) == Price(forward=50)
