"""Loading: folders whole and damaged, variants, shards, sources; nothing is made up or run."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mnemoscope.errors import ModelError
from mnemoscope.models import load_model
from mnemoscope.models.source import Source
from tests.models.sampled import ours
from tests.tiny import LOADED, PIPELINES, tiny_folder

ROUND = ["stable-diffusion-xl", "stable-diffusion-3 with t5", "flux true", "dit"]
ROUND += ["unconditional ddpm", "unconditional ldm", "text-to-image pixart"]


@pytest.fixture
def folder(tmp_path):
    return tiny_folder(tmp_path / "model")


@pytest.fixture(scope="module")
def variant(tmp_path_factory):
    from tests.tiny import tiny_pipeline

    at = tmp_path_factory.mktemp("variant") / "model"
    tiny_pipeline().save_pretrained(at, variant="fp16")
    return at


@pytest.mark.parametrize("name", ROUND)
def test_a_folder_is_the_pipeline_it_was_saved_from(name, tmp_path):
    pipeline = PIPELINES[name]()
    pipeline.save_pretrained(tmp_path / "model")
    options = LOADED.get(name, {})
    whole = load_model(pipeline, **options)
    read = load_model(tmp_path / "model", **options)
    assert read.family == whole.family
    path = read.make_scheduler("auto", 2)
    prompts = list(read.examples)
    assert torch.equal(ours(read, prompts, path, 4.0), ours(whole, prompts, path, 4.0))
    # Another process loads the same by the source alone.
    again = load_model(read.source)
    assert again.digest == read.digest
    assert again.source == read.source
    assert (again.image_size, again.guidance) == (read.image_size, read.guidance)


def test_sources_say_everything(folder):
    source = Source(model=str(folder), height=16, width=24, dtype="bfloat16", device="cpu")
    model = load_model(source)
    assert model.image_size == (16, 24)
    assert model.dtype == torch.bfloat16
    assert model.source == source
    oracle = load_model(Source(model="oracle:gaussian"))
    assert oracle.source == Source(model="oracle:gaussian")
    with pytest.raises(ModelError, match="closed form"):
        load_model(Source(model="oracle:gaussian", variant="fp16"))
    with pytest.raises(ModelError, match="finite"):
        load_model(Source(model=str(folder), lora_scale=float("nan")))


def test_a_variant_is_asked_for_by_name(variant):
    with pytest.raises(ModelError, match="variant='fp16'"):
        load_model(variant)
    model = load_model(variant, variant="fp16")
    assert model.dtype == torch.float32
    assert load_model(model.source).digest == model.digest


def test_a_variant_that_is_not_there(folder):
    with pytest.raises(ModelError, match="no weights of variant 'fp16'"):
        load_model(folder, variant="fp16")


def test_parts_without_the_variant_are_taken_plain(variant, tmp_path):
    folder = shutil.copytree(variant, tmp_path / "model")
    vae = folder / "vae"
    (vae / "diffusion_pytorch_model.fp16.safetensors").rename(
        vae / "diffusion_pytorch_model.safetensors"
    )
    images = torch.rand(1, 3, 16, 16)
    mixed, whole = load_model(folder, variant="fp16"), load_model(variant, variant="fp16")
    assert torch.equal(mixed.encode_images(images), whole.encode_images(images))


@pytest.fixture
def sharded(tmp_path):
    from tests.tiny import tiny_pipeline

    tiny_pipeline().save_pretrained(tmp_path / "sharded", max_shard_size="400KB")
    assert list((tmp_path / "sharded" / "unet").glob("*.index.json"))
    return tmp_path / "sharded"


def test_shards_are_read(sharded, folder):
    images = torch.rand(1, 3, 16, 16)
    whole, parts = load_model(folder), load_model(sharded)
    assert torch.equal(whole.encode_images(images), parts.encode_images(images))
    weights = [one.pipeline.unet.state_dict() for one in (whole, parts)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/secret.safetensors", "a.bin"])
def test_shards_elsewhere_are_refused(sharded, name):
    index = next((sharded / "unet").glob("*.index.json"))
    told = json.loads(index.read_text())
    told["weight_map"][next(iter(told["weight_map"]))] = name
    index.write_text(json.dumps(told))
    with pytest.raises(ModelError, match="beside it"):
        load_model(sharded)


def test_a_missing_shard_is_named(sharded):
    gone = sorted((sharded / "unet").glob("*.safetensors"))[0]
    gone.unlink()
    with pytest.raises(ModelError, match=gone.name):
        load_model(sharded)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("scheduler", "no folder 'scheduler'"),
        ("tokenizer", "no folder 'tokenizer'"),
        ("unet", "no folder 'unet'"),
        ("vae", "no folder 'vae'"),
        ("text_encoder", "no folder 'text_encoder'"),
        ("unet/config.json", "unet/config.json"),
        ("unet/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors"),
        ("scheduler/scheduler_config.json", "scheduler"),
        ("model_index.json", "model_index"),
    ],
)
def test_what_is_missing_is_named(folder, part, message):
    gone = folder / part
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(ModelError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    "weights",
    ["text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors"],
)
@pytest.mark.parametrize("damage", ["missing", "shape", "half"])
def test_partial_weights_are_refused(folder, weights, damage):
    file = folder / weights
    held = load_file(file)
    key = sorted(name for name in held if held[name].ndim == 2)[0]
    if damage == "missing":
        del held[key]
    elif damage == "shape":
        held[key] = held[key][:-1].clone()
    if damage == "half":
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
    else:
        save_file(held, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks|cannot be loaded"):
        load_model(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, "StableDiffusionXLPipeline"),
        ({"_class_name": "NobodysPipeline"}, "no pipeline of diffusers"),
        ({"_class_name": "DDIMScheduler"}, "no pipeline of diffusers"),
        ({"_class_name": ["pipeline", "Own"]}, "not run"),
        ({"unet": ["own_code", "Unet"]}, "not run"),
        ({"unet": ["transformers", "AutoModel"]}, "not run"),
        ({"unet": ["os", "system"]}, "not run"),
        ({"unet": ["diffusers", "randn"]}, "not run"),
    ],
)
def test_indices_that_name_something_else_are_refused(folder, index, message):
    at = folder / "model_index.json"
    told = json.loads(at.read_text()) | index
    if index.get("_class_name") == "StableDiffusionXLPipeline":
        told["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
    at.write_text(json.dumps(told))
    with pytest.raises(ModelError, match=message):
        load_model(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00", "[" * 100_000])
def test_indices_that_are_no_json_are_refused(folder, text):
    (folder / "model_index.json").write_text(text)
    with pytest.raises(ModelError, match="JSON"):
        load_model(folder)


def test_pickles_in_a_folder_are_refused(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.with_suffix(".bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="pickle"):
        load_model(folder)


def test_an_inpainting_folder_is_refused(tmp_path):
    from tests.tiny import tiny_pipeline

    tiny_pipeline(in_channels=9).save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="inpainting"):
        load_model(tmp_path / "model")


def test_the_digest_follows_what_changes_results(folder):
    first = load_model(folder).digest
    index = folder / "model_index.json"
    told = json.loads(index.read_text())
    index.write_text(json.dumps(told | {"_diffusers_version": "0.1"}, indent=4))
    assert load_model(folder).digest == first
    scheduler = folder / "scheduler" / "scheduler_config.json"
    told = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps(told | {"beta_end": 0.02}))
    assert load_model(folder).digest != first


def test_a_vae_of_other_channels_does_not_fit(folder, tmp_path):
    PIPELINES["unconditional ldm"]().save_pretrained(tmp_path / "ldm")
    with pytest.raises(ModelError, match="VAE"):
        load_model(folder, vae=tmp_path / "ldm")
    PIPELINES["unconditional ddpm"]().save_pretrained(tmp_path / "ddpm")
    with pytest.raises(ModelError, match="takes no VAE"):
        load_model(tmp_path / "ddpm", vae=folder)


def test_a_pipeline_without_loras_takes_none(tmp_path):
    PIPELINES["dit"]().save_pretrained(tmp_path / "dit")
    save_file({"unet.x.lora_A.weight": torch.zeros(2, 3)}, tmp_path / "lora.safetensors")
    with pytest.raises(ModelError, match="takes no LoRA"):
        load_model(tmp_path / "dit", lora=tmp_path / "lora.safetensors")
