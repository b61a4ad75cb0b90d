"""The Gram record: every quantity against the vectors themselves, least squares against lstsq."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnemoscope.core.gram import NAMES, PAIRS, Gram
from mnemoscope.core.level import Level
from mnemoscope.core.record import Trajectory
from mnemoscope.errors import NeedsError

SAMPLES, CALLS, D, G = 3, 4, 24, 7.5
FINAL = Level(
    torch.tensor(0.99957, dtype=torch.float64), torch.tensor(0.02916, dtype=torch.float64)
)


def tape(seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        # float32 values, for the record is taken from float32 latents.
        return torch.randn(*shape, generator=generator)

    angle = torch.linspace(1.5, 0.1, CALLS, dtype=torch.float64)
    x, u, c = (draw(SAMPLES, CALLS, D) for _ in range(3))
    path = Trajectory(
        level=Level(angle.cos(), angle.sin()),
        x=x,
        eps_u=u,
        eps_c=c,
        eps_g=u + G * (c - u),
        x_T=x[:, 0],
        x_0=draw(SAMPLES, D),
    )
    return path, draw(SAMPLES, D), draw(D)


def named(path, target, mean):
    """Every vector the record speaks of, float64 [sample call d], built directly."""

    def still(vector):
        return vector.double()[:, None].expand(SAMPLES, CALLS, D)

    alpha, sigma = (part[None, :, None] for part in path.level)
    vectors = {
        "x": path.x.double(),
        "eps_u": path.eps_u.double(),
        "eps_c": path.eps_c.double(),
        "target": still(target),
        "x_T": still(path.x_T),
        "x_0": still(path.x_0),
        "mean": still(mean.expand(SAMPLES, D)),
    }
    vectors["eps_g"] = (1 - G) * vectors["eps_u"] + G * vectors["eps_c"]
    vectors["gap"] = vectors["eps_c"] - vectors["eps_u"]
    for branch in "ucg":
        vectors[f"x0_{branch}"] = (vectors["x"] - sigma * vectors[f"eps_{branch}"]) / alpha
    return vectors


def close(got, expected):
    # 24 products of order one, clean estimates up to 1/alpha = 14 and g = 7.5, squared.
    return torch.allclose(got, expected, rtol=1e-10, atol=1e-10)


@given(seed=st.integers(0, 2**31), pair=st.tuples(st.integers(0, 11), st.integers(0, 11)))
def test_products_norms_and_cosines_equal_those_of_the_vectors(seed, pair):
    path, target, mean = tape(seed)
    gram = Gram.of(path, target=target, mean=mean, guidance=G, final=FINAL)
    vectors = named(path, target, mean)
    a, b = (sorted(vectors)[i] for i in pair)
    left, right = vectors[a], vectors[b]
    assert close(gram.inner(a, b), (left * right).sum(-1))
    assert close(gram.square(a), left.square().sum(-1))
    assert close(gram.rms(a), left.square().mean(-1).sqrt())
    assert close(gram.cosine(a, b), torch.cosine_similarity(left, right, dim=-1))
    weights = {a: 2.0, "mean": -1.0} if a != "mean" else {a: 1.0}
    combined = 2 * left - vectors["mean"]
    assert close(gram.inner(weights, b), (combined * right).sum(-1))


@given(
    seed=st.integers(0, 2**31),
    vector=st.sampled_from(["x", "eps_g", "x0_c", "gap"]),
    on=st.sampled_from([("target",), ("target", "x_T"), ("x_0", "x"), ("mean", "target", "x_T")]),
)
def test_fit_equals_lstsq(seed, vector, on):
    if vector in on:
        return
    path, target, mean = tape(seed)
    gram = Gram.of(path, target=target, mean=mean, guidance=G, final=FINAL)
    vectors = named(path, target, mean)
    fit = gram.fit(vector, on)
    for s in range(SAMPLES):
        for k in range(CALLS):
            columns = torch.stack([vectors[name][s, k] for name in on], dim=1)
            y = vectors[vector][s, k]
            if torch.linalg.matrix_rank(columns) < len(on):
                assert fit.weights[s, k].isnan().all()
                continue
            weights = torch.linalg.lstsq(columns, y[:, None]).solution[:, 0]
            assert torch.allclose(fit.weights[s, k], weights, rtol=1e-8, atol=1e-10)
            # Compared squared: as a difference of products it keeps 1e-16 of ||y||², not less.
            residual = (y - columns @ weights).square().mean()
            scale = float(y.square().mean())
            assert torch.allclose(fit.residual[s, k] ** 2, residual, rtol=1e-8, atol=1e-13 * scale)


def test_a_vector_without_a_value_makes_only_its_own_products_nan():
    path, target, _ = tape(0)
    target[1] = torch.nan
    gram = Gram.of(path, target=target, mean=None, guidance=G, final=FINAL)
    assert gram.rms("x0_g").isfinite().all()
    assert gram.rms("target")[1].isnan().all()
    assert gram.rms("target")[0].isfinite().all()
    assert gram.rms("mean").isnan().all()
    fit = gram.fit("x", ["target", "x_T"])
    assert fit.weights[1].isnan().all()
    assert fit.residual[1].isnan().all()
    assert fit.weights[0].isfinite().all()


def test_collinear_regressors_have_no_weights():
    path, target, mean = tape(0)
    gram = Gram.of(path, target=target, mean=mean, guidance=G, final=FINAL)
    fit = gram.fit("eps_c", ["x", "x_T"])
    # At the first call the state is the initial noise.
    assert fit.weights[:, 0].isnan().all()
    assert fit.weights[:, 1:].isfinite().all()


def test_states_are_the_destinations_of_the_updates():
    path, target, mean = tape(0)
    gram = Gram.of(path, target=target, mean=mean, guidance=G, final=FINAL)
    states = gram.states()
    assert states.calls == CALLS
    assert torch.equal(states.level.alpha[:-1], path.level.alpha[1:])
    assert float(states.level.alpha[-1]) == float(FINAL.alpha)
    assert torch.equal(states.inner("x", "target")[:, :-1], gram.inner("x", "target")[:, 1:])
    final = (path.x_0.double() * target.double()).sum(-1)
    assert close(states.inner("x", "target")[:, -1], final)
    assert states.inner("eps_u", "x")[:, -1].isnan().all()
    # The last state is the final sample: weight 1 on it, 0 on the noise.
    weights = states.fit("x", ["x_0", "x_T"]).weights[:, -1]
    assert close(weights, torch.tensor([1.0, 0.0], dtype=torch.float64).expand(SAMPLES, 2))


def test_guidance_one_is_the_conditional_branch():
    path, target, mean = tape(0)
    gram = Gram.of(path, target=target, mean=mean, guidance=1.0, final=FINAL)
    assert close(gram.inner("eps_g", "x"), gram.inner("eps_c", "x"))


def test_select_and_names():
    path, target, mean = tape(0)
    gram = Gram.of(path, target=target, mean=mean, guidance=G, final=FINAL)
    part = gram.select(torch.tensor([True, False, True]))
    assert torch.equal(part.products, gram.products[[0, 2]])
    assert len(PAIRS) == len(NAMES) * (len(NAMES) + 1) // 2 == 28
    with pytest.raises(NeedsError, match="'x0_g'"):
        gram.inner("x0_d", "x")
