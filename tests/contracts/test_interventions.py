"""Every mitigation keeps the contract, and one more takes one file."""

import inspect
from dataclasses import FrozenInstanceError, fields, is_dataclass
from textwrap import dedent

import pytest
import torch

from mnemoscope import mitigations
from mnemoscope.core.record import Recorder
from mnemoscope.data.prompts import Prompt
from mnemoscope.errors import InputError
from mnemoscope.evidence import Bank, price_in
from mnemoscope.evidence.gather import sit
from mnemoscope.evidence.pieces.whole_path import WholePath
from mnemoscope.flows.study import Study
from mnemoscope.mitigations import all_mitigations, get_mitigation, parse
from mnemoscope.mitigations.guidance_interval import GuidanceInterval
from mnemoscope.models import load_model
from mnemoscope.sampling.hooks import Intervention
from mnemoscope.sampling.loop import Branches, generators_of, initial_noise, sample
from mnemoscope.sampling.recipe import Recipe
from tests.contracts.extension import installed
from tests.tiny import tiny_pipeline

KINDS = all_mitigations()
STEPS, SEEDS = 5, 2


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def model(request):
    return load_model(tiny_pipeline(request.param), device="cpu")


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
    numbers = [f.name for f in fields(kind) if f.type in (float, int)]
    for setting in numbers:
        for value in (float("nan"), -1e9):
            with pytest.raises(InputError):
                kind(**{setting: value})


@pytest.mark.parametrize("noise", ["shared", "independent"])
@pytest.mark.parametrize("name", KINDS)
def test_costs_what_it_says_and_runs(model, name, noise):
    recipe = Recipe(scheduler="ddim", steps=STEPS, noise=noise, intervention=get_mitigation(name)())
    bank = Bank(model, recipe, SEEDS)
    prompts = [Prompt("a", "a cat"), Prompt("b", "a dog on the moon")]
    sitting = sit(bank, prompts, range(2), [WholePath()])
    assert sitting.ok.all()
    assert torch.isfinite(sitting.final).all()
    rows = 2 + len(recipe.intervention.branches_asked)
    assert bank.branches == rows
    assert bank.network.rows == 2 * SEEDS * STEPS * rows
    assert bank.network.rows == 2 * price_in(bank, [WholePath()]).forward


@pytest.mark.parametrize("name", KINDS)
def test_a_batch_is_its_samples_alone(model, name):
    recipe = Recipe(scheduler="ddim", steps=STEPS, intervention=get_mitigation(name)())
    prompts = [Prompt("a", "a cat"), Prompt("b", "a dog on the moon")]
    finals = [
        sit(Bank(model, recipe, SEEDS, batch=batch), prompts, range(2), [WholePath()]).final
        for batch in (1, 4)
    ]
    torch.testing.assert_close(*finals, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("guidance_intervall", "Did you mean 'guidance_interval'"),
        ("", "expected a name"),
        ("guidance_interval(", "expected a name"),
        ("guidance_interval(start)", "expected setting=value, got 'start'"),
        ("guidance_interval(strat=0.2)", "Did you mean 'start'"),
        ("guidance_interval(start=early)", "start must be float, got 'early'"),
        ("guidance_interval(start=0.9,stop=0.1)", "start < stop"),
        ("guidance_interval(start=0.1,start=0.2)", "start is given twice"),
    ],
)
def test_what_cannot_be_read_is_told(text, word):
    with pytest.raises(InputError) as told:
        parse(text)
    assert word in str(told.value)


def test_settings_are_read_with_blanks():
    assert parse(" guidance_interval( start = 0.25 , stop=0.5 ) ") == GuidanceInterval(0.25, 0.5)
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

    tape = path(GuidanceInterval(start=0.4, stop=0.8))
    for call in range(STEPS):
        guided = tape.v_u[:, call] + 6.0 * (tape.v_c[:, call] - tape.v_u[:, call])
        # Calls 2 and 3 of five stand at 0.4 and 0.6.
        wanted = guided if call in (2, 3) else tape.v_c[:, call]
        torch.testing.assert_close(tape.v_g[:, call], wanted, atol=2e-5, rtol=1e-4)
    assert torch.equal(path(GuidanceInterval(0.0, 1.0)).v_g, path(None).v_g)


OWN = dedent(
    '''
    r"""Guidance halved, to see whether it matters.

    Formula::

        guided = u + (g / by)·(c - u)
    """

    from dataclasses import dataclass
    from typing import ClassVar

    from mnemoscope.errors import InputError
    from mnemoscope.sampling.hooks import Intervention


    @dataclass(frozen=True)
    class Weaker(Intervention):
        """Guidance divided by a number."""

        name: ClassVar[str] = "weaker"
        source: ClassVar[str] = "this test"
        by: float = 2.0

        def __post_init__(self):
            if not 0 < self.by < 1e6:
                raise InputError(f"by {self.by} given; expected a positive number")

        def guide(self, step):
            return step.guided(step.guidance / self.by)
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
    one = parse("weaker(by=4)")
    assert isinstance(one, Intervention)
    assert str(one) == "weaker(by=4.0)"
    recipe = Recipe(scheduler="ddim", steps=STEPS, guidance=8.0, intervention=one)
    plain = Recipe(scheduler="ddim", steps=STEPS, guidance=2.0)
    prompts = [Prompt("a", "a cat")]
    finals = [
        sit(Bank(model, r, SEEDS), prompts, [0], [WholePath()]).final for r in (recipe, plain)
    ]
    torch.testing.assert_close(*finals, atol=1e-5, rtol=1e-5)


def test_it_is_gone_with_its_folder():
    assert "weaker" not in all_mitigations()
