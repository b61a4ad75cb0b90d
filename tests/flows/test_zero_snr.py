"""A schedule that ends at pure noise: alpha is 0 at the first call, and nothing is lost."""

import re

import pyarrow.compute as pc
import pytest
import torch
from PIL import Image

from mnemoscope.core.record import Recorder
from mnemoscope.data.prompts import Prompt
from mnemoscope.evidence import Bank
from mnemoscope.evidence.gather import gather, sit
from mnemoscope.evidence.pieces.whole_path import WholePath
from mnemoscope.flows.detect import detect
from mnemoscope.flows.study import Study, run
from mnemoscope.models import load_model
from mnemoscope.reporting import report
from mnemoscope.sampling.exact import exact_path
from mnemoscope.sampling.loop import Branches, generators_of, initial_noise, sample
from mnemoscope.sampling.recipe import Recipe
from tests.tiny import tiny_zero_snr

STEPS, SEEDS, G = 5, 2, 7.5


@pytest.fixture(scope="module")
def model():
    return load_model(tiny_zero_snr(), device="cpu")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("list")
    pixels = torch.randint(0, 256, (2, 16, 16, 3), generator=torch.Generator().manual_seed(1))
    for at, picture in enumerate(pixels):
        Image.fromarray(picture.byte().numpy()).save(folder / f"{at}.png")
    (folder / "list.jsonl").write_text(
        '{"prompt": "a cat", "images": ["0.png"], "prompt_id": "a"}\n'
        '{"prompt": "a dog", "images": ["1.png"], "prompt_id": "b"}\n'
    )
    return folder / "list.jsonl"


def tape_of(model, seeds, guidance=G):
    generators, recorder = generators_of(seeds), Recorder()
    done = sample(
        model.denoiser,
        model.make_scheduler("ddim", STEPS),
        initial_noise(generators, model.latent_shape),
        Branches(model.encode_prompts(["a cat"] * len(seeds)), model.encode_blank().expand(2)),
        guidance,
        generators,
        observers=[recorder],
    )
    return recorder.trajectory(done.latents), done


def test_the_path_begins_at_pure_noise(model):
    tape, done = tape_of(model, [0, 1])
    assert float(tape.level.alpha[0]) == 0
    assert done.ok.all()
    assert torch.equal(tape.eps("c")[:, 0], tape.x[:, 0])
    assert not torch.allclose(tape.x0("c")[:, 0], tape.x0("u")[:, 0], atol=1e-3)


def test_the_record_keeps_the_clean_estimates_of_the_first_call(model):
    recipe = Recipe(scheduler="ddim", steps=STEPS, guidance=G)
    bank = Bank(model, recipe, SEEDS)
    sitting = sit(bank, [Prompt("a", "a cat")], [0], [WholePath()])
    gram = gather(sitting, [WholePath()])[WholePath()]
    tape, _ = tape_of(model, [recipe.sample_seed("a", 0, s) for s in range(SEEDS)])
    for branch in "ucg":
        clean = tape.x0(branch).double()
        norms = clean.square().mean(dim=2).sqrt()
        assert torch.isfinite(gram.rms(f"x0_{branch}")).all()
        torch.testing.assert_close(gram.rms(f"x0_{branch}"), norms, rtol=1e-4, atol=1e-5)
    u, c, g = (tape.x0(branch)[:, 0].double() for branch in "ucg")
    torch.testing.assert_close(g, u + G * (c - u), rtol=0, atol=1e-4)


def test_the_exact_path_is_known(model):
    path = exact_path(model.make_scheduler("ddim", STEPS))
    assert torch.isfinite(path.w0).all()
    # From pure noise on, the exact weights are the levels themselves.
    torch.testing.assert_close(path.w0, path.level.alpha, rtol=0, atol=1e-9)
    torch.testing.assert_close(path.wT, path.level.sigma, rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def studied(model, prompts, tmp_path_factory):
    study = Study(
        model=model.name,
        prompts=prompts,
        seeds=SEEDS,
        steps=STEPS,
        out=tmp_path_factory.mktemp("study") / "run",
        device="cpu",
    )
    return run(study, model=model)


def test_a_whole_study_completes(studied):
    assert studied.manifest.status == "complete"
    assert studied.manifest.samples == {"ok": 2 * SEEDS * 2}
    gram, _ = studied.gram("path", G)
    assert float(gram.level.alpha[0]) == 0
    assert torch.isfinite(gram.products).all()
    assert torch.isfinite(gram.rms("x0_g")).all()
    assert studied.mean is not None
    for law in ("forward", "noise"):
        probe, _ = studied.gram(law)
        assert torch.isfinite(probe.rms("x0_c")).all()
    w0, wT = studied.exact
    assert torch.isfinite(w0).all()
    assert torch.isfinite(wT).all()


def test_its_analyses_and_scores_are_there(studied):
    assert studied.table("checks").num_rows > 0
    curves = studied.table("curves").filter(pc.field("call") == 0)
    assert curves.num_rows > 0
    scores = studied.table("scores").to_pylist()
    assert scores
    for row in scores:
        assert (row["score"] is None) == bool(row["reason"])


def test_its_page_is_written_and_shows_no_number_that_is_none(studied, tmp_path):
    page = report(studied, tmp_path / "report").read_text("utf-8")
    words = re.sub(r"<(script|style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    assert "pure noise (alpha = 0)" in words
    assert not re.search(r"\bnan\b", re.sub(r"<[^>]*>", " ", words))


def test_every_detector_scores_or_says_why(model, prompts):
    found = detect(model, prompts, detectors="all", seeds=3, steps=STEPS)
    unscored = set()
    for row in found.table.to_pylist():
        assert (row["score"] is None) == bool(row["reason"]), row
        if row["reason"]:
            unscored.add(row["detector"])
    # What is only defined through a noise estimate at the first call, where it is the state.
    assert len(unscored) < len(found.detectors) / 3, unscored
    for name in ("consensus_energy", "gap_norm:all", "denoising_loss:caption"):
        assert name not in unscored
