"""Judges of pictures: CLIP's cosine by hand, and how far scenes and noise are from scenes."""

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
)

from mnemoscope.data.prompts import Prompt
from mnemoscope.errors import InputError, ModelError
from mnemoscope.flows.alignment import ClipJudge, LabJudge, judges_of
from mnemoscope.lab.scenes import Scenes
from tests.tiny import WIDTH, tiny_tokenizer

SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1,
             "num_attention_heads": 2, "projection_dim": 16}  # fmt: skip
    tokenizer = tiny_tokenizer()
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = CLIPTextConfig(vocab_size=len(tokenizer), **sizes, **ends)
    vision = CLIPVisionConfig(image_size=SIDE, patch_size=8, **sizes)
    whole = CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16
    )
    model = CLIPModel(whole)
    path = tmp_path_factory.mktemp("clip")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_alignment_is_the_cosine_of_clips_own_features(folder):
    pictures = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    prompts = [Prompt(str(at), text) for at, text in enumerate(("a cat", "dogs", "a cat"))]
    (judge,) = judges_of("some/model", clip=folder)
    assert isinstance(judge, ClipJudge)
    got = judge.look(pictures, prompts)["alignment"]
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = tiny_tokenizer()
    # The normalization of CLIP's authors; the size fits already.
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    for at, prompt in enumerate(prompts):
        ids = torch.tensor([tokenizer(prompt.text)["input_ids"]])
        with torch.no_grad():
            out = model(input_ids=ids, pixel_values=((pictures[at] - mean) / std)[None])
        cosine = torch.cosine_similarity(out.image_embeds, out.text_embeds)
        assert got[at] == pytest.approx(float(cosine), abs=1e-5)
    assert len({round(float(each), 6) for each in got}) == 3
    # Twice as large, and wider than high: the middle is seen at half the size.
    large = torch.nn.functional.interpolate(pictures, scale_factor=2, mode="nearest")
    wide = torch.nn.functional.pad(large, (20, 20, 0, 0))
    assert judge.look(wide, prompts)["alignment"] == pytest.approx(got, abs=0.05)


def test_a_folder_that_holds_no_clip_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no folder"):
        judges_of("some/model", clip=tmp_path / "none")
    with pytest.raises(ModelError, match="cannot be loaded"):
        ClipJudge(tmp_path).look(torch.zeros(1, 3, SIDE, SIDE), [Prompt("a", "a cat")])


def test_scenes_are_as_far_from_scenes_as_scenes_are_and_noise_is_further():
    scenes, captions = Scenes(94_000_000, pairs=1.0).batch(64)
    noise = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    judge = LabJudge()

    def distances(images, texts):
        prompts = [Prompt(str(at), text) for at, text in enumerate(texts)]
        return judge.look(images, prompts)["scene_distance"]

    near, far = distances(scenes, captions), distances(noise, captions[:16])
    assert near.mean() == pytest.approx(1.0, abs=0.15)
    assert far.min() > near.max()


def test_the_lab_judges_what_it_is_asked_to():
    kinds = {
        (model, judge): [type(one) for one in judges_of(model, judge)]
        for model in ("embedded", "DIR/model")
        for judge in ("auto", "lab", "none")
    }
    judged = {key for key, found in kinds.items() if found == [LabJudge]}
    assert judged == {("embedded", "auto"), ("embedded", "lab"), ("DIR/model", "lab")}
    with pytest.raises(InputError, match="judge 'laboratory'"):
        judges_of("embedded", "laboratory")
