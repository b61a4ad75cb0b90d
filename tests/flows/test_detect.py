"""Detection: what it writes, how it goes on, what it refuses."""

import json

import numpy as np
import pyarrow.csv as pcsv
import pytest
import torch
from PIL import Image

from mnemoscope.data.prompts import Prompt
from mnemoscope.errors import InputError, ModelError, RunError
from mnemoscope.flows.detect import Detection, detect
from mnemoscope.mitigations.guidance_interval import GuidanceInterval
from mnemoscope.models import load_model
from mnemoscope.reporting.scores import RECOMMENDED
from mnemoscope.runs.folder import open_run
from mnemoscope.runs.parts import decode
from mnemoscope.runs.tables import TABLES
from tests.tiny import tiny_pipeline

PROMPTS = ["target 0", "target 1", "never seen", "target 2", "neither seen"]
NAMES = ["gap_norm", "attention_entropy", "consensus_energy"]
OPTIONS = {"detectors": NAMES, "seeds": 2, "steps": 5}
COLUMNS = ("prompt_id", "recipe", "detector", "kind", "score", "reason", "seeds", "network_calls")


@pytest.fixture
def oracle():
    return load_model("oracle:memorizer")


@pytest.fixture(scope="module")
def plain():
    return detect(load_model("oracle:memorizer"), PROMPTS, **OPTIONS, batch=2)


class Interrupting:
    """A model that is interrupted at some prompt."""

    def __init__(self, inner, at):
        self.inner, self.left = inner, at

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def encode_prompts(self, texts, guidance=1.0):
        if list(texts) != [""]:
            self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.inner.encode_prompts(texts, guidance)


def assert_same(found, wanted, rtol=0.0):
    for column in COLUMNS:
        one, other = (scores.table[column].to_pylist() for scores in (found, wanted))
        if column == "score" and rtol:
            np.testing.assert_allclose(np.array(one, float), np.array(other, float), rtol=rtol)
        else:
            assert one == other, column


@pytest.mark.parametrize("at", [1, 3, 5])
def test_scores_go_on_where_they_were_interrupted(oracle, plain, tmp_path, at):
    with pytest.raises(KeyboardInterrupt):
        detect(Interrupting(oracle, at), PROMPTS, out=tmp_path, **OPTIONS, batch=2)
    torn = open_run(tmp_path)
    assert torn.manifest.status == "interrupted"
    assert torn.table("scores").num_rows == (at - 1) * len(NAMES)
    again = detect(oracle, PROMPTS, out=tmp_path, **OPTIONS, batch=2)
    assert_same(again, plain)
    # The bank's half of the first call is computed anew, what was scored is not.
    assert again.network_calls == plain.network_calls - 2 * (at - 1)


def test_they_go_on_with_another_batch(oracle, plain, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        detect(Interrupting(oracle, 3), PROMPTS, out=tmp_path, **OPTIONS, batch=2)
    again = detect(oracle, PROMPTS, out=tmp_path, **OPTIONS, batch=8)
    assert_same(again, plain, rtol=1e-5)


def test_a_finished_detection_calls_no_network(oracle, plain, tmp_path):
    detect(oracle, PROMPTS, out=tmp_path, **OPTIONS, batch=2)
    again = detect(oracle, PROMPTS, out=tmp_path, **OPTIONS, batch=2)
    assert again.network_calls == 0
    assert_same(again, plain)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"steps": 6}, "steps: 5 there, 6 here"),
        ({"guidance": 2.0}, "guidance: 7.5 there, 2.0 here"),
        ({"noise": "fresh"}, "noise: 'shared' there, 'fresh' here"),
        ({"detectors": ["gap_rms"]}, "detectors"),
        ({"intervention": GuidanceInterval()}, "intervention"),
    ],
)
def test_a_folder_of_another_question_is_refused(oracle, tmp_path, changes, word):
    detect(oracle, PROMPTS[:1], out=tmp_path, **OPTIONS)
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(RunError, match=word):
        detect(oracle, PROMPTS[:1], out=tmp_path, **(OPTIONS | changes))
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_folder_of_other_prompts_or_another_model_is_refused(oracle, tmp_path):
    detect(oracle, PROMPTS[:1], out=tmp_path, **OPTIONS)
    with pytest.raises(RunError, match="prompts or training images"):
        detect(oracle, PROMPTS[1:2], out=tmp_path, **OPTIONS)
    with pytest.raises(RunError, match="weights of the model"):
        detect(load_model("oracle:mixture"), PROMPTS[:1], out=tmp_path, **OPTIONS)


