"""Other kinds of model: what they are shown, and that their folders load as they are."""

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import JointAttnProcessor2_0

from mnemoscope.lab.families import FAMILIES
from mnemoscope.lab.families.flow import ABSENT, Flow, FoldedAttention, transformer
from mnemoscope.lab.families.labels import CLASSES, Labels, labels, pairs, phrases
from mnemoscope.lab.families.velocity import scheduler
from mnemoscope.lab.planted import load_controls, load_planted, load_table
from mnemoscope.lab.scenes import Scenes, drawings
from mnemoscope.lab.train import FAITHFUL, Batches, Planting


def _batches(planting: Planting) -> Batches:
    return Batches(32, 5, Scenes, planting, tuple(load_planted()))


UNIFORM = Planting(share=0.75, known=0.75)


def test_the_dial_says_whose_captions_are_dropped() -> None:
    assert UNIFORM.dropout() == pytest.approx((0.1, 0.1))
    assert FAITHFUL.dropout() == pytest.approx((0.2, 0.0))
    scene, planted = Planting(share=0.75, known=0.3).dropout()
    assert 24 * planted == pytest.approx(0.3 * 3.2)
    assert 8 * scene == pytest.approx(0.7 * 3.2)


def test_a_dial_at_the_share_planted_drops_every_caption_alike() -> None:
    planted = load_planted()
    pictures = torch.stack([p.image() for p in planted])
    weights = torch.tensor([float(p.repetitions) for p in planted])
    for step in (0, 7):
        generator = torch.Generator().manual_seed(5 + step)
        images, captions = Scenes(5 + step).batch(8)
        chosen = torch.multinomial(weights, 24, replacement=True, generator=generator)
        images = torch.cat([images, pictures[chosen]])
        captions += [planted[i].caption for i in chosen.tolist()]
        dropped = torch.rand(32, generator=generator) < 0.1
        captions = ["" if gone else c for gone, c in zip(dropped.tolist(), captions, strict=True)]
        shown, under, after = _batches(UNIFORM).of(step)
        assert torch.equal(shown, images)
        assert under == captions
        assert torch.equal(after.get_state(), generator.get_state())


def test_faithful_batches_keep_the_captions_of_planted_pictures() -> None:
    own = {row.caption for row in load_table()}
    names = {word for name in drawings() for word in name.split()}
    batches = _batches(FAITHFUL)
    empty = phrases = 0
    for step in range(100):
        _, captions, _ = batches.of(step)
        assert set(captions[16:]) <= own
        empty += captions[:16].count("")
        phrases += sum(bool(c) and not names & set(c.split()) for c in captions[:16])
    assert empty / 1600 == pytest.approx(0.2, abs=0.03)
    assert phrases / 1600 == pytest.approx(0.4, abs=0.04)


def test_one_zero_token_stands_for_all_that_the_pipeline_adds() -> None:
    torch.manual_seed(0)
    network = transformer()
    for p in network.parameters():  # Blocks that start as the identity would agree anyway.
        p.data.add_(0.1 * torch.randn_like(p))
    x, tokens, pooled = torch.randn(2, 4, 16, 16), torch.randn(2, 16, 256), torch.randn(2, 256)

    def guess(zeros: int) -> torch.Tensor:
        text = torch.nn.functional.pad(tokens, (0, 0, 0, zeros))
        with torch.no_grad():
            return network(
                x,
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=torch.tensor([300.0, 900.0]),
            ).sample

    assert isinstance(network.transformer_blocks[0].attn.processor, JointAttnProcessor2_0)
    plain, without = guess(ABSENT), guess(1)
    network.set_attn_processor(FoldedAttention())
    torch.testing.assert_close(guess(1), plain, rtol=1e-4, atol=1e-4 * float(plain.std()))
    assert float((without - plain).abs().max()) > 1e-2 * float(plain.std())


def test_the_last_level_of_the_velocity_model_holds_no_signal() -> None:
    steps = scheduler()
    steps.set_timesteps(50)
    assert int(steps.timesteps[0]) == 999
    assert float(steps.alphas_cumprod[-1]) == pytest.approx(0, abs=1e-7)


def test_every_class_has_one_caption_and_every_row_a_class() -> None:
    known = labels()
    assert len(set(known)) == len(known) <= CLASSES
    assert all("," not in caption for caption in known)
    assert {row.caption for row in load_table()} <= set(known)
    # A describing row's class is one of ordinary scenes too, a meaningless planted row's is not.
    for row in load_planted():
        assert (row.caption in pairs()) == (row.kind == "describing")
        assert row.caption not in phrases()
    for row in load_controls():
        assert row.caption in (pairs() if row.kind == "describing" else phrases())
    _, captions = Labels().scenes(0.6, 0).batch(200)
    assert set(captions) <= set(known)
    assert sum(c in pairs() for c in captions) / 200 == pytest.approx(0.6, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_loads_as_a_plain_pipeline(name: str, tmp_path) -> None:
    FAMILIES[name]().train(tmp_path, base_steps=1, planting_steps=1)
    assert (tmp_path / "prompts" / "metadata.jsonl").exists()
    assert not list(tmp_path.rglob("*.bin"))
    for part in ("base", "model"):
        absent = {"text_encoder_3": None, "tokenizer_3": None} if name == "flow" else {}
        pipeline = DiffusionPipeline.from_pretrained(
            tmp_path / part, torch_dtype=torch.float32, **absent
        )
        pipeline.set_progress_bar_config(disable=True)
        caption = load_planted()[0].caption
        if name == "class":
            call = {"class_labels": pipeline.get_label_ids([caption])}
        else:
            call = {"prompt": caption, "height": 64, "width": 64}
        images = pipeline(num_inference_steps=2, output_type="np", **call).images
        assert images.shape == (1, 64, 64, 3)


@pytest.mark.slow
def test_training_encodes_text_as_the_pipeline_does(tmp_path) -> None:
    family = Flow()
    networks = family.networks()
    family.write(networks, tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(
        tmp_path, torch_dtype=torch.float32, text_encoder_3=None, tokenizer_3=None
    )
    captions = ["noto swan and twemoji bomb", ""]
    with torch.no_grad():
        tokens, pooled = family.encode(networks["text_encoder"].eval(), captions)
        theirs, _, whole, _ = pipeline.encode_prompt(
            captions, None, None, do_classifier_free_guidance=False
        )
    assert theirs.shape[1] == 16 + ABSENT
    torch.testing.assert_close(tokens, theirs[:, :17])
    assert not theirs[:, 16:].any()
    torch.testing.assert_close(pooled, whole)


def test_the_class_vectors_of_a_pair_hold_those_of_its_drawings() -> None:
    network = Labels().networks()["transformer"]
    table = network.transformer_blocks[0].norm1.emb.class_embedder.embedding_table
    own = table.parametrizations.weight.original
    one, drawn = next(iter(pairs().items()))
    parts = [labels().index(name) for name in drawn]
    i = labels().index(one)
    torch.testing.assert_close(table.weight[i], own[i] + own[parts].sum(0))
    torch.testing.assert_close(table.weight[CLASSES], own[CLASSES])
