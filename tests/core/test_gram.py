"""The Gram record: every quantity against the vectors themselves, least squares against lstsq."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnemoscope.core.gram import NAMES, PAIRS, TAPE, Gram
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
    # The guided prediction is a vector of its own: nothing says that a constant scale made it.
    x, u, c, g = (draw(SAMPLES, CALLS, D) for _ in range(4))
    path = Trajectory(
        level=Level(angle.cos(), angle.sin()),
        x=x,
        v_u=u,
        v_c=c,
        v_g=g,
        x_T=x[:, 0],
        x_0=draw(SAMPLES, D),
    )
    return path, draw(SAMPLES, D), draw(D)


def gram_of(path, target, mean):
    return Gram.of(path, final=FINAL, target=target, mean=mean)


def named(path, target, mean):
    """Every vector the record speaks of, float64 [sample call d], built directly."""

    def still(vector):
        return vector.double()[:, None].expand(SAMPLES, CALLS, D)

    alpha, sigma = (part[None, :, None] for part in path.level)
    x = path.x.double()
    vectors = {
        "x": x,
        "target": still(target),
        "x_T": still(path.x_T),
        "x_0": still(path.x_0),
        "mean": still(mean.expand(SAMPLES, D)),
    }
    for branch in "ucg":
        v = path.v(branch).double()
        # v is alpha·eps - sigma·x0, and alpha·x0 + sigma·eps is the state.
        eps = (v + sigma / alpha * x) / (alpha + sigma**2 / alpha)
        vectors |= {f"v_{branch}": v, f"eps_{branch}": eps}
        vectors[f"x0_{branch}"] = (x - sigma * eps) / alpha
    vectors["gap"] = vectors["eps_c"] - vectors["eps_u"]
    return vectors


def close(got, expected):
    # 24 products of order one; no coefficient exceeds 1.
    return torch.allclose(got, expected, rtol=1e-10, atol=1e-10)


@given(seed=st.integers(0, 2**31), pair=st.tuples(st.integers(0, 14), st.integers(0, 14)))
def test_products_norms_and_cosines_equal_those_of_the_vectors(seed, pair):
    path, target, mean = tape(seed)
    gram = gram_of(path, target, mean)
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
    vector=st.sampled_from(["x", "v_g", "eps_g", "x0_c", "gap"]),
    on=st.sampled_from([("target",), ("target", "x_T"), ("x_0", "x"), ("mean", "target", "x_T")]),
)
def test_fit_equals_lstsq(seed, vector, on):
    if vector in on:
        return
    path, target, mean = tape(seed)
    gram = gram_of(path, target, mean)
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
    gram = gram_of(path, target, None)
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
    gram = gram_of(path, target, mean)
    fit = gram.fit("v_c", ["x", "x_T"])
    # At the first call the state is the initial noise.
    assert fit.weights[:, 0].isnan().all()
    assert fit.weights[:, 1:].isfinite().all()


def test_states_are_the_destinations_of_the_updates():
    path, target, mean = tape(0)
    gram = gram_of(path, target, mean)
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


def test_constant_guidance_of_a_probe_is_made_of_both_branches():
    path, target, mean = tape(0)
    absent = torch.full_like(path.v_g, torch.nan)
    gram = gram_of(replace(path, v_g=absent), target, mean)
    assert gram.rms("eps_g").isnan().all()
    guided = gram.guided(G)
    made = replace(path, v_g=path.v_u + G * (path.v_c - path.v_u))
    wanted = named(made, target, mean)
    for a in ("v_g", "eps_g", "x0_g"):
        for b in ("x", "target", "eps_c", "x0_g"):
            # v_g is float32 there, and (1 + 2·7.5)² times the rounding of its square.
            error = (guided.inner(a, b) - (wanted[a] * wanted[b]).sum(-1)).abs().max()
            assert float(error) < 5e-3, (a, b)
    assert close(gram.guided(1.0).inner("eps_g", "x"), gram.inner("eps_c", "x"))
    # What is kept is as it was.
    assert torch.equal(guided.inner("x", "target"), gram.inner("x", "target"))


def test_vectors_are_replaced_by_combinations_of_the_old_ones():
    path, target, mean = tape(0)
    gram, vectors = gram_of(path, target, mean), named(path, target, mean)
    weight = torch.linspace(-1, 2, CALLS, dtype=torch.float64)
    made = gram.mapped({"x": {"v_c": weight, "target": 0.5}, "mean": {"x": -1.0}})
    x = weight[:, None] * vectors["v_c"] + 0.5 * vectors["target"]
    assert close(made.square("x"), x.square().sum(-1))
    assert close(made.inner("x", "mean"), -(x * vectors["x"]).sum(-1))
    assert close(made.inner("mean", "x_0"), -(vectors["x"] * vectors["x_0"]).sum(-1))


def test_a_replaced_vector_lacks_what_it_is_made_of_lacks():
    path, target, _ = tape(0)
    target[1] = torch.nan
    made = gram_of(path, target, None).mapped({"x": {"target": 1.0, "v_u": 1.0}})
    assert made.rms("x")[1].isnan().all()
    assert made.rms("x")[[0, 2]].isfinite().all()
    assert made.rms("v_u").isfinite().all()


def test_vectors_of_another_name_can_stand_beside_the_tape():
    path, target, _ = tape(0)
    gram = Gram.of(path, final=FINAL, consensus=target)
    assert gram.names == (*TAPE, "consensus")
    wanted = (path.x.double() * target.double()[:, None]).sum(-1)
    assert close(gram.inner("x", "consensus"), wanted)
    with pytest.raises(NeedsError, match="'target'"):
        gram.inner("x", "target")


def test_pure_noise_loses_no_clean_estimate():
    path, target, mean = tape(0)
    alpha, sigma = torch.tensor([0.0, 0.6]).double(), torch.tensor([1.0, 0.8]).double()
    moving = {name: getattr(path, name)[:, :2] for name in ("x", "v_u", "v_c", "v_g")}
    short = replace(path, level=Level(alpha, sigma), **moving)
    gram = gram_of(short, target, mean)
    wanted = short.v_g[:, 0].double().square().mean(-1).sqrt()
    # At alpha = 0 the clean estimate is -v, and the noise estimate is the state.
    assert close(gram.rms("x0_g")[:, 0], wanted)
    assert close(gram.rms("eps_g")[:, 0], gram.rms("x")[:, 0])
    assert torch.equal(short.x0("g")[:, 0], -short.v_g[:, 0])
    assert gram.log_snr[0] == -torch.inf


def test_vectors_in_each_others_place_are_those_of_a_record_made_so():
    path, target, mean = tape(0)
    swapped = gram_of(path, target, mean).exchanged("target", "mean")
    made = Gram.of(path, final=FINAL, target=mean, mean=target)
    torch.testing.assert_close(swapped.products, made.products)


def test_select_and_names():
    path, target, mean = tape(0)
    gram = gram_of(path, target, mean)
    part = gram.select(torch.tensor([True, False, True]))
    assert torch.equal(part.products, gram.products[[0, 2]])
    assert (*gram.names, "other") == NAMES
    assert len(PAIRS) == len(NAMES) * (len(NAMES) + 1) // 2 == 45
    with pytest.raises(NeedsError, match="'x0_g'"):
        gram.inner("x0_d", "x")