def test_a_damaged_part_is_scored_again(oracle, plain, tmp_path):
    detect(oracle, PROMPTS, out=tmp_path, **OPTIONS, batch=2)
    part = sorted((tmp_path / "scores").glob("*.parquet"))[1]
    part.write_bytes(part.read_bytes()[:-40])
    again = detect(oracle, PROMPTS, out=tmp_path, **OPTIONS, batch=2)
    assert_same(again, plain)
    # Seeds of the bank, and those of one prompt.
    assert again.network_calls == 4


def test_it_leaves_a_run_folder_of_its_own(oracle, tmp_path):
    scored = detect(oracle, PROMPTS, out=tmp_path, **OPTIONS)
    run = open_run(tmp_path)
    assert run.manifest.flow == "detection"
    assert run.manifest.status == "complete"
    assert run.table("scores").schema.names == [
        "prompt_id", "recipe", "guidance", *TABLES["scores"].schema.names[2:],
    ]  # fmt: skip
    assert run.table("prompts")["prompt"].to_pylist() == PROMPTS
    assert run.table("recipes")["noise"].to_pylist() == ["shared"]
    assert scored.texts.to_pylist() == PROMPTS


def test_nothing_is_left_where_no_folder_is_given(oracle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    detect(oracle, PROMPTS[:1], **OPTIONS)
    assert not list(tmp_path.iterdir())


def test_scores_are_written_in_three_formats(oracle, tmp_path):
    prompts = [Prompt("one", "target 0"), Prompt("two", "target 1")]
    scored = detect(oracle, prompts, detectors=["gap_norm", "random"], seeds=1, steps=5)
    for ending in ("parquet", "csv", "jsonl"):
        scored.write(tmp_path / f"scores.{ending}")
    wanted = scored.table["score"].to_pylist()
    written = decode((tmp_path / "scores.parquet").read_bytes())
    assert written["prompt"].to_pylist() == ["target 0"] * 2 + ["target 1"] * 2
    assert written.drop_columns("prompt").equals(scored.table)
    assert pcsv.read_csv(tmp_path / "scores.csv")["score"].to_pylist() == pytest.approx(wanted)
    lines = (tmp_path / "scores.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == written["prompt"].to_pylist()
    assert [json.loads(line)["score"] for line in lines] == wanted
    with pytest.raises(InputError, match="parquet"):
        scored.write(tmp_path / "scores.txt")
    with pytest.raises(InputError, match="was not run"):
        scored.of("confidence")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"seeds": 0}, "seeds 0"),
        ({"batch": 0}, "batch 0"),
        ({"steps": 0}, "steps 0"),
        ({"guidance": 0.5}, "guidance 0.5"),
        ({"guidance": float("nan")}, "guidance nan"),
        ({"noise": "own"}, "noise"),
        ({"sedes": 3}, "no option 'sedes'"),
        ({"detectors": []}, "no detector given"),
        ({"detectors": "none"}, "no detector given"),
        ({"detectors": "first_step"}, "Did you mean 'first-step'"),
        ({"detectors": "consensus_whitened", "seeds": 1}, "seeds 1 given; consensus_whitened"),
        ({"lora": "x.safetensors"}, "give lora to load_model"),
        ({"false_positives": 0.0}, "false positives 0"),
    ],
)
def test_senseless_options_are_refused(oracle, options, word):
    with pytest.raises((InputError, ModelError), match=word):
        detect(oracle, ["target 0"], **options)


def test_a_pipeline_object_is_scored_like_its_model():
    pipeline = tiny_pipeline()
    options = {"detectors": "gap_norm", "seeds": 2, "steps": 4}
    found = detect(pipeline, ["a cat"], **options)
    assert found.texts.to_pylist() == ["a cat"]
    model = load_model(pipeline)
    again = detect(model, ["a cat"], **options)
    np.testing.assert_array_equal(found.of("gap_norm"), again.of("gap_norm"))
    with pytest.raises(ModelError, match="a dict was given"):
        detect({}, ["a cat"])


def test_the_recommended_score_is_the_default(oracle):
    found = detect(oracle, PROMPTS, seeds=2, steps=5)
    assert [detector.name for detector in found.detectors] == [RECOMMENDED]
    assert found.texts.to_pylist() == PROMPTS


def test_a_text_is_named_alike_wherever_it_comes_from(oracle, tmp_path):
    (tmp_path / "list.txt").write_text("".join(f"{text}\n" for text in PROMPTS))
    options = {"detectors": ["gap_norm"], "seeds": 1, "steps": 3}
    from_file = detect(oracle, tmp_path / "list.txt", **options)
    from_memory = detect(oracle, PROMPTS[::-1], **options)
    assert from_file.prompt_ids == from_memory.prompt_ids[::-1]


