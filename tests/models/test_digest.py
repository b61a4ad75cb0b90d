"""The digest names the model: what changes it is seen or refused, and nothing is made up."""

import json
import shutil
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file

from mnemoscope.errors import ModelError
from mnemoscope.models import load_model
from mnemoscope.models.folder import digest_of_pipeline
from tests.tiny import tiny_folder, tiny_pipeline

UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("other") / "model", seed=1)


@pytest.fixture
def folder(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "model")


@pytest.fixture(scope="module")
def known(plain):
    return content(load_model(plain))


def content(model):
    """Return the digest, and all that a model's results follow from."""
    pipeline = model.pipeline
    tensors = {
        f"{part}.{key}": value.clone()
        for part in ("unet", "vae", "text_encoder")
        for key, value in getattr(pipeline, part).state_dict().items()
    }
    tensors |= model.encode_prompts(["a red house", "Zwölf"]).parts
    settings = (
        pipeline.scheduler.config.prediction_type,
        pipeline.scheduler.config.beta_end,
        pipeline.vae.config.scaling_factor,
        pipeline.text_encoder.config.layer_norm_eps,
    )
    return model.digest, tensors, settings


def changed(a, b):
    same = a[1].keys() == b[1].keys() and all(torch.equal(a[1][key], b[1][key]) for key in a[1])
    return not same or a[2] != b[2]


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def index_of(file, names):
    weights = {key: name for name in names for key in load_file(file.parent / name)}
    told = {"metadata": {"total_size": 1}, "weight_map": weights}
    file.parent.joinpath(file.name + ".index.json").write_text(json.dumps(told))


def index_beside_the_file(folder, other, which):
    shutil.copy(other / which, folder / which.replace(".safetensors", "-1.safetensors"))
    index_of(folder / which, [(folder / which).stem + "-1.safetensors"])


def pickled_shard(folder, other):
    held = load_file(folder / UNET)
    (folder / UNET).unlink()
    torch.save(held, folder / "unet" / "diffusion_pytorch_model-1.bin")
    told = {"metadata": {}, "weight_map": dict.fromkeys(held, "diffusion_pytorch_model-1.bin")}
    (folder / (UNET + ".index.json")).write_text(json.dumps(told))


def adapter(folder, other):
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (folder / "text_encoder" / "adapter_config.json").write_text(json.dumps(told))
    key = "base_model.model.encoder.layers.0.self_attn.q_proj.lora_{}.weight"
    save_file(
        {key.format("A"): torch.ones(2, 32), key.format("B"): torch.ones(32, 2)},
        folder / "text_encoder" / "adapter_model.safetensors",
    )


def named_in_the_config(folder, other):
    shutil.copy(other / TEXT, folder / "text_encoder" / "more.safetensors")
    edit(folder / "text_encoder" / "config.json", transformers_weights="more.safetensors")


def of_the_other_library(folder, other):
    shutil.copy(other / TEXT, folder / "text_encoder" / "diffusion_pytorch_model.safetensors")
    shutil.copy(other / UNET, folder / "unet" / "model.safetensors")


def other_words(folder, other):
    path = folder / "tokenizer" / "tokenizer.json"
    told = json.loads(path.read_text())
    words = told["model"]["vocab"]
    words["a</w>"], words["z</w>"] = words["z</w>"], words["a</w>"]
    path.write_text(json.dumps(told))


