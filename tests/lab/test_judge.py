"""The judge, on scenes whose truth is known and that it has not seen."""

import shutil

import torch
from safetensors.torch import load_file

from mnemoscope.core.stats import roc_auc
from mnemoscope.lab import ASSETS, JUDGE_FILE, MODEL_DIR
from mnemoscope.lab.judge import (
    disturbed,
    judge_network,
    mistaken,
    recognised,
    score,
    shows,
    train_judge,
)
from mnemoscope.lab.scenes import Scenes, render, shown
from mnemoscope.lab.train import load_codec


def test_the_judge_finds_what_a_scene_shows_and_not_what_it_does_not() -> None:
    pictures, captions = Scenes(77, pairs=1.0).batch(96)
    assert float(recognised(pictures, captions).float().mean()) > 0.95
    # Two of 32 emoji would both be among five by chance in 2 % of pictures.
    assert mistaken(pictures, captions) < 0.02


def test_it_finds_what_is_bent_and_blurred() -> None:
    pictures, captions = Scenes(81, pairs=1.0).batch(96)
    changed = disturbed(pictures, load_codec(ASSETS), torch.Generator().manual_seed(1))
    assert changed.shape == pictures.shape
    assert float((changed - pictures).square().mean().sqrt()) > 0.05
    assert float(recognised(changed, captions).float().mean()) > 0.9


def test_it_finds_nothing_in_backgrounds() -> None:
    layout = Scenes(78).layout(24)
    layout.drawing[:] = -1
    assert float((score(render(layout)) > 0).float().mean()) < 0.01


def test_an_emoji_scores_higher_where_it_is_shown() -> None:
    pictures, captions = Scenes(80).batch(96)
    scores, here = score(pictures), shows(captions)
    # Both artists may have drawn the same emoji.
    named = [{name.split()[1] for name in pair} for pair in shown(Scenes(80).layout(96))]
    assert len(named) == len(captions)
    assert here.sum(1).tolist() == list(map(len, named))
    assert roc_auc(scores.flatten().numpy(), here.flatten().numpy()).value > 0.99
    assert float((scores[~here] < 0).float().mean()) > 0.99


def test_training_writes_a_judge_that_loads(tmp_path) -> None:
    shutil.copytree(MODEL_DIR / "vae", tmp_path / "model" / "vae")
    train_judge(tmp_path, steps=1, batch=4)
    held = load_file(tmp_path / JUDGE_FILE.name)
    assert {name: t.shape for name, t in held.items()} == {
        name: t.shape for name, t in judge_network().state_dict().items()
    }
