"""Scores against their definitions, written out."""

from itertools import combinations

import numpy as np
import pytest
import torch

from mnemoscope.core.level import Level
from mnemoscope.core.predict import combine
from mnemoscope.core.record import Recorder
from mnemoscope.detectors import all_detectors
from mnemoscope.detectors.attention_entropy import terms
from mnemoscope.detectors.base import pairs_mean, radial
from mnemoscope.detectors.critical_scale import crossing
from mnemoscope.detectors.exchange import image_entering, noise_shed, own_noise
from mnemoscope.detectors.generate_and_cluster import largest_clique, tiled
from mnemoscope.detectors.noise_similarity import ms_ssim
from mnemoscope.evidence import MissingEvidence
from mnemoscope.evidence.values import LatentMaps
from mnemoscope.flows.detect import detect
from mnemoscope.models import load_model
from mnemoscope.sampling.loop import Branches, generators_of, initial_noise, points_of, sample
from mnemoscope.sampling.probes import gap
from mnemoscope.sampling.recipe import seed_of
from tests.tiny import tiny_pipeline

PROMPTS = ["a cat", "a dog on the moon"]
SEEDS, STEPS, G = 3, 12, 7.5


@pytest.fixture(scope="module")
def model():
    return load_model(tiny_pipeline("v_prediction"), device="cpu")


@pytest.fixture(scope="module")
def oracle():
    return load_model("oracle:memorizer")


@pytest.fixture(scope="module")
def scores(model):
    names = [
        "gap_norm", "gap_norm:10", "gap_norm:all", "gap_rms", "dsm:0", "update_band",
        "consensus_energy", "curvature_difference:proxy",
    ]  # fmt: skip
    return detect(model, PROMPTS, detectors=names, seeds=SEEDS, steps=STEPS, guidance=G)


@pytest.fixture(scope="module")
def tapes(model):
    """The same paths by the plain loop, without a noise bank, one prompt at a time."""
    scheduler = model.make_scheduler("ddim", STEPS)
    found = []
    for prompt in PROMPTS:
        generators = generators_of([seed_of(0, "bank", s) for s in range(SEEDS)])
        noise = initial_noise(generators, model.latent_shape)
        recorder = Recorder()
        final = sample(
            model.denoiser,
            scheduler,
            noise,
            Branches(model.encode_prompts([prompt] * SEEDS), model.encode_prompts([""] * SEEDS)),
            G,
            generators,
            observers=[recorder],
        )
        found.append(recorder.trajectory(final.latents))
    return found


def of_tapes(tapes, formula):
    return np.array([float(formula(tape)) for tape in tapes])


def gaps(tape):
    return (tape.eps("c") - tape.eps("u")).double().norm(dim=2)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("gap_norm", lambda t: gaps(t)[:, 0].mean()),
        ("gap_norm:10", lambda t: gaps(t)[:, :10].mean()),
        ("gap_norm:all", lambda t: gaps(t).mean()),
        ("gap_rms", lambda t: gaps(t)[:, 0].mean() / t.x.shape[2] ** 0.5),
        ("dsm:0", lambda t: (t.eps("c")[:, 1] - t.eps("c")[:, 0]).double().square().sum(1).mean()),
        (
            "curvature_difference:proxy",
            lambda t: (
                (t.eps("c") - t.eps("u"))[:, -1].double().square().sum(1).mean()
                / 64
                / t.level.sigma[-1] ** 2
            ),
        ),
    ],
)
def test_score_is_its_definition_on_a_plain_path(scores, tapes, name, formula):
    # The bank splits the first call's batch in two; networks then agree to about 5e-6.
    np.testing.assert_allclose(scores.of(name), of_tapes(tapes, formula), rtol=1e-4)


def test_gap_norm_is_the_definition_to_one_in_a_million(oracle):
    point = points_of(oracle.make_scheduler("ddim", 5))[0]
    noise = initial_noise(
        generators_of([seed_of(0, "bank", s) for s in range(2)]), oracle.latent_shape
    )
    cond, uncond = oracle.encode_prompts(["target 3"] * 2), oracle.encode_prompts([""] * 2)
    wanted = gap(oracle.denoiser, noise, point, cond, uncond).flatten(1).double().norm(dim=1).mean()
    found = detect(oracle, ["target 3"], detectors=["gap_norm"], seeds=2, steps=5).of("gap_norm")
    assert found[0] == pytest.approx(float(wanted), rel=1e-6)


