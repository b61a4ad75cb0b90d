"""Banks: what prompts share, computed once and equal to what each would compute."""

import pytest
import torch
from safetensors.torch import save_file

from mnemoscope.data.prompts import Prompt
from mnemoscope.errors import InputError, ModelError
from mnemoscope.evidence import Bank
from mnemoscope.evidence.bank import Counted, reference_mean
from mnemoscope.evidence.gather import sit
from mnemoscope.evidence.pieces.path import PathRecord
from mnemoscope.mitigations.guidance_interval import GuidanceInterval
from mnemoscope.models import load_model
from mnemoscope.sampling.recipe import Recipe
from tests.tiny import tiny_pipeline

SHARED = Recipe(scheduler="ddim", steps=5, noise="shared")


@pytest.fixture(scope="module")
def oracle():
    return load_model("oracle:memorizer")


@pytest.fixture(scope="module")
def model():
    return load_model(tiny_pipeline(), device="cpu")


def test_reference_mean_does_not_depend_on_batch(oracle):
    recipe = Recipe(scheduler="ddim", steps=5)
    means = [reference_mean(Bank(oracle, recipe, 2, batch)) for batch in (7, 32)]
    torch.testing.assert_close(*means, atol=5e-6, rtol=0)


def test_a_mean_that_is_not_finite_is_none(oracle):
    class Broken(type(oracle.denoiser)):
        def __call__(self, x, timestep, condition):
            return torch.full_like(x, torch.nan)

    broken = load_model("oracle:memorizer")
    broken.denoiser = Broken(oracle.denoiser.means, oracle.denoiser.spreads)
    assert reference_mean(Bank(broken, Recipe(scheduler="ddim", steps=2), 1)) is None


def test_the_shared_half_of_the_first_call_is_that_of_the_path(model):
    prompts = [Prompt("a", "a cat"), Prompt("b", "a dog")]
    known = Bank(model, SHARED, 3)
    one = sit(known, prompts, range(2), [PathRecord(1)])
    assert known.network.rows == 3 + 2 * 3
    whole = Bank(model, SHARED, 3)
    whole.recipe = Recipe(scheduler="ddim", steps=5, noise="independent")
    other = sit(whole, prompts, range(2), [PathRecord(1)])
    assert torch.equal(one.tape.v_u[:3], one.tape.v_u[3:])
    # Other noise, other predictions.
    assert not torch.allclose(one.tape.v_u, other.tape.v_u, atol=1e-3)
    blank = model.encode_blank().expand(6)
    raw = model.denoiser(one.start, known.points[0].timestep, blank).detach()
    v = known.points[0].level.alpha * raw - known.points[0].level.sigma * (
        (one.start - known.points[0].level.sigma * raw) / known.points[0].level.alpha
    )
    torch.testing.assert_close(one.tape.v_u[:, 0], v.flatten(1).float(), atol=5e-5, rtol=1e-5)


def test_nothing_is_shared_unless_noise_is(oracle):
    bank = Bank(oracle, Recipe(scheduler="ddim", steps=5), 2)
    with pytest.raises(InputError, match="do not share"):
        bank.unconditional_of_seeds(0)
    assert not bank.knows_start
    assert Bank(oracle, SHARED, 2).knows_start
    steered = Recipe(scheduler="ddim", steps=5, noise="shared", intervention=GuidanceInterval())
    assert not Bank(oracle, steered, 2).knows_start


def test_guidance_needs_an_unconditional_branch():
    model = load_model("oracle:memorizer")
    model.has_uncond, model.guidance, model.no_uncond = False, "none", "one branch alone"
    with pytest.raises(ModelError, match=r"one branch alone; give --guidance 1"):
        Bank(model, Recipe(scheduler="ddim", steps=5), 2)
    assert Bank(model, Recipe(scheduler="ddim", steps=5, guidance=1.0), 2).branches == 1
    steered = Recipe(guidance=1.0, intervention=GuidanceInterval())
    with pytest.raises(ModelError, match="combines two branches"):
        Bank(model, steered, 2)


@pytest.mark.parametrize(("options", "word"), [((0, None), "seeds 0"), ((1, 0), "batch 0")])
def test_numbers_out_of_range_are_refused(oracle, options, word):
    with pytest.raises(InputError, match=word):
        Bank(oracle, SHARED, *options)


def test_rows_are_counted_and_told(oracle):
    told = []
    counted = Counted(oracle.denoiser, told.append)
    x = torch.zeros(5, *oracle.latent_shape)
    out = counted(x, torch.tensor(500), oracle.encode_prompts(["target 0"]).expand(5))
    assert counted.rows == 5
    assert told == [5]
    assert torch.equal(
        out, oracle.denoiser(x, torch.tensor(500), oracle.encode_prompts(["target 0"] * 5))
    )
    assert counted.means is oracle.denoiser.means


def test_signs_are_signs_and_stay(oracle):
    one, again = (Bank(oracle, SHARED, 3).signs("curvature", 2) for _ in range(2))
    assert torch.equal(one, again)
    assert one.shape == (2, 3, *oracle.latent_shape)
    assert set(one.unique().tolist()) == {-1.0, 1.0}
    assert not torch.equal(one, Bank(oracle, SHARED, 3).signs("divergence", 2))


def test_given_noise_takes_the_place_of_what_is_drawn(oracle, tmp_path):
    prompts = [Prompt("a", "target 0"), Prompt("b", "target 1")]
    noise = torch.randn(3, *oracle.latent_shape, generator=torch.Generator().manual_seed(1))
    path = str(tmp_path / "noise.safetensors")
    save_file({"noise": noise}, path)
    given = Recipe(scheduler="ddim", steps=5, noise=path)
    bank = Bank(oracle, given, 2)
    found = sit(bank, prompts, range(2), [PathRecord(1)])
    assert torch.equal(found.noise, noise[:2].repeat(2, 1, 1, 1))
    assert torch.equal(bank.shared_noise(), noise[:2])
    assert bank.knows_start
    # What shared noise draws, given, is the same path.
    shared = Bank(oracle, SHARED, 2)
    save_file({"noise": shared.shared_noise()}, tmp_path / "drawn.safetensors")
    again = Bank(
        oracle, Recipe(scheduler="ddim", steps=5, noise=str(tmp_path / "drawn.safetensors")), 2
    )
    one, other = (sit(b, prompts, range(2), [PathRecord(1)]) for b in (shared, again))
    assert torch.equal(one.tape.v_c, other.tape.v_c)
    assert not torch.allclose(one.tape.v_c, found.tape.v_c, atol=1e-3)


def test_given_noise_is_known_by_its_content(oracle, tmp_path):
    keys = []
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        path = tmp_path / f"{name}.safetensors"
        save_file({"noise": torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))}, path)
        keys.append(Recipe(noise=str(path)).key)
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"noise": torch.zeros(1, 4, 8, 8)}, r"has the shape \(1, 4, 8, 8\); 2 seeds of"),
        ({"latents": torch.zeros(2, 4)}, r"holds latents \(2, 4\); expected a floating-point"),
        ({"noise": torch.full((2, 4), torch.nan)}, "not finite"),
    ],
)  # fmt: skip
def test_noise_that_fits_nothing_is_refused(oracle, tmp_path, tensors, told):
    path = tmp_path / "noise.safetensors"
    save_file(tensors, path)
    with pytest.raises(InputError, match=told):
        Bank(oracle, Recipe(scheduler="ddim", steps=5, noise=str(path)), 2)
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        Recipe(noise=str(tmp_path / "missing.safetensors"))
