"""Scores of a given image tell a memorizer from a model that ignores captions, and nothing else."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mnemoscope.core.level import Level
from mnemoscope.data.prompts import Prompt
from mnemoscope.detectors import get_detector
from mnemoscope.detectors.critical_scale import midpoint
from mnemoscope.errors import InputError
from mnemoscope.evidence import Bank, Evidence
from mnemoscope.evidence.pieces.end_attention import EndAttention
from mnemoscope.evidence.pieces.reduced_captions import thirds
from mnemoscope.evidence.pieces.sample_error import SampleError
from mnemoscope.flows.detect import detect
from mnemoscope.flows.scores import choose
from mnemoscope.models import load_model
from mnemoscope.models.oracle import MixtureDenoiser, Oracle, gaussian
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.recipe import Recipe
from tests.sscd import sscd_network
from tests.tiny import tiny_pipeline

IMAGE = ("sima", "pia", "pia:normal", "secmi")
CAPTION = ("clid", "cfg_norm", "score_norm", "noised_gap")
FOOLED = ("secmi", "cfg_norm", "score_norm", "noised_gap")
"""Scores that a memorizer gives to any image under a memorized caption."""
OPTIONS = {"seeds": 2, "steps": 5}


@pytest.fixture(scope="module")
def oracle():
    return load_model("oracle:memorizer")


def picture(oracle, k):
    return ((oracle.denoiser.means[k] + 1) / 2).float()


def auc(high, low):
    return float(np.mean(high[:, None] > low[None]))


@pytest.fixture(scope="module")
def scores(oracle):
    """Own images under memorized captions, under strange ones, and images of others."""
    own = [Prompt(f"own{k}", f"target {k}", images=(picture(oracle, k),)) for k in range(4)]
    strange = [Prompt(f"new{k}", f"never seen {k}", images=own[k].images) for k in range(4)]
    swapped = [Prompt(f"swap{k}", f"target {k}", images=own[(k + 1) % 4].images) for k in range(4)]
    return detect(oracle, own + strange + swapped, detectors=[*IMAGE, *CAPTION], **OPTIONS)


@pytest.mark.parametrize("name", [*IMAGE, *CAPTION])
def test_memorized_pairs_exceed_the_same_images_under_strange_captions(scores, name):
    own, strange, _ = scores.of(name).reshape(3, 4)
    assert auc(own, strange) == 1


def test_few_levels_are_those_of_the_whole_loss_without_the_empty_prompt(oracle):
    """A path of five calls has no more than five levels, for either."""
    # Under captions that it does not know, the memorizer is not exact.
    held = [Prompt(f"new{k}", f"never seen {k}", images=(picture(oracle, k),)) for k in range(3)]
    names = ["denoising_loss", "denoising_loss:5"]
    found = detect(oracle, [*held, Prompt("none", "target 3")], detectors=names, **OPTIONS)
    # One comes by way of the Gram matrix, in which squares of its vectors cancel.
    np.testing.assert_allclose(found.of(names[1]), found.of(names[0]), rtol=1e-5)
    assert np.isnan(found.of(names[1])).tolist() == [False, False, False, True]
    calls = found.table["network_calls"].to_pylist()
    assert calls[:2] == [2 * 2 * 5, 2 * 5]


@pytest.mark.parametrize("name", sorted({*IMAGE, *CAPTION} - set(FOOLED)))
def test_memorized_pairs_exceed_memorized_captions_with_another_image(scores, name):
    own, _, swapped = scores.of(name).reshape(3, 4)
    assert auc(own, swapped) == 1


@pytest.mark.parametrize("name", FOOLED)
def test_some_scores_do_not_tell_which_image(scores, name):
    _, strange, swapped = scores.of(name).reshape(3, 4)
    assert auc(swapped, strange) == 1


@pytest.fixture(scope="module")
def null():
    """The same under a model that ignores captions."""
    model = gaussian(torch.zeros(3, 8, 8), 0.5)
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
    prompts = [Prompt(f"p{k}", f"caption {k} of it", images=(image,)) for k in range(2)]
    return detect(model, prompts, detectors=[*IMAGE, *CAPTION], **OPTIONS)


@pytest.mark.parametrize("name", IMAGE)
def test_a_model_that_ignores_captions_gives_an_image_one_score(null, name):
    one, other = null.of(name)
    assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("name", ["clid", "cfg_norm", "noised_gap"])
def test_a_model_that_ignores_captions_gives_none_to_any_pair(null, name):
    np.testing.assert_allclose(null.of(name), 0, atol=1e-4)


def test_two_checkpoints_differ_where_the_later_has_memorized(oracle):
    names = ["curvature_difference:earlier", "curvature_difference:proxy:earlier"]
    before = gaussian(oracle.denoiser.means[-1], float(oracle.denoiser.spreads[-1]))
    texts = ["target 0", "target 1", "never seen", "neither"]
    found = detect(oracle, texts, detectors=names, earlier=before, **OPTIONS)
    same = detect(oracle, texts, detectors=names, earlier=oracle, **OPTIONS)
    for name in names:
        memorized, others = found.of(name).reshape(2, 2)
        assert auc(memorized, others) == 1
        np.testing.assert_allclose(others, 0, atol=1e-6)
        np.testing.assert_allclose(same.of(name), 0, atol=1e-9)


def test_without_an_earlier_checkpoint_there_is_a_reason(oracle):
    name = "curvature_difference:proxy:earlier"
    row = detect(oracle, ["target 0"], detectors=[name], **OPTIONS).table.to_pylist()[0]
    assert "--earlier" in row["reason"]


def test_an_earlier_checkpoint_is_one_of_the_same_network(oracle):
    other = load_model(tiny_pipeline(), device="cpu")
    with pytest.raises(InputError, match="same network"):
        Bank(oracle, Recipe(scheduler="ddim", steps=2), 1, earlier=other)


class Basins(MixtureDenoiser):
    """A point under a known caption, a Gaussian without one; differentiable in forward mode.

    eps_c = (x - alpha·m) / sigma        eps_u = sigma·x / (alpha²·s² + sigma²)
    """

    def __init__(self):
        super().__init__(torch.zeros(2, 3, 8, 8), torch.tensor([0.0, 0.5]))

    def __call__(self, x: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        level = self.level(timestep)
        alpha, sigma = level.alpha.to(x), level.sigma.to(x)
        known = (condition.parts["log_weights"].argmax(dim=1) == 0).reshape(-1, 1, 1, 1)
        blank = sigma * x / (alpha**2 * 0.25 + sigma**2)
        return torch.where(known, x / sigma, blank)


def test_cycled_samples_of_a_basin_have_the_divergence_of_a_point():
    rows = torch.full((2, 2), -torch.inf).fill_diagonal_(0)
    network = Basins()
    model = Oracle("oracle:basins", network, {"known": rows[0], "": rows[1]}, [1])
    names = ["cyclic_divergence:0", "cyclic_divergence:4"]
    found = detect(model, ["known", "never seen"], detectors=names, **OPTIONS)
    level = network.level(torch.tensor(1))
    variance = level.alpha**2 * 0.25 + level.sigma**2
    wanted = float(model.d * (1 / level.sigma - level.sigma / variance) / level.sigma)
    for name in names:
        assert found.of(name)[0] == pytest.approx(wanted, rel=1e-4)
        assert found.of(name)[1] == pytest.approx(0, abs=1e-2)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_seeds_agree_by_sscd_where_they_are_one_picture(oracle, tmp_path):
    name = "seed_agreement:sscd"
    with sscd_network(tmp_path):
        found = detect(oracle, ["target 0", "never seen"], detectors=[name], seeds=3, steps=5)
    one, none = found.of(name)
    # The last level is not quite clean, so some noise is left on the picture.
    assert one == pytest.approx(1, abs=0.01)
    assert none < one - 0.01


def test_without_sscd_there_is_a_reason(oracle, monkeypatch):
    monkeypatch.setenv("MNEMOSCOPE_SSCD", "nowhere.pt")
    name = "seed_agreement:sscd"
    row = detect(oracle, ["target 0"], detectors=[name], seeds=2, steps=3).table.to_pylist()[0]
    assert "nowhere.pt" in row["reason"]


def test_local_severity_looks_where_the_end_token_is_bright():
    mask = torch.zeros(1, 2, 4, 4)
    mask[:, :, :2] = 0.3
    copied, elsewhere = torch.zeros(1, 2, 4, 4).double(), torch.zeros(1, 2, 4, 4).double()
    copied[:, :, 2:], elsewhere[:, :, :2] = 0.09, 0.09
    score = get_detector("local_severity").score
    found = [
        float(score(Evidence(1, 2, {EndAttention(): mask, SampleError(): error}))[0])
        for error in (copied, elsewhere)
    ]
    assert found == pytest.approx([0.0, -0.3])


def test_midpoint_lies_half_way_between_levels():
    levels = torch.tensor([-2.0, -1.0, 0.5]).double()
    distance = torch.tensor([[0.0, 0.2, 0.3], [0.2, 0.0, 0.0], [0.0, 0.0, 0.0], [torch.nan] * 3])
    found = midpoint(levels, distance.double()[:, :, None], 0.1)[:, 0]
    torch.testing.assert_close(found[:3], torch.tensor([-1.5, -2.0, 0.5]).double())
    assert torch.isnan(found[3])


def test_thirds_hold_every_word_once():
    for text in ("", "one", "one two", "a b c d e f g"):
        assert " ".join(part for part in thirds(text) if part) == text


def test_dear_scores_are_asked_for_by_name():
    quick = {detector.name for detector in choose(["all"])}
    dear = {"critical_scale:local", "cyclic_divergence:4"}
    assert not dear & quick
    assert {d.name for d in choose(sorted(dear))} == dear
    assert not {"seed_agreement:sscd"} & {d.name for d in choose(["free"])}


def test_points_of_training_have_their_own_levels(oracle):
    bank = Bank(oracle, Recipe(scheduler="ddim", steps=3), 1)
    for asked, timestep in ((0, 0), (137, 137), (-1, 999)):
        point = bank.trained(asked)
        wanted = oracle.denoiser.level(torch.tensor(timestep))
        assert int(point.timestep) == timestep
        torch.testing.assert_close(
            Level(*(part.double() for part in point.level)), wanted, rtol=1e-5, atol=1e-6
        )
    ratios = [float(p.level.sigma / p.level.alpha) for p in bank.trained_along(24)]
    assert np.diff(np.log(ratios)) == pytest.approx(0.255, abs=0.12)
