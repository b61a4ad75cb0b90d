"""What goes wrong with one prompt is told of that prompt; all others are what they would be."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from PIL import Image

from mnemoscope.cli import main
from mnemoscope.data.prompts import Prompt
from mnemoscope.detectors import get_detector
from mnemoscope.errors import ModelError
from mnemoscope.flows import options
from mnemoscope.flows import study as module
from mnemoscope.flows.detect import detect
from mnemoscope.flows.study import Study, run
from mnemoscope.models import load_model
from mnemoscope.runs.folder import open_run
from mnemoscope.runs.interruption import interruptible

ROOT = Path(__file__).parents[2]
VICTIM = "target 1"
PROMPTS = ["target 0", VICTIM, "target 2", "never seen"]

ERRORS = (
    RuntimeError("mat1 and mat2"),
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    ValueError("a text too long"),
    KeyError("pad"),
    IndexError("list index"),
    AssertionError(),
    ZeroDivisionError("division"),
    TypeError("unhashable"),
    OSError("No such file"),
)


KEYS = ("prompt_id", "law", "seed", "call")


class Faulty:
    """A model that fails for one prompt at one place.

    Args:
        inner: The model.
        place: Where: "encode_prompts", "token_counts", "denoiser", "decode", or "decode nan".
        error: What it raises.
    """

    def __init__(self, inner, place, error=None):
        self.inner, self.place, self.error = inner, place, error
        self.victim = inner.encode_prompts([VICTIM]).parts["log_weights"][0]
        self.target = inner.denoiser.means[1].flatten()

    def __getattr__(self, name):
        return getattr(self.inner, name)

    @property
    def denoiser(self):
        return self if self.place == "denoiser" else self.inner.denoiser

    @property
    def kind(self):
        return self.inner.denoiser.kind

    def __call__(self, x, timestep, condition):
        if bool((condition.parts["log_weights"] == self.victim).all(dim=1).any()):
            raise self.error
        return self.inner.denoiser(x, timestep, condition)

    def encode_prompts(self, texts, guidance=1.0):
        if self.place == "encode_prompts" and VICTIM in texts:
            raise self.error
        return self.inner.encode_prompts(texts, guidance)

    def token_counts(self, texts):
        if self.place == "token_counts" and VICTIM in texts:
            raise self.error
        return self.inner.token_counts(texts)

    def decode(self, latents):
        images = self.inner.decode(latents)
        near = (latents.flatten(1).double() - self.target.double()).norm(dim=1) < 2
        if self.place == "decode" and bool(near.any()):
            raise self.error
        if self.place == "decode nan":
            images = images.clone()
            images[near] = torch.nan
        return images


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    path = tmp_path_factory.mktemp("listed") / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return path


def study(listed, out, model=None, **changes):
    values = {
        "model": "oracle:memorizer", "prompts": listed, "seeds": 2, "steps": 3, "guidance": (1.0,),
        "out": out, "device": "cpu", "similarity": ("l2",),
    }  # fmt: skip
    return run(Study(**(values | changes)), model=model)


@pytest.fixture(scope="module")
def whole(listed, tmp_path_factory):
    return study(listed, tmp_path_factory.mktemp("whole") / "run")


def numbers(run):
    """Return the record of every prompt but the victim."""
    # A unit that was halved has the same rows in another order.
    table = run.table("gram").sort_by([(name, "ascending") for name in KEYS])
    victim = [
        row["prompt_id"] for row in run.table("prompts").to_pylist() if row["prompt"] == VICTIM
    ]
    others = table.filter(pc.field("prompt_id") != victim[0])
    columns = [name for name in others.column_names if "·" in name]
    return np.stack([others[name].to_numpy(zero_copy_only=False) for name in columns]), victim[0]


def assert_others_untouched(found, whole):
    ours, theirs = numbers(found)[0], numbers(whole)[0]
    np.testing.assert_allclose(ours, theirs, rtol=5e-6, atol=5e-4)


PLACES = ("encode_prompts", "denoiser", "decode")


@pytest.mark.parametrize("place", PLACES)
def test_an_error_in_one_prompt_of_a_study_marks_it_and_the_study_goes_on(
    listed, whole, tmp_path, place
):
    tried = survived = 0
    for at, error in enumerate(ERRORS if place == "encode_prompts" else ERRORS[:3]):
        tried += 1
        model = Faulty(load_model("oracle:memorizer"), place, error)
        found = study(listed, tmp_path / str(at), model)
        assert found.manifest.status == "complete"
        assert found.manifest.samples == {"ok": 6, "error": 2}
        bad = found.table("samples").filter(pc.field("status") == "error").to_pylist()
        assert {row["prompt_id"] for row in bad} == {numbers(whole)[1]}
        assert all(type(error).__name__ in row["reason"] for row in bad)
        assert all(row["image"] is None for row in bad)
        assert_others_untouched(found, whole)
        survived += 1
    assert survived == tried


def test_a_picture_that_is_not_finite_counts_nowhere(listed, whole, tmp_path):
    model = Faulty(load_model("oracle:memorizer"), "decode nan")
    found = study(listed, tmp_path / "run", model, filmstrip=2)
    assert found.manifest.samples == {"ok": 6, "nonfinite": 2}
    victim = numbers(whole)[1]
    path = found.table("gram").filter(pc.field("law") == "path")
    for rows in (path, found.table("convergence"), found.table("filmstrips")):
        assert victim not in rows["prompt_id"].to_pylist()
        assert rows.num_rows
    assert_others_untouched(found, whole)


def test_a_decoder_that_holds_one_picture_at_a_time_loses_none(listed, whole, tmp_path):
    model = load_model("oracle:memorizer")
    decode = model.decode

    def narrow(latents):
        if len(latents) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(latents)

    model.decode = narrow
    found = study(listed, tmp_path / "run", model)
    assert found.manifest.samples == {"ok": 8}
    assert found.table("samples")["image"].equals(whole.table("samples")["image"])


def test_a_length_that_cannot_be_told_is_null(listed, tmp_path):
    model = Faulty(load_model("oracle:memorizer"), "token_counts", ValueError("no"))
    found = study(listed, tmp_path / "run", model, detectors=("none",))
    assert found.manifest.samples == {"ok": 8}
    told = {row["prompt"]: row["tokens"] for row in found.table("prompts").to_pylist()}
    assert told[VICTIM] is None
    assert told["target 0"] is not None


def test_the_price_is_probed_on_as_much_as_memory_holds(listed, tmp_path):
    bank = module.StudyWorker(
        Study(model="oracle:memorizer", batch=8), load_model("oracle:memorizer"), ()
    ).first
    inner, sizes = bank.model.denoiser, []

    class Narrow:
        kind = inner.kind

        def __call__(self, x, timestep, condition):
            sizes.append(len(x))
            if len(x) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return inner(x, timestep, condition)

    bank.model.denoiser = Narrow()
    assert module.seconds_a_row(bank) > 0
    assert sizes == [16, 8, 4, 4]

    class Broken:
        kind = inner.kind

        def __call__(self, x, timestep, condition):
            raise torch.OutOfMemoryError("CUDA out of memory")

    bank.model.denoiser = Broken()
    assert math.isnan(module.seconds_a_row(bank))
    assert module.duration(math.nan) == "an unknown time"


def test_what_is_said_on_purpose_ends_the_study(listed, tmp_path):
    model = Faulty(load_model("oracle:memorizer"), "encode_prompts", ModelError("cannot do it"))
    with pytest.raises(ModelError, match="cannot do it"):
        study(listed, tmp_path / "run", model)
    assert open_run(tmp_path / "run").manifest.status == "interrupted"


NAMES = ["gap_norm", "consensus_energy"]


@pytest.mark.parametrize("place", ["encode_prompts", "denoiser"])
def test_an_error_in_one_prompt_of_a_detection_marks_it(tmp_path, place):
    options = {"detectors": NAMES, "seeds": 2, "steps": 3}
    plain = detect(load_model("oracle:memorizer"), PROMPTS, **options)
    tried = survived = 0
    for at, error in enumerate(ERRORS if place == "encode_prompts" else ERRORS[:3]):
        tried += 1
        model = Faulty(load_model("oracle:memorizer"), place, error)
        found = detect(model, PROMPTS, out=tmp_path / str(at), **options)
        for name in NAMES:
            others = np.array([True, False, True, True])
            assert np.isnan(found.of(name)[1])
            np.testing.assert_allclose(
                found.of(name)[others], plain.of(name)[others], rtol=1e-5, atol=1e-6
            )
        held = open_run(tmp_path / str(at))
        assert held.manifest.samples == {"error": 2}
        rows = held.table("samples").to_pylist()
        assert all(type(error).__name__ in row["reason"] for row in rows)
        survived += 1
    assert survived == tried


def test_a_detector_that_fails_on_one_prompt_takes_no_other_along(monkeypatch):
    kind = type(get_detector("gap_norm"))
    score = kind.score

    def faulty(self, evidence):
        found = score(self, evidence)
        if evidence.prompts > 1:
            raise LookupError("one of them")
        return found

    plain = detect(load_model("oracle:memorizer"), PROMPTS, detectors=NAMES, seeds=2, steps=3)
    monkeypatch.setattr(kind, "score", faulty)
    found = detect(load_model("oracle:memorizer"), PROMPTS, detectors=NAMES, seeds=2, steps=3)
    for name in NAMES:
        np.testing.assert_allclose(found.of(name), plain.of(name), rtol=1e-5)

    def always(self, evidence):
        raise LookupError("all of them")

    monkeypatch.setattr(kind, "score", always)
    found = detect(load_model("oracle:memorizer"), PROMPTS, detectors=NAMES, seeds=2, steps=3)
    assert np.isnan(found.of("gap_norm")).all()
    assert "LookupError: all of them" in found.table["reason"].to_pylist()
    np.testing.assert_allclose(
        found.of("consensus_energy"), plain.of("consensus_energy"), rtol=1e-5
    )


def test_an_image_that_cannot_be_read_is_its_prompts_affair(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    listed = [
        Prompt("a", "target 0", (tmp_path / "good.png",)),
        Prompt("b", "target 1", (tmp_path / "bad.png",)),
    ]
    found = detect(
        load_model("oracle:memorizer"),
        listed,
        detectors=["denoising_loss:caption"],
        seeds=2,
        steps=3,
    )
    scores = found.of("denoising_loss:caption")
    assert np.isfinite(scores[0])
    assert np.isnan(scores[1])
    assert "bad.png" in found.table["reason"].to_pylist()[1]


def test_what_failed_is_tried_again_when_asked(listed, whole, tmp_path):
    model = Faulty(load_model("oracle:memorizer"), "decode", RuntimeError("out of memory"))
    study(listed, tmp_path / "run", model)
    again = study(listed, tmp_path / "run")
    assert again.manifest.samples == {"ok": 6, "error": 2}
    again = study(listed, tmp_path / "run", retry=True)
    assert again.manifest.samples == {"ok": 8}
    assert again.table("samples")["image"].equals(whole.table("samples")["image"])


def test_scores_that_failed_are_made_again_when_asked(tmp_path):
    options = {"detectors": NAMES, "seeds": 2, "steps": 3, "out": tmp_path / "run"}
    plain = detect(load_model("oracle:memorizer"), PROMPTS, **(options | {"out": None}))
    model = Faulty(load_model("oracle:memorizer"), "encode_prompts", ValueError("no"))
    detect(model, PROMPTS, **options)
    assert np.isnan(detect(load_model("oracle:memorizer"), PROMPTS, **options).of("gap_norm")[1])
    again = detect(load_model("oracle:memorizer"), PROMPTS, retry=True, **options)
    assert again.of("gap_norm").tolist() == plain.of("gap_norm").tolist()
    assert open_run(tmp_path / "run").manifest.samples == {}


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with interruptible(), pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_is_an_interruption(listed, tmp_path, number):
    code = (
        "import signal, sys, time\n"
        # Under `nohup` it would be ignored, and stay so.
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "from tests.flows import test_isolation as here\n"
        "from mnemoscope.flows.study import StudyWorker\n"
        "whole = StudyWorker.gather\n"
        "def slow(*args):\n"
        "    found = whole(*args)\n"
        "    (here.Path(sys.argv[2]) / 'begun').touch()\n"
        "    time.sleep(60)\n"
        "    return found\n"
        "StudyWorker.gather = slow\n"
        "try:\n"
        "    here.study(sys.argv[1], sys.argv[2] + '/run')\n"
        "except KeyboardInterrupt as error:\n"
        "    sys.exit(f'told {error}')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(listed), str(tmp_path)], cwd=ROOT,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, number)
    assert f"told {signal.Signals(number).name}" in process.communicate()[1]
    told = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert told["status"] == "interrupted"


@pytest.mark.parametrize(("texts", "status"), [((VICTIM, "target 0"), 3), (("target 0",), 0)])
def test_detect_ends_with_status_3_where_samples_are_marked(
    texts, status, tmp_path, monkeypatch, capsys
):
    faulty = Faulty(load_model("oracle:memorizer"), "denoiser", ValueError("struck"))
    monkeypatch.setattr(options, "load_model", lambda source: faulty)
    given = [part for text in texts for part in ("--prompt", text)]
    more = ["--seeds", "2", "--steps", "3", "--out", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", ["mnemoscope", "detect", "oracle:memorizer", *given, *more])
    try:
        main()
        ended = 0
    except SystemExit as end:
        ended = end.code or 0
    assert ended == status
    assert ("excluded from every number: 2 error" in capsys.readouterr().err) == (status == 3)