def test_first_step_scores_do_not_depend_on_guidance_but_confidence_does(model):
    quick = [d.name for d in all_detectors() if d.first_step]
    names = [*quick, "confidence"]
    low, high = (
        detect(model, PROMPTS, detectors=names, seeds=SEEDS, steps=STEPS, guidance=g)
        for g in (1.0, 7.5)
    )
    moved = {n for n in names if not np.allclose(low.of(n), high.of(n), rtol=1e-4, equal_nan=True)}
    assert moved == {"confidence"}


def test_energy_at_pure_noise_is_the_explained_variance_of_a_perfect_memorizer(oracle):
    scored = detect(oracle, ["target 0", "never seen"], detectors=["consensus_energy"], seeds=8)
    target, mean = oracle.denoiser.means[0].flatten(), oracle.denoiser.means[:-1].mean(0).flatten()
    assert scored.of("consensus_energy")[0] == pytest.approx(
        float((target - mean).square().mean()), rel=0.1
    )


def test_exchange_counts_the_variance_that_a_caption_takes_away(oracle):
    names = ["exchange", "exchange:image", "exchange:noise"]
    scored = detect(oracle, ["target 0", "never seen"], detectors=names, seeds=8)
    one, none = scored.of("exchange:noise")
    # One picture is left, so the estimate no longer depends on the noise; a stranger's caption
    # leaves what the unconditional branch has.
    assert one == pytest.approx(1.0, abs=0.02)
    assert none == pytest.approx(0.0, abs=1e-6)
    assert scored.of("exchange:image")[1] == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(
        scored.of("exchange"), scored.of("exchange:image") + scored.of("exchange:noise")
    )


def maps_of(x, eps_u, eps_c):
    """Return maps at alpha = sigma = 1, where the clean estimate is x - eps."""
    return LatentMaps(Level(*torch.ones(2)), x, eps_u, eps_c, x - eps_u, x - eps_c)


def test_the_pull_is_measured_in_units_of_the_seeds_noise():
    x, noise, pull = torch.randn(3, 1, 16, 4, 16, 16, generator=torch.Generator().manual_seed(6))
    maps = maps_of(x, eps_u=x - noise, eps_c=x - noise - 2 * pull)
    assert float(image_entering(maps)[0]) == pytest.approx(4.0, rel=0.05)
    # A latent in other units, or a level at which everything is larger, changes nothing.
    larger = maps_of(3 * x, 3 * maps.eps_u, 3 * maps.eps_c)
    torch.testing.assert_close(image_entering(larger), image_entering(maps))


def test_own_noise_leaves_out_what_other_seeds_noise_explains_as_well():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, 4, 2, 3, 3, generator=generator).double()
    picture = torch.randn(2, 3, 3, generator=generator).double()
    wanted = 0.3 * np.mean(
        [float(((x[0, i] - x[0, j]) * x[0, i]).sum()) for i in range(4) for j in range(4) if i != j]
    )
    assert float(own_noise(picture + 0.3 * x, x)[0]) == pytest.approx(wanted)
    assert float(own_noise(picture.expand_as(x), x)[0]) == pytest.approx(0.0, abs=1e-9)


def test_exchange_needs_an_estimate_that_holds_noise():
    x = torch.randn(1, 2, 1, 4, 4)
    with pytest.raises(MissingEvidence, match="holds none of the noise"):
        noise_shed(maps_of(x, eps_u=2 * x, eps_c=x))


def test_pairs_mean_is_the_mean_over_pairs():
    values = torch.randn(2, 5, 7).double()
    wanted = [np.mean([float(v[i] @ v[j]) for i, j in combinations(range(5), 2)]) for v in values]
    np.testing.assert_allclose(pairs_mean(values), wanted)


def test_tiled_distance_is_the_worst_tile():
    pictures = torch.rand(3, 3, 8, 12)
    found = tiled(pictures)
    worst = 0.0
    for top in range(0, 8, 2):
        for left in range(0, 12, 3):
            a, b = (p[:, top : top + 2, left : left + 3] for p in pictures[:2])
            worst = max(worst, float((a - b).square().mean().sqrt()))
    assert float(found[0, 1]) == pytest.approx(worst, rel=1e-6)


