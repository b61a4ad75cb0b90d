"""Methods that descend: on networks whose pull is known in closed form."""

import pytest
import torch

from mnemoscope.core.predict import Prediction
from mnemoscope.errors import ModelError
from mnemoscope.mitigations import parse
from mnemoscope.mitigations.base import descend, size
from mnemoscope.sampling.condition import Condition
from tests.mitigations.steps import level_of, start_of
from tests.mitigations.test_before import TEXTS, linear

MATRIX = torch.randn(16, 16, generator=torch.Generator().manual_seed(3)) / 4


class Counting:
    """A network whose pull is linear in the embedding, which counts the rows it is asked."""

    def __init__(self):
        self.rows = []

    def __call__(self, x, condition, rows):
        self.rows += rows.tolist()
        pull = condition.embedding.flatten(1).sum(dim=1)
        return Prediction(x, pull[:, None, None, None] * torch.ones_like(x) / 10)


def adamw(values, gradients, rate, decay):
    """Take AdamW steps by hand, coordinates apart; betas 0.9 and 0.999."""
    m = v = torch.zeros_like(values)
    for t, gradient in enumerate(gradients, start=1):
        values = values * (1 - rate * decay)
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        values = values - rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return values


def test_prompt_optimization_takes_the_steps_of_adamw_and_holds_the_begin_mark():
    blank = Condition.of(torch.zeros(2, 6, 3))
    start = start_of(TEXTS, Counting(), uncond=blank)
    method = parse("prompt_optimization(rounds=3,target=0,rate=0.05,decay=0.01)")
    before = start.cond.embedding
    found = method.optimized(start)
    # The pull is a sum over the embedding, so every gradient is the same number, 0.1, its sign 1.
    words = adamw(before[:, 1:], [torch.full_like(before[:, 1:], 0.1)] * 3, 0.05, 0.01)
    torch.testing.assert_close(found.value[:, 1:], words, atol=1e-6, rtol=1e-6)
    assert torch.equal(found.value[:, 0], before[:, 0])
    assert not found.converged.any()
    torch.testing.assert_close(found.reached, found.value.flatten(1).sum(dim=1) / 10)


def test_an_image_that_arrives_stays_and_is_asked_no_more():
    network = Counting()
    blank = Condition.of(torch.zeros(2, 6, 3))
    near = torch.full((6, 3), 0.01)
    cond = Condition.of(torch.stack([near, near + 0.5]))
    start = start_of(TEXTS, network, uncond=blank, cond=cond)
    method = parse("prompt_optimization(rounds=4,target=0.05)")
    found = method.optimized(start)
    assert torch.equal(found.value[0], near)
    assert found.converged.tolist() == [True, False]
    # Once for the blank prompt; the first image once, the second in four rounds and at the end.
    assert network.rows.count(0) == 1 + 1
    assert network.rows.count(1) == 1 + 4 + 1
    assert method.calls_before == 1 + 3 * 4 + 1


def test_a_target_divided_by_strength_is_harder_to_reach():
    blank = Condition.of(torch.zeros(2, 6, 3))
    cond = Condition.of(torch.full((2, 6, 3), 0.4))
    reached = []
    for strength in (0.5, 1, 2):
        start = start_of(TEXTS, Counting(), uncond=blank, cond=cond)
        method = parse(f"prompt_optimization(target=0.5,strength={strength},rounds=30)")
        found = method.optimized(start)
        assert found.converged.all()
        assert (found.reached <= 0.5 / strength).all()
        reached.append(float(found.reached[0]))
    assert reached == sorted(reached, reverse=True)


def test_prompts_without_tokens_are_refused():
    flat = Condition({"states": torch.zeros(2, 3)})
    with pytest.raises(ModelError, match="tokens"):
        parse("prompt_optimization").condition(start_of(TEXTS, cond=flat))


def test_noise_optimization_descends_the_pull_of_each_noise():
    start = start_of(TEXTS, linear(MATRIX))
    found = parse("noise_optimization(rounds=2,target=0,rate=0.01,decay=0.01)").optimized(start)
    for row in range(2):
        x, gradients = start.noise[row].flatten(), []
        for _ in range(2):
            pull = MATRIX @ adamw(x, gradients, 0.01, 0.01)
            # d rms(Mx)/dx = MᵀMx / (16 rms)
            gradients.append(MATRIX.T @ pull / 16 / pull.square().mean().sqrt())
        torch.testing.assert_close(
            found.value[row].flatten(), adamw(x, gradients, 0.01, 0.01), atol=1e-5, rtol=1e-5
        )
    assert (found.reached < size(start.gap(start.noise))).all()


def test_sail_measures_sharpness_as_the_paper_does():
    start = start_of(TEXTS, linear(MATRIX))
    method = parse("sharpness_noise(reach=0.5,hold=0.05)")
    sigma = float(level_of(0).sigma)
    minimized, watched = method._sharpness(start, start.noise, start.rows)
    for row in range(2):
        x = start.noise[row].flatten().double()
        score = -(MATRIX.double() @ x) / sigma
        moved = -(MATRIX.double() @ (x + 0.5 * score / score.norm())) / sigma
        sharpness = (moved - score).square().sum()
        wanted = float(sharpness + 0.05 * x.square().sum())
        assert float(minimized[row]) == pytest.approx(wanted, rel=1e-4)
        assert float(watched[row]) == pytest.approx(float((sharpness / 16).sqrt()), rel=1e-4)


def test_sail_draws_anew_and_ends_at_its_best():
    start = start_of(TEXTS, linear(MATRIX))
    never = parse("sharpness_noise(flatness=0,rounds=2,draws=2)").optimized(start)
    assert not never.converged.any()
    once = parse("sharpness_noise(flatness=0,rounds=2,draws=1)").optimized(start)
    assert (never.reached <= once.reached).all()
    method = parse("sharpness_noise(flatness=0,rounds=2,draws=2)")
    _, watched = method._sharpness(start, never.value, start.rows)
    torch.testing.assert_close(watched, never.reached)
    at_once = parse("sharpness_noise(flatness=1000)").optimized(start)
    assert torch.equal(at_once.value, start.noise)


def test_a_descent_depends_on_no_other_sample():
    def loss(values, rows):
        return values.square().sum(dim=1) * (1 + rows), values.abs().sum(dim=1)

    begin = torch.tensor([[1.0, -2.0], [0.05, 0.0], [3.0, 1.0]])

    def go(rows):
        return descend(
            begin[rows],
            lambda values, left: loss(values, torch.tensor(rows)[left]),
            target=0.1,
            rounds=5,
            make=lambda leaf: torch.optim.Adam([leaf], lr=0.1),
        ).value

    whole = go([0, 1, 2])
    for row in range(3):
        torch.testing.assert_close(whole[row : row + 1], go([row]))
    assert torch.equal(whole[1], begin[1])
