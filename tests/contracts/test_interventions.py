"""Every mitigation keeps the contract, and one more takes one file."""

import atexit
import inspect
import shutil
import tempfile
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch
from PIL import Image

from mnemoscope import mitigations
from mnemoscope.core.record import Recorder
from mnemoscope.data.prompts import Prompt
from mnemoscope.errors import InputError
from mnemoscope.evidence import Bank, price_in
from mnemoscope.evidence.gather import sit
from mnemoscope.evidence.pieces.whole_path import WholePath
from mnemoscope.flows.study import Study
from mnemoscope.mitigations import all_mitigations, get_mitigation, parse
from mnemoscope.mitigations.base import Mitigation
from mnemoscope.mitigations.guidance_interval import GuidanceInterval
from mnemoscope.models import load_model
from mnemoscope.sampling.chain import Chain
from mnemoscope.sampling.hooks import Intervention
from mnemoscope.sampling.loop import Branches, generators_of, initial_noise, sample
from mnemoscope.sampling.recipe import Recipe
from tests.contracts.extension import installed
from tests.tiny import tiny_pipeline

KINDS = all_mitigations()
STEPS, SEEDS = 4, 2
PROMPTS = [Prompt("a", "a cat"), Prompt("b", "a dog on the moon")]


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def model(request):
    return _model(request.param)


@cache
def _model(kind):
    return load_model(tiny_pipeline(kind), device="cpu")


@cache
def pictures():
    """Return a folder of two pictures, kept as long as the tests run."""
    folder = Path(tempfile.mkdtemp(prefix="references-"))
    atexit.register(shutil.rmtree, folder)
    for seed in range(2):
        drawn = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(drawn).save(folder / f"{seed}.png")
    return str(folder)


def quick(name):
    """Return a method at its default strength, a search cut short, near to its references."""
    one = get_mitigation(name)()
    if "references" in one.settings:
        one = replace(one, references=pictures(), floor=-1.0)
    return replace(one, rounds=2) if "rounds" in one.settings else one


@cache
def sat(intervention, batch=4, kind="epsilon"):
    """Sample two prompts under an intervention; None is plain guidance."""
    recipe = Recipe(scheduler="ddim", steps=STEPS, intervention=intervention)
    bank = Bank(_model(kind), recipe, SEEDS, batch=batch)
    return bank, sit(bank, PROMPTS, range(2), [WholePath()])


def test_there_is_one():
    assert "guidance_interval" in KINDS


@pytest.mark.parametrize("name", KINDS)
def test_is_a_value_that_says_what_it_is(name):
    kind = get_mitigation(name)
    one = kind()
    assert is_dataclass(kind)
    assert one == kind()
    assert hash(one) == hash(kind())
    assert one.name == name
    assert one.source
    assert (kind.__doc__ or "").strip()
    assert "Formula" in (inspect.getmodule(kind).__doc__ or "")
    with pytest.raises(FrozenInstanceError):
        one.anything = 1


@pytest.mark.parametrize("name", KINDS)
def test_is_read_as_it_is_printed(name):
    one = get_mitigation(name)()
    assert parse(str(one)) == one
    assert parse(name) == one
    assert Study.of_options({"intervention": str(one)}).intervention == one
    assert set(one.settings) == {f.name for f in fields(one)}


@pytest.mark.parametrize("name", KINDS)
def test_numbers_that_mean_nothing_are_refused(name):
    """No number a setting takes may be NaN or beyond all bounds."""
    kind = get_mitigation(name)
    senseless = {float: (float("nan"), -1e9), int: (-(10**9),)}
    for setting in fields(kind):
        for value in senseless.get(setting.type, ()):
            with pytest.raises(InputError):
                kind(**{setting.name: value})


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", KINDS)
def test_costs_what_it_says_and_runs(name, kind):
    one = quick(name)
    bank, sitting = sat(one, kind=kind)
    assert sitting.ok.all()
    assert torch.isfinite(sitting.final).all()
    rows = 2 + len(one.branches_asked)
    assert bank.branches == rows
    path = 2 * SEEDS * STEPS * rows
    before = sum(outcome.before for outcome in sitting.outcomes)
    # A gradient is counted as two calls and evaluates no row.
    assert path <= bank.network.rows <= path + before
    assert before <= 2 * SEEDS * one.calls_before
    assert 2 * price_in(bank, [WholePath()]).forward == path + 2 * SEEDS * one.calls_before


def test_shared_noise_is_priced_and_sampled_alike():
    recipe = Recipe(scheduler="ddim", steps=STEPS, noise="shared", intervention=quick("guard"))
    bank = Bank(_model("epsilon"), recipe, SEEDS)
    sitting = sit(bank, PROMPTS, range(2), [WholePath()])
    assert torch.equal(sitting.noise[:SEEDS], sitting.noise[SEEDS:])
    assert bank.network.rows == 2 * price_in(bank, [WholePath()]).forward


@pytest.mark.parametrize("name", KINDS)
def test_its_strength_is_a_number_that_is_explained(name):
    kind = get_mitigation(name)
    assert issubclass(kind, Mitigation)
    assert fields(kind)[0].name == "strength"
    assert "strength:" in (kind.__doc__ or "")
    assert kind().strength in kind.strengths
    assert sorted(set(kind.strengths)) == list(kind.strengths)
    assert all(kind().at(strength).strength == strength for strength in kind.strengths)
    assert kind().at(kind.strengths[0]).settings.keys() == kind().settings.keys()