def test_largest_clique_against_all_subsets():
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        draw = torch.rand(8, 8, generator=generator) < 0.5
        near = draw | draw.T
        best = max(
            size
            for size in range(1, 9)
            for some in combinations(range(8), size)
            if all(bool(near[i, j]) for i, j in combinations(some, 2))
        )
        assert largest_clique(near) == best


def test_structural_similarity_of_a_picture_to_itself_is_one():
    large = torch.rand(2, 4, 64, 64).double()
    torch.testing.assert_close(ms_ssim(large, large), torch.ones(2).double())


def test_crossing_lies_between_levels():
    levels = torch.tensor([-2.0, -1.0, 0.0, 1.0]).double()
    distance = torch.tensor(
        [[0.0, 0.1, 0.4, 0.9], [0.5, 0.6, 0.7, 0.8], [0.0, 0.1, 0.1, 0.2], [torch.nan] * 4]
    ).double()
    found = crossing(levels, distance, 0.25)
    torch.testing.assert_close(found[:3], torch.tensor([-0.5, -2.0, 1.0]).double())
    assert torch.isnan(found[3])


def test_entropy_terms_are_zero_where_nothing_looks():
    np.testing.assert_allclose(terms(torch.tensor([0.0, 0.5, 1.0])), [0, 0.5 * np.log(2), 0])


def test_rings_keep_the_total_power():
    power = torch.rand(8, 8).double()
    assert float(radial(power).sum()) == pytest.approx(float(power.sum()))


def test_a_network_without_forward_mode_is_a_reason_not_a_crash(oracle):
    scored = detect(oracle, ["target 0"], detectors=["sharpness", "gap_norm"], seeds=2, steps=5)
    rows = {row["detector"]: row for row in scored.table.to_pylist()}
    assert "forward-mode" in rows["sharpness"]["reason"]
    assert rows["sharpness"]["score"] is None
    assert rows["gap_norm"]["reason"] is None


def test_no_cross_attention_and_no_image_are_reasons(oracle):
    names = ["attention_entropy", "denoising_loss", "seed_agreement"]
    scored = detect(oracle, ["target 0"], detectors=names, seeds=1, steps=5)
    reasons = {row["detector"]: row["reason"] for row in scored.table.to_pylist()}
    assert "no cross-attention" in reasons["attention_entropy"]
    assert "no training image" in reasons["denoising_loss"]
    assert "at least 2" in reasons["seed_agreement"]


class Distilled:
    """A model of one branch."""

    has_uncond = False
    guidance = "none"
    no_uncond = "its guidance was distilled away"

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)


def test_a_model_without_unconditional_branch_has_no_gap(oracle):
    names = ["gap_norm", "seed_agreement"]
    scored = detect(Distilled(oracle), ["target 0"], detectors=names, seeds=2, steps=5)
    reasons = {row["detector"]: row["reason"] for row in scored.table.to_pylist()}
    assert reasons["gap_norm"] == "its guidance was distilled away"
    assert reasons["seed_agreement"] is None


def test_without_an_unconditional_branch_every_detector_scores_or_says_why(oracle):
    scored = detect(Distilled(oracle), ["target 0"], detectors=["all"], seeds=3, steps=5)
    for row in scored.table.to_pylist():
        assert (row["score"] is None) == bool(row["reason"]), row


def test_combine_is_what_the_path_uses(tapes):
    tape = tapes[0]
    torch.testing.assert_close(
        tape.eps("g"), combine(tape.eps("u"), tape.eps("c"), G), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("noise", ["independent", "fresh"])
def test_a_score_does_not_depend_on_its_company(oracle, noise):
    """Not where every prompt has noise of its own, either."""
    names = [d.name for d in all_detectors() if d.first_step]
    texts = ["target 0", "never seen", "target 1"]
    options = {"detectors": names, "seeds": SEEDS, "steps": 5, "noise": noise}
    whole = detect(oracle, texts, **options, batch=64)
    cut = detect(oracle, texts, **options, batch=1)
    for name in names:
        np.testing.assert_allclose(cut.of(name), whole.of(name), rtol=1e-4, atol=1e-9)