CHANGES = {
    "an index beside the whole file of the network": lambda f, o: index_beside_the_file(f, o, UNET),
    "an index beside that of the text encoder": lambda f, o: index_beside_the_file(f, o, TEXT),
    "a pickled shard": pickled_shard,
    "an adapter beside the text encoder": adapter,
    "weights that a configuration names": named_in_the_config,
    "weights by the other library's name": of_the_other_library,
    "a pickle beside the weights": lambda f, o: (f / "unet" / "diffusion_pytorch_model.bin")
    .write_bytes(b"\x80\x04."),
    "other weights": lambda f, o: shutil.copy(o / UNET, f / UNET),
    "other words": other_words,
    "another prediction type": lambda f, o: edit(
        f / "scheduler" / "scheduler_config.json", prediction_type="v_prediction"
    ),
    "another schedule": lambda f, o: edit(f / "scheduler" / "scheduler_config.json", beta_end=0.02),
    "another scale of latents": lambda f, o: edit(f / "vae" / "config.json", scaling_factor=0.5),
    "another text encoder": lambda f, o: edit(
        f / "text_encoder" / "config.json", layer_norm_eps=1e-3
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_no_other_model_goes_by_the_same_digest(folder, other, known, name):
    CHANGES[name](folder, other)
    try:
        found = content(load_model(folder))
    except ModelError:
        return
    assert changed(found, known) == (found[0] != known[0])


def test_the_changes_do_change_something(folder, other, known):
    """The comparison above would pass on a change that reaches nothing."""
    for name in ("other weights", "other words", "another schedule", "another scale of latents"):
        CHANGES[name](folder, other)
        found = content(load_model(folder))
        assert changed(found, known)
        known = found


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("an index beside the whole file of the network", "remove one"),
        ("an index beside that of the text encoder", "remove one"),
        ("a pickled shard", "beside it"),
        ("an adapter beside the text encoder", "give it as a LoRA"),
        ("weights that a configuration names", "transformers_weights"),
    ],
)
def test_weights_that_nobody_expects_are_refused(folder, other, name, word):
    CHANGES[name](folder, other)
    with pytest.raises(ModelError, match=word):
        load_model(folder)


def test_the_digested_files_are_all_it_takes(plain, known, tmp_path):
    """What is not in the digest is not needed: without it the model is the same."""
    from mnemoscope.models.folder import parts_of

    _, parts, _ = parts_of(plain, "model")
    for file in [plain / "model_index.json", *(file for part in parts for file in part.files)]:
        target = tmp_path / "model" / file.relative_to(plain)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    found = content(load_model(tmp_path / "model"))
    assert found[0] == known[0]
    assert not changed(found, known)


def test_an_index_of_shards_counts(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "model", max_shard_size="400KB")
    before = load_model(tmp_path / "model").digest
    index = next((tmp_path / "model" / "unet").glob("*.index.json"))
    edit(index, metadata={"total_size": 7})
    assert load_model(tmp_path / "model").digest != before


def test_an_object_is_named_by_its_words_and_settings_too():
    pipeline = tiny_pipeline()
    before = digest_of_pipeline(pipeline)
    assert digest_of_pipeline(tiny_pipeline()) == before
    pipeline.tokenizer.add_tokens(["lighthouse"])
    assert digest_of_pipeline(pipeline) != before


@pytest.mark.parametrize("file", [UNET, TEXT, "vae/diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder, file, value):
    held = load_file(folder / file)
    key = sorted(name for name in held if held[name].is_floating_point())[-1]
    held[key].flatten()[0] = value
    save_file(held, folder / file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="not finite"):
        load_model(folder)


@pytest.mark.parametrize("file", [UNET, TEXT])
def test_weights_of_whole_numbers_are_refused(folder, file):
    held = load_file(folder / file)
    key = sorted(name for name in held if held[name].ndim == 2)[0]
    held[key] = held[key].to(torch.int8)
    save_file(held, folder / file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="whole numbers"):
        load_model(folder)


@pytest.mark.parametrize(
    ("gone", "word"),
    [
        ("tokenizer/tokenizer.json", "no vocabulary"),
        ("tokenizer/tokenizer_config.json", "too big"),
        ("tokenizer/*", "tokenizer"),
        ("scheduler/*", "scheduler"),
        ("unet/config.json", "unet"),
        ("vae/*.safetensors", "vae"),
        ("text_encoder/*.safetensors", "text_encoder"),
        ("text_encoder/config.json", "text_encoder"),
    ],
)
def test_no_hub_is_asked_for_what_a_folder_lacks(folder, monkeypatch, gone, word):
    def refuse(*given):
        raise AssertionError("a network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for file in folder.glob(gone):
        file.unlink()
    with pytest.raises(ModelError, match=word):
        load_model(folder)