NEUTRAL = [name for name, kind in KINDS.items() if kind.neutral is not None]


@pytest.mark.parametrize("name", NEUTRAL)
def test_it_is_plain_guidance_at_its_neutral_strength(name):
    still = quick(name).at(get_mitigation(name).neutral)
    assert torch.equal(sat(still)[1].final, sat(None)[1].final)


@pytest.mark.parametrize("name", KINDS)
def test_it_acts_at_its_strongest_and_draws_nothing_of_the_global_generator(name):
    state = torch.get_rng_state()
    strong = sat(quick(name).at(get_mitigation(name).strengths[-1]))[1]
    assert torch.equal(state, torch.get_rng_state())
    assert float((strong.final - sat(None)[1].final).abs().max()) > 1e-4


@pytest.mark.parametrize("name", KINDS)
def test_a_batch_is_its_samples_alone(name):
    one = quick(name)
    finals = [sat(one, batch=batch)[1].final for batch in (1, 4)]
    # The first step of Adam is a sign, which rounding turns where a gradient is next to nothing.
    close = 2e-3 if "rounds" in one.settings else 1e-4
    torch.testing.assert_close(*finals, atol=close, rtol=close)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("guidance_intervall", "Did you mean 'guidance_interval'"),
        ("", "expected a name"),
        ("guidance_interval(", "expected a name"),
        ("guidance_interval(stop)", "expected setting=value, got 'stop'"),
        ("guidance_interval(strenght=0.2)", "Did you mean 'strength'"),
        ("guidance_interval(strength=early)", "strength must be float, got 'early'"),
        ("guard(mass=maybe)", "mass must be bool, got 'maybe'"),
        ("guidance_interval+", "expected a name"),
        ("guidance_interval(strength=0.9,stop=0.1)", "strength < stop"),
        ("guidance_interval(stop=0.1,stop=0.2)", "stop is given twice"),
    ],
)
def test_what_cannot_be_read_is_told(text, word):
    with pytest.raises(InputError) as told:
        parse(text)
    assert word in str(told.value)


def test_several_make_a_chain():
    one = parse("embedding_noise(strength=1e+0) + guidance_interval")
    assert isinstance(one, Chain)
    assert str(one) == "embedding_noise(strength=1.0)+guidance_interval(strength=0.2,stop=1.0)"
    assert parse(str(one)) == one
    assert Study.of_options({"intervention": str(one)}).intervention == one
    assert Recipe(intervention=one).row["intervention"] == str(one)


def test_settings_are_read_with_blanks():
    assert parse(" guidance_interval( strength = 0.25 , stop=0.5 ) ") == GuidanceInterval(0.25, 0.5)
    assert parse("guidance_interval()") == GuidanceInterval()


def test_guidance_interval_guides_within_and_nowhere_else(model):
    def path(intervention):
        generators, recorder = generators_of([0]), Recorder()
        sample(
            model.denoiser,
            model.make_scheduler("ddim", STEPS),
            initial_noise(generators, model.latent_shape),
            Branches(model.encode_prompts(["a cat"]), model.encode_blank(), ("a cat",)),
            6.0,
            generators,
            observers=[recorder],
            intervention=intervention,
        )
        return recorder.trajectory()

    tape = path(GuidanceInterval(strength=0.25, stop=0.75))
    for call in range(STEPS):
        guided = tape.v_u[:, call] + 6.0 * (tape.v_c[:, call] - tape.v_u[:, call])
        # Calls 1 and 2 of four stand at 0.25 and 0.5.
        wanted = guided if call in (1, 2) else tape.v_c[:, call]
        torch.testing.assert_close(tape.v_g[:, call], wanted, atol=2e-5, rtol=1e-4)
    assert torch.equal(path(GuidanceInterval(0.0, 1.0)).v_g, path(None).v_g)


OWN = dedent(
    '''
    r"""Guidance halved, to see whether it matters.

    Formula::

        guided = u + (g / strength)·(c - u)
    """

    from dataclasses import dataclass
    from typing import ClassVar

    from mnemoscope.mitigations.base import Mitigation


    @dataclass(frozen=True)
    class Weaker(Mitigation):
        """Guidance divided by a number."""

        name: ClassVar[str] = "weaker"
        source: ClassVar[str] = "this test"
        strengths: ClassVar[tuple[float, ...]] = (2.0, 4.0)
        strength: float = 2.0

        def guide(self, step):
            return step.guided(step.guidance / self.strength)
    '''
)


@pytest.fixture
def own(tmp_path):
    mitigations._known.cache_clear()
    with installed(tmp_path, "weaker_guidance", OWN, "mnemoscope.mitigations"):
        yield
    mitigations._known.cache_clear()


def test_one_more_takes_one_file(own, model):
    assert "weaker" in all_mitigations()
    one = parse("weaker(strength=4)")
    assert isinstance(one, Intervention)
    assert str(one) == "weaker(strength=4.0)"
    recipe = Recipe(scheduler="ddim", steps=STEPS, guidance=8.0, intervention=one)
    plain = Recipe(scheduler="ddim", steps=STEPS, guidance=2.0)
    prompts = [Prompt("a", "a cat")]
    finals = [
        sit(Bank(model, r, SEEDS), prompts, [0], [WholePath()]).final for r in (recipe, plain)
    ]
    torch.testing.assert_close(*finals, atol=1e-5, rtol=1e-5)


def test_it_is_gone_with_its_folder():
    assert "weaker" not in all_mitigations()
