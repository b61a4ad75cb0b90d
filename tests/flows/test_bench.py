"""The benchmark end to end, on a perfect memorizer whose truth is known."""

import json
import math
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from benchmarks.released import ReleasedGapNorm, compared
from mnemoscope.errors import InputError
from mnemoscope.flows.bench import best_first_step, leaderboard, picture, summary
from mnemoscope.flows.detect import detect
from mnemoscope.models import load_model
from mnemoscope.runs.folder import open_run
from mnemoscope.runs.tables import TABLES

DETECTORS = ["gap_norm", "consensus_energy", "consensus_sharpness", "persistence", "random",
             "prompt_length", "denoising_loss:caption"]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return load_model("oracle:memorizer")


def known_and_strangers(model, folder):
    """Write eight targets under their prompts, and eight pictures under prompts nobody knows."""
    targets = model.decode(model.denoiser.means[:8])
    # Black and white, so that no grey sample comes near one by chance.
    noise = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(8))
    strangers = (noise > 0.5).float()
    rows = []
    for at, image in enumerate([*targets, *strangers]):
        pixels = (image.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().cpu().numpy()
        Image.fromarray(pixels).save(folder / f"{at}.png")
        text = f"target {at}" if at < 8 else f"stranger {at}"
        rows.append({"prompt": text, "image": f"{at}.png", "prompt_id": f"q{at:02d}"})
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "list.jsonl"


@pytest.fixture(scope="module")
def prompts(model, tmp_path_factory):
    return known_and_strangers(model, tmp_path_factory.mktemp("list"))


@pytest.fixture(scope="module")
def board(model, prompts, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "out"
    return leaderboard(model, prompts, out=out, detectors=DETECTORS, seeds=2, steps=12)


def test_severity_finds_the_targets(board):
    assert board.ranking.truth.memorized.tolist() == [True] * 8 + [False] * 8


def test_detectors_of_the_gap_are_perfect_and_chance_is_not(board):
    for name in ("gap_norm", "consensus_energy", "denoising_loss:caption"):
        assert board.ranking.get(name).value == 1
    assert board.ranking.get("random").value < 1
    assert "at least 100" in board.ranking.get("gap_norm", "tpr").reason


def test_the_folder_holds_what_the_page_says(board):
    ranking = pq.read_table(board.path / "ranking.parquet")
    assert ranking.schema.equals(TABLES["ranking"].schema)
    assert pq.read_table(board.path / "scores.parquet").num_rows == 16 * len(DETECTORS)
    facts = json.loads((board.path / "bench.json").read_text())
    assert facts["memorized"] == facts["others"] == 8
    assert facts["split"]["setting"] + facts["split"]["judging"] == 16
    text = (board.path / "leaderboard.md").read_text()
    assert text == summary(board)
    assert "less the best published one, `gap_norm` (2): AUC" in text
    assert "chosen on one half, judged on the other" in text
    for heading in ("AUC by population", "Thresholds set", "Rank agreement", "Withheld"):
        assert heading in text
    assert "needs at least 100" in text
    agreement = pq.read_table(board.path / "agreement.parquet")
    assert agreement.schema.equals(TABLES["agreement"].schema)
    assert agreement.num_rows == len(DETECTORS) * (len(DETECTORS) - 1) // 2
    with Image.open(board.path / "auc-against-cost.png") as image:
        assert min(image.size) > 300
    assert not (board.path / "scoring").exists()


def test_its_folder_says_how_ordinary_prompts_score(model, board):
    options = {"detectors": "gap_norm", "seeds": 2, "steps": 12, "ordinary": board.path}
    found = detect(model, ["target 0", "stranger 99"], false_positives=0.2, **options)
    ours = board.scores.of("gap_norm")[~board.ranking.truth.memorized]
    np.testing.assert_array_equal(found.ordinary["gap_norm"].scores, np.sort(ours))
    assert found.told()["flagged"].to_pylist() == [True, False]


def test_the_picture_names_what_no_cheaper_detector_equals(board):
    panel = picture(board)
    dots = {
        name: (x, y)
        for group in panel.points
        for name, x, y in zip(group.prompt_ids, group.x, group.y, strict=True)
    }
    # A detector without an AUC has no place in the picture, and its reason is written out.
    without = {name for name in DETECTORS if not math.isfinite(board.ranking.get(name).value)}
    assert set(dots) == set(DETECTORS) - without
    assert all(board.ranking.get(name).reason for name in without)
    for name, (x, y) in dots.items():
        beaten = any(a <= x and b >= y for other, (a, b) in dots.items() if other != name)
        assert name not in panel.named or not any(a <= x and b > y for a, b in dots.values())
        assert beaten or name in panel.named


def test_one_class_is_said_before_the_scoring(model, prompts, board, tmp_path, monkeypatch):
    truth = board.ranking.truth
    one = replace(truth, judged=truth.memorized)
    scored = []
    monkeypatch.setattr("mnemoscope.flows.bench.truth_of", lambda *_, **__: one)
    monkeypatch.setattr("mnemoscope.flows.bench.detect", lambda *_, **__: scored.append(1))
    with pytest.raises(InputError, match="8 memorized prompts and 0 others"):
        leaderboard(model, prompts, run=board.run, out=tmp_path, detectors=["gap_norm"])
    assert not scored


def test_the_best_of_ours_meets_the_best_published(board):
    ours, published = best_first_step(board.ranking, board.scores)
    assert ours in ("consensus_energy", "consensus_sharpness")
    assert published == "gap_norm"


def test_a_released_variant_is_set_beside_the_correct_form(model, prompts, board, tmp_path):
    found = leaderboard(
        model,
        prompts,
        run=open_run(board.path / "study"),
        out=tmp_path,
        detectors=["gap_norm", ReleasedGapNorm(), "consensus_energy"],
        seeds=2,
        steps=12,
    )
    lines = compared(found).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| `gap_norm` | 1.000 ")


def test_a_finished_study_is_used_again(model, prompts, board, tmp_path):
    run = open_run(board.path / "study")
    again = leaderboard(
        model, prompts, run=run, out=tmp_path, detectors=["gap_norm"], seeds=2, steps=12
    )
    assert again.ranking.get("gap_norm").value == board.ranking.get("gap_norm").value
    assert not (tmp_path / "study").exists()


def test_two_checkpoints_are_ranked_where_the_earlier_is_given(model, prompts, board, tmp_path):
    name = "curvature_difference:proxy:earlier"
    given = {"run": board.run, "detectors": [name], "seeds": 2, "steps": 12}
    without = leaderboard(model, prompts, out=tmp_path / "without", **given)
    assert math.isnan(without.ranking.get(name).value)
    found = leaderboard(model, prompts, out=tmp_path / "with", earlier="oracle:mixture", **given)
    assert math.isfinite(found.ranking.get(name).value)
    assert json.loads((tmp_path / "with" / "bench.json").read_text())["earlier"] == "oracle:mixture"


def test_wrong_combinations_are_refused(model, prompts, board, tmp_path):
    run = open_run(board.path / "study")
    with pytest.raises(InputError, match="another model"):
        leaderboard(load_model("oracle:mixture"), prompts, run=run, out=tmp_path)
    with pytest.raises(InputError, match="--prompts"):
        leaderboard(model, out=tmp_path)
    short = prompts.with_name("short.jsonl")
    short.write_text(prompts.read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match="lacks"):
        leaderboard(model, short, run=run, out=tmp_path)
