"""Anti-memorization guidance: its formula by closed forms, its index, and what it refuses."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mnemoscope.core.predict import Prediction
from mnemoscope.errors import InputError, ModelError
from mnemoscope.mitigations import parse
from mnemoscope.mitigations.anti_memorization import index_of
from mnemoscope.models import load_model
from tests.mitigations.steps import G, drawn, start_of, step_of
from tests.sscd import sscd_network
from tests.tiny import tiny_pipeline

KINDS = ("eps", "v", "x0", "flow")


def decode(latents):
    """Take the first three channels for a picture; nothing is clipped."""
    return latents[:, :3]


def unit(pictures):
    flat = pictures.flatten(1)
    flat = flat - flat.mean(dim=1, keepdim=True)
    return flat / flat.norm(dim=1, keepdim=True)


@pytest.fixture
def folder(tmp_path):
    for at in range(3):
        pixels = np.random.default_rng(at).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{at}.png")
    rows = [
        {"file_name": f"{at}.png", "text": f"words {at}", "prompt_id": str(at)} for at in (1, 2)
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def picture(folder, at):
    pixels = np.asarray(Image.open(folder / f"{at}.png"), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def near(folder, kind, far):
    """Return a call whose guided estimate is reference 2 for one sample, and noise for another."""
    wanted = torch.cat([picture(folder, 2), torch.rand(1, 1, 8, 8)], dim=1)
    other = drawn(8, 1, 4, 8, 8)
    bare = step_of(4, kind=kind)
    alpha, sigma = (part.to(bare.x) for part in bare.point.level)

    def raw(x0):
        return bare.raw_of(Prediction(x0, (bare.x - alpha * x0) / sigma))

    clean = torch.cat([wanted + far * drawn(9, 1, 4, 8, 8), other])
    uncond = clean + 0.1 * drawn(10, 2, 4, 8, 8)
    cond = uncond + (clean - uncond) / G
    neighbour = raw(clean + 0.1 * drawn(11, 2, 4, 8, 8))
    return step_of(
        4, kind=kind, cond=raw(cond), uncond=raw(uncond), x=bare.x,
        branches={"neighbour": neighbour}, decode=decode,
    ), clean  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_published_sum(folder, kind):
    step, clean = near(folder, kind, far=0.2)
    asked = parse(f"anti_memorization(references={folder},floor=0.35,strength=0.05)")
    used = asked.guide(step)
    # Below the limit nothing is changed, not by a bit.
    assert torch.equal(used[1], step.guided()[1])

    n = unit(picture(folder, 2))[0]
    time = float(step.point.timestep)
    limit = 0.35 + 0.1 * math.exp(-0.005 * time)
    s = float(unit(decode(clean))[0] @ n)
    assert s > limit
    s1 = min(max(0.05 * 13 * s, 0), 6.5)
    s2 = min(0.05 * (6.5 - s1) / 0.3 * s, 6.5 - s1)
    of = {name: step.prediction(name) for name in ("cond", "uncond", "neighbour")}
    eps = {name: part.eps[0] for name, part in of.items()}
    said = eps["uncond"] + (G - s1) * (eps["cond"] - eps["uncond"])
    said = said - s2 * (eps["neighbour"] - eps["uncond"])
    alpha, sigma = map(float, step.point.level)
    x0 = (step.x[0] - sigma * said) / alpha
    flat = decode(x0[None]).flatten()
    flat = flat - flat.mean()
    f = flat / flat.norm()
    still = float(f @ n)
    assert still > limit
    uphill = (n - still * f) / flat.norm()
    uphill = torch.cat([(uphill - uphill.mean()).reshape(3, 8, 8), torch.zeros(1, 8, 8)])
    weight = 100 * 0.05 * (still - 0.35) * math.exp((1000 - time) / 170)
    said = said + sigma * weight * uphill / alpha
    found = Prediction.from_raw(kind, used, step.x, step.point.level)
    torch.testing.assert_close(found.eps[0], said, atol=2e-3, rtol=2e-3)
    # It leads away from the reference.
    assert float(unit(decode(found.x0))[0] @ n) < still


def test_the_caption_is_that_of_the_nearest_reference_at_the_first_call(folder):
    wanted = torch.cat([picture(folder, at) for at in (2, 1)])
    pictures = torch.cat([wanted, torch.zeros(2, 1, 8, 8)], dim=1)

    def predict(x, condition, rows):
        # The guided estimate is the picture; the conditional one alone is not.
        blank = torch.equal(condition.parts["states"], start.uncond.parts["states"])
        uncond = drawn(3, 2, 4, 8, 8)
        x0 = uncond if blank else uncond + (pictures - uncond) / G
        return Prediction(x0, x0)

    start = start_of(["a", "b"], predict, tokens=8, decode=decode)
    asked = parse(f"anti_memorization(references={folder})").branches(start)
    told = start.encode(["words 2", "words 1"])
    assert torch.equal(asked["neighbour"].parts["states"], told.parts["states"])


def test_a_folder_of_pictures_has_no_captions_and_steers_from_none(folder):
    (folder / "metadata.jsonl").unlink()
    index = index_of(f"{folder}/", "")
    assert index.captions == [None, None, None]
    found, at = index.nearest(torch.cat([picture(folder, 0), 1 - picture(folder, 1)]))
    assert int(at[0]) == 0
    torch.testing.assert_close(found[0], torch.tensor(1.0))


def test_descriptors_are_those_of_sscd_where_its_file_is_given(folder, tmp_path):
    with sscd_network(tmp_path) as path:
        index = index_of(str(folder), str(path))
    found, at = index.climbed(0.9 * picture(folder, 2).expand(1, -1, -1, -1), lambda x: x)
    torch.testing.assert_close(found, torch.ones(1), atol=0.1, rtol=0)
    step = 1e-3 * drawn(4, *at.shape)
    before, after = (
        float(index.nearest(0.9 * picture(folder, 2) + way * step)[0]) for way in (-1, 1)
    )
    assert (after - before) / 2 == pytest.approx(float((at * step).sum()), rel=5e-3)


def test_a_decoder_has_the_gradient_it_is_climbed_by():
    model = load_model(tiny_pipeline(), device="cpu")
    x = drawn(1, 1, *model.latent_shape)
    assert not model.decode(x).requires_grad
    leaf = x.clone().requires_grad_()
    wanted = drawn(2, *model.decode(x).shape)
    (grad,) = torch.autograd.grad((model.decode(leaf) * wanted).sum(), leaf)
    way = 1e-2 * drawn(3, *x.shape)
    rise = ((model.decode(x + way) - model.decode(x - way)) * wanted).sum() / 2
    torch.testing.assert_close((grad * way).sum(), rise, atol=1e-4, rtol=2e-2)


def test_what_it_cannot_do_is_refused(folder, tmp_path):
    step, _ = near(folder, "eps", far=0.2)
    with pytest.raises(InputError, match="name them"):
        parse("anti_memorization").guide(step)
    with pytest.raises(ModelError, match="cannot be decoded"):
        parse(f"anti_memorization(references={folder})").guide(replace(step, decode=None))
    with pytest.raises(InputError, match="floor"):
        parse("anti_memorization(floor=1.5)")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no training image"):
        index_of(str(tmp_path / "empty"), "")
    with pytest.raises(ModelError, match="no gradient"):
        index_of(str(folder), "sscd.onnx")
