"""Stable Diffusion from a folder: parity, codec, conditioner, what may be loaded with it."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from mnemoscope.errors import InputError, ModelError
from mnemoscope.lab import MODEL_DIR
from mnemoscope.models import load_model
from mnemoscope.sampling.loop import generators_of
from tests.models.sampled import ours
from tests.tiny import tiny_folder

PROMPTS = ["noto swan and twemoji bomb", "the kinetic edition marble update", ""]
STEPS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return load_model(str(folder))


@pytest.mark.skipif(not MODEL_DIR.is_dir(), reason="the embedded model is not built")
@pytest.mark.parametrize("name", ["ddim", "dpmsolver++", "pndm"])
def test_embedded_model_keeps_parity(name):
    model = load_model("embedded")
    scheduler = model.make_scheduler(name, 3)
    expected = model.host_latents(PROMPTS, scheduler, 3, 7.5, generators_of(range(len(PROMPTS))))
    assert torch.equal(ours(model, PROMPTS, scheduler, 7.5), expected)


def test_conditions_equal_the_pipelines(model):
    cond, uncond = model.pipeline.encode_prompt(PROMPTS, "cpu", 1, True)
    assert torch.equal(model.encode_prompts(PROMPTS).embedding, cond)
    assert torch.equal(model.encode_blank(len(PROMPTS)).embedding, uncond)


def test_tokens_are_counted_before_truncation(model):
    # One token a byte, spaces not counted.
    prompts = ["ab c", "x" * 75, "x" * 76]
    assert model.token_counts(prompts) == [3, 75, 76]
    assert model.truncated(prompts) == [False, False, True]


def test_text_that_is_no_text_is_refused(model):
    with pytest.raises(InputError, match="UTF-8"):
        model.encode_prompts(["\ud800"])
    with pytest.raises(InputError, match="no prompt"):
        model.encode_prompts([])


def test_codec_is_the_vaes_mode(model):
    images = torch.rand(2, 3, 16, 16)
    vae = model.pipeline.vae
    latents = model.encode_images(images)
    expected = vae.encode(2 * images - 1).latent_dist.mean * vae.config.scaling_factor
    assert torch.equal(latents, expected)
    decoded = vae.decode(latents / vae.config.scaling_factor).sample
    assert torch.allclose(model.decode(latents), (decoded / 2 + 0.5).clamp(0, 1))
    # A picture of another size is brought to the model's.
    assert model.encode_images(torch.rand(1, 3, 40, 20)).shape == (1, *model.latent_shape)


def test_half_precision_stays_near_float32(folder, model):
    half = load_model(str(folder), dtype="bfloat16")
    scheduler = model.make_scheduler("ddim", STEPS)
    full, low = (ours(m, PROMPTS, scheduler, 1.0) for m in (model, half))
    assert low.dtype == torch.float32
    # bfloat16 keeps 8 bits: 0.4 % of a unit, through five calls of a random network.
    assert 0 < float((full - low).square().mean().sqrt()) < 0.05
    host = half.host_latents(PROMPTS, scheduler, STEPS, 1.0, generators_of(range(3)))
    assert torch.equal(low, host)


def test_digest_follows_the_weights(folder, tmp_path):
    first, again = load_model(str(folder)), load_model(str(folder))
    other = load_model(str(tiny_folder(tmp_path / "other", seed=1)))
    assert first.digest == again.digest != other.digest


def test_another_vae_is_used(folder, tmp_path):
    other = tiny_folder(tmp_path / "other", seed=1)
    model = load_model(str(folder), vae=other)
    donor = load_model(str(other))
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(model.encode_images(images), donor.encode_images(images))
    assert model.digest != load_model(str(folder)).digest


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_lora_is_merged(folder, tmp_path, part, scale):
    plain = load_model(str(folder))
    ending = {"unet": "attn2.to_q.weight", "text_encoder": "self_attn.q_proj.weight"}[part]
    weights = getattr(plain.pipeline, part).state_dict()
    key = next(k for k in weights if k.endswith(ending))
    down, up = torch.randn(2, weights[key].shape[1]), torch.randn(weights[key].shape[0], 2)
    stem = f"{part}." + key.removesuffix(".weight")
    file = tmp_path / "lora.safetensors"
    save_file({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}, file)
    tuned = load_model(str(folder), lora=file, lora_scale=scale)
    merged = getattr(tuned.pipeline, part).state_dict()[key]
    # rank 2 with alpha equal to the rank: the update is the bare product.
    assert torch.allclose(merged, weights[key] + scale * up @ down, atol=1e-5)
    assert len({tuned.digest, plain.digest}) == 2
    again = load_model(str(folder), lora=file, lora_scale=scale / 2)
    assert again.digest != tuned.digest
    assert tuned.source.lora == str(file)
    assert tuned.name == f"{folder} with lora.safetensors"
    moved = not torch.equal(
        tuned.encode_prompts(["a"]).embedding, plain.encode_prompts(["a"]).embedding
    )
    assert moved == (part == "text_encoder")


def test_loras_that_do_not_fit_are_refused(folder, tmp_path):
    file = tmp_path / "lora.safetensors"
    save_file({"transformer.x.lora_A.weight": torch.zeros(2, 3)}, file)
    with pytest.raises(ModelError, match="LoRA"):
        load_model(str(folder), lora=file)
    file.write_bytes(b"not a tensor file")
    with pytest.raises(ModelError, match="LoRA"):
        load_model(str(folder), lora=file)
    with pytest.raises(ModelError, match="not there"):
        load_model(str(folder), lora=tmp_path / "missing.safetensors")


def test_damaged_checkpoints_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    for content in (b"", b"garbage that is no header"):
        file.write_bytes(content)
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_model(str(file))
    save_file({"weight": torch.zeros(2)}, file)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(file))


@pytest.mark.parametrize("ending", [".ckpt", ".bin", ".pt", ".pth", ".pkl"])
def test_pickles_are_refused(tmp_path, folder, ending):
    file = tmp_path / f"model{ending}"
    file.write_bytes(b"\x80\x04.")
    for arguments in ({"model": str(file)}, {"model": str(folder), "lora": file}):
        with pytest.raises(ModelError, match="pickle"):
            load_model(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "embeded"}, "'embedded'"),
        ({"model": "oracle:memoriser"}, "'oracle:memorizer'"),
        ({"model": "oracle:gaussian", "device": "cpuu"}, "'cpu'"),
        ({"model": "oracle:gaussian", "dtype": "float33"}, "'float32'"),
        ({"model": "missing.safetensors"}, "unknown model"),
        ({"model": "nobody/nothing"}, "hub"),
    ],
)
def test_unknown_names_get_a_suggestion(arguments, message):
    with pytest.raises(ModelError, match=message):
        load_model(**arguments)


def test_schedulers_by_name(model):
    with pytest.raises(ModelError, match="'euler'"):
        model.make_scheduler("eulr", 5)
    with pytest.raises(InputError, match="from 1 to 1000"):
        model.make_scheduler("ddim", 0)


def test_safetensors_only_are_written(folder):
    # The fixture itself must not smuggle a pickle in.
    assert not list(folder.rglob("*.bin"))
    assert load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
