"""Small denoisers: a killed run goes on to the same end, and labels are told apart."""

import pytest
import torch

from mnemoscope.errors import InputError
from mnemoscope.lab import small
from mnemoscope.lab.small import HALVES, Lesson, learn, marks, network, pictures_of


def _learned(folder, looks):
    return learn(Lesson(3), folder, looks, batch=2, samples=2)


def test_a_run_that_was_stopped_comes_to_the_same_samples(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(small, "CALLS", 2)
    whole = _learned(tmp_path / "whole", [1, 3])
    _learned(tmp_path / "broken", [1])
    # As if it was killed after its state was written, and before it had drawn.
    (tmp_path / "broken" / "drawn-1.safetensors").unlink()
    resumed = _learned(tmp_path / "broken", [1, 3])
    for one, other in zip(whole, resumed, strict=True):
        assert one.step == other.step
        assert torch.equal(one.samples, other.samples)
        assert torch.equal(one.seen, other.seen)
        assert torch.equal(one.unseen, other.unseen)
    assert not torch.equal(whole[0].samples, whole[1].samples)
    (tmp_path / "broken" / "drawn-1.safetensors").unlink()
    with pytest.raises(InputError, match="is missing"):
        _learned(tmp_path / "broken", [1, 3])


def test_sets_of_pictures_share_none() -> None:
    sets = [pictures_of(half, 20).flatten(1) for half in range(HALVES + 1)]
    assert torch.equal(pictures_of(0, 5).flatten(1), sets[0][:5])
    for at, one in enumerate(sets):
        assert torch.pdist(one).min() > 0.1
        for other in sets[at + 1 :]:
            assert torch.cdist(one, other).min() > 0.1


def test_a_label_reaches_the_network_and_nothing_else_does() -> None:
    torch.manual_seed(0)
    net = network(labels=2)
    x, t = torch.randn(2, 3, 8, 8), torch.full((2,), 500)
    same, apart = (net(x[:1].expand(2, -1, -1, -1), t, torch.tensor(two)).sample
                   for two in ([0, 0], [0, 1]))  # fmt: skip
    assert torch.equal(same[0], same[1])
    assert not torch.allclose(apart[0], apart[1])


def test_steps_of_looks() -> None:
    assert marks(3200)[-1] == 3200
    with pytest.raises(InputError, match="10 steps given; expected 50"):
        marks(10)