def test_a_text_in_place_of_a_list_is_told(oracle):
    with pytest.raises(InputError, match="in Python as a list"):
        detect(oracle, "a cat")


def test_no_prompt_is_refused(oracle):
    with pytest.raises(InputError, match="no prompt given"):
        detect(oracle, [])


def test_another_ending_is_refused_before_anything_is_loaded(tmp_path):
    for name in ("scores.txt", "scores.xlsx"):
        with pytest.raises(InputError, match=r"\.parquet, \.csv, \.jsonl"):
            Detection(out=name)
    for name in ("runs/sd1.4", tmp_path, "scores.csv", "runs/plain"):
        assert Detection(out=name).out == str(name)


def test_a_caption_that_a_spreadsheet_would_compute_is_led_by_an_apostrophe(oracle, tmp_path):
    scored = detect(oracle, ['=HYPERLINK("x")'], detectors="random", seeds=1, steps=2)
    scored.write(tmp_path / "scores.csv")
    assert pcsv.read_csv(tmp_path / "scores.csv")["prompt"].to_pylist() == ['\'=HYPERLINK("x")']


def test_a_sampler_of_another_kind_of_model_is_refused(oracle):
    with pytest.raises(ModelError, match="flow"):
        detect(oracle, ["target 0"], scheduler="flow-euler")


def test_a_prompt_beyond_the_window_is_said():
    model = load_model(tiny_pipeline(), device="cpu")
    prompts = ["x" * 200, "short"]
    scored = detect(model, prompts, detectors=["gap_norm"], seeds=1, steps=4)
    assert scored.truncated == scored.prompt_ids[:1]


def test_what_is_shared_is_computed_once(oracle):
    shared = detect(oracle, PROMPTS, detectors=["gap_norm"], seeds=2, steps=5)
    alone = detect(oracle, PROMPTS, detectors=["gap_norm"], seeds=2, steps=5, noise="independent")
    assert shared.network_calls == 2 + 2 * 5
    assert alone.network_calls == 2 * 2 * 5
    assert shared.mean("gap_norm", "network_calls") == 2
    assert alone.mean("gap_norm", "network_calls") == 4


def test_equal_prompts_have_the_same_noise_unless_it_is_fresh(oracle):
    prompts = [Prompt("a", "never seen"), Prompt("b", "never seen")]
    for noise, same in (("shared", True), ("independent", False), ("fresh", False)):
        found = detect(oracle, prompts, detectors=["confidence"], seeds=2, steps=5, noise=noise)
        one, other = found.of("confidence")
        assert (one == other) == same, noise


def test_an_intervention_changes_what_is_scored(oracle):
    options = {"detectors": ["dsm:0", "gap_norm"], "seeds": 2, "steps": 5}
    plain = detect(oracle, PROMPTS, **options)
    steered = detect(oracle, PROMPTS, intervention=GuidanceInterval(strength=0.5), **options)
    # At the first call the prompt samples alone, and the branches are what they were; the turn of
    # the prediction in the first step is that of an unguided path.
    np.testing.assert_allclose(steered.of("gap_norm"), plain.of("gap_norm"), rtol=1e-5)
    unguided = detect(oracle, PROMPTS, guidance=1.0, **options)
    np.testing.assert_allclose(steered.of("dsm:0"), unguided.of("dsm:0"), rtol=1e-4, atol=1e-9)
    assert not np.allclose(steered.of("dsm:0"), plain.of("dsm:0"), rtol=1e-3)


def test_a_file_of_prompts_with_pictures(oracle, tmp_path):
    picture = (oracle.decode(oracle.denoiser.means[:1].float())[0] * 255).round().byte()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / "0.png")
    (tmp_path / "list.jsonl").write_text(
        '{"prompt": "target 0", "images": ["0.png"], "prompt_id": "a"}\n'
        '{"prompt": "never seen", "prompt_id": "b"}\n'
    )
    names = ["denoising_loss:caption", "gap_norm"]
    found = detect(oracle, tmp_path / "list.jsonl", detectors=names, seeds=2, steps=5)
    rows = {(row["prompt_id"], row["detector"]): row for row in found.table.to_pylist()}
    assert rows["a", "denoising_loss:caption"]["score"] is not None
    assert "no training image" in rows["b", "denoising_loss:caption"]["reason"]
    assert rows["b", "denoising_loss:caption"]["network_calls"] == 0
    assert rows["b", "gap_norm"]["score"] is not None
    assert torch.isfinite(torch.tensor(found.of("gap_norm"))).all()
