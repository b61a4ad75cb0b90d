"""Derivatives of probes against matrices, for a denoiser that is linear in the state."""

import pytest
import torch

from mnemoscope.core.level import Level
from mnemoscope.errors import ModelError
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.probes import (
    denoise,
    divergence,
    drift,
    gap_curvature,
    gap_difference,
    gap_in_condition,
    gap_jvp,
    square_gradient,
)
from tests.detectors.linear import linear, point

UNCOND, COND = Condition.of(torch.zeros(3, 1)), Condition.of(torch.ones(3, 1))


@pytest.fixture
def x():
    return torch.randn(3, 1, 2, 3, generator=torch.Generator().manual_seed(1)).double()


def gap_of(net, x):
    return (net(x, None, COND) - net(x, None, UNCOND)).flatten(1)


def test_jvp_and_difference_are_the_matrix_product(x):
    net = linear()
    along = gap_of(net, x)
    wanted = along @ (net.matrices[1] - net.matrices[0]).T
    direction = along.reshape(x.shape)
    value, found = gap_jvp(net, x, point(), COND, UNCOND, direction)
    torch.testing.assert_close(value.flatten(1), along)
    torch.testing.assert_close(found.flatten(1), wanted)
    quick = gap_difference(net, x, point(), COND, UNCOND, direction, value)
    torch.testing.assert_close(quick.flatten(1), wanted, rtol=1e-9, atol=1e-9)


def test_square_gradient_is_the_transposed_product(x):
    net = linear()
    eps = net(x, None, COND).flatten(1)
    found = square_gradient(net, x, point(), COND)
    torch.testing.assert_close(found.flatten(1), eps @ net.matrices[1])


def test_curvature_of_a_diagonal_matrix_is_exact_with_one_probe(x):
    net = linear(diagonal=True)
    signs = torch.randint(0, 2, (1, *x.shape)).double() * 2 - 1
    found = gap_curvature(net, x, point(), COND, UNCOND, signs).flatten(1)
    wanted = (net.matrices[1] - net.matrices[0]).diagonal().expand_as(found)
    torch.testing.assert_close(found, wanted)


def test_curvature_converges_to_the_diagonal(x):
    net = linear()
    signs = torch.randint(0, 2, (4000, *x.shape)).double() * 2 - 1
    found = gap_curvature(net, x, point(), COND, UNCOND, signs).flatten(1)
    difference = net.matrices[1] - net.matrices[0]
    # Standard error of a coordinate: the norm of its off-diagonal row over sqrt(4000).
    error = difference.norm(dim=0) / 4000**0.5
    assert ((found - difference.diagonal()).abs() < 5 * error).all()


def test_divergence_is_trace_and_square(x):
    net = linear(diagonal=True)
    signs = torch.randint(0, 2, x.shape).double() * 2 - 1
    trace, square = divergence(net, x, point(), COND, signs)
    torch.testing.assert_close(trace, net.matrices[1].trace().expand(3))
    torch.testing.assert_close(square, net(x, None, COND).flatten(1).square().sum(1))


def test_condition_gradient_against_autograd_of_the_definition(x):
    class Scaled:
        kind = "eps"

        def __call__(self, state, timestep, condition):
            return state * condition.embedding[:, :, :, None]

    scale = torch.tensor([[[2.0]], [[3.0]], [[-1.0]]]).double()
    cond = Condition.of(scale)
    found = gap_in_condition(Scaled(), x, point(), cond, torch.zeros_like(x))
    # ||c·x|| = |c|·||x||, whose slope in c is sign(c)·||x||.
    wanted = scale.sign() * x.flatten(1).norm(dim=1)[:, None, None]
    torch.testing.assert_close(found, wanted)


def test_drift_of_a_contraction_is_its_last_step(x):
    class Shrinking:
        kind = "x0"

        def __call__(self, state, timestep, condition):
            return 0.5 * state / 0.6

    # M halves the image each time, so after three repetitions it is 7/8 away.
    found, each = drift(Shrinking(), x, point(), COND, 3)
    torch.testing.assert_close(found, torch.full((3,), 7 / 8).double())
    torch.testing.assert_close(each, torch.full((3, *x.shape[2:]), 7 / 8).double())


def test_denoising_a_known_image_ends_on_it(x):
    class Knowing:
        kind = "x0"

        def __call__(self, state, timestep, condition):
            return torch.ones_like(state)

    start, final = point(), Level(torch.tensor(1.0).double(), torch.tensor(0.0).double())
    found = denoise(Knowing(), x, [start, point(0.8, 0.6)], final, COND, COND, 7.5)
    torch.testing.assert_close(found, torch.ones_like(x))
    # One step keeps the noise that the state held beside the image.
    one = denoise(Knowing(), x, [start], point(0.8, 0.6).level, COND, COND, 7.5)
    torch.testing.assert_close(one, 0.8 + 0.6 * (x - 0.6) / 0.8)


def test_a_network_without_tokens_has_no_gradient_in_them(x):
    with pytest.raises(ModelError, match="not conditioned on tokens"):
        gap_in_condition(linear(), x, point(), COND, torch.zeros_like(x))
