"""Every analysis on runs whose mechanism is known, and on runs that lack something."""

from dataclasses import replace
from math import isnan
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, HeunDiscreteScheduler

from mnemoscope import mechanism
from mnemoscope.core.gram import Gram
from mnemoscope.core.level import Level
from mnemoscope.core.panels import CurvePanel
from mnemoscope.mechanism.base import (
    Finding,
    Record,
    Samples,
    Trace,
    departures,
    exact_unguided,
    weights,
)
from mnemoscope.sampling.exact import exact_path
from tests.mechanism.synthetic import World, record, schedule, walk

LEVELS, FINAL = schedule()


def alone(lam: float, g: float, *, exact: bool = False, seeds: int = 4) -> Samples:
    world = World.of()
    image = world.image(0)
    tape = walk(world, image, lam, g, range(seeds), exact=exact)
    gram = Gram.of(tape, final=FINAL, target=image.expand(seeds, -1), mean=world.mean)
    return Samples.of(gram, ["p"] * seeds, range(seeds), guidance=g)


def holding(samples: Samples) -> Record:
    return Record({("path", samples.guidance): samples}, {"memorized": frozenset({"p"})})


def sums(samples: Samples, reference: str = "target") -> tuple[float, float]:
    states = samples.states()
    w0, wT, _ = weights(holding(samples), states, reference)
    level = states.gram.level
    d1, d2, _ = departures(w0, wT, level.alpha.numpy(), level.sigma.numpy())
    return float(d1.values.sum()), float(d2.values.sum())


@pytest.fixture(scope="module")
def memorizing() -> Record:
    """Return 8 prompts that leak their image more and more, and 12 that leak almost nothing."""
    strengths = {f"m{i}": 0.3 + 0.1 * i for i in range(8)}
    strengths |= {f"n{i}": 0.005 * i for i in range(12)}
    groups = {
        "memorized": frozenset(f"m{i}" for i in range(8)),
        "not memorized": frozenset(f"n{i}" for i in range(6)),
        "control": frozenset(f"n{i}" for i in range(6, 12)),
    }
    return record(strengths, groups)


@pytest.fixture(scope="module")
def innocent() -> Record:
    """Return the same number of prompts, none of which leaks anything, labelled as if some did."""
    groups = {
        "memorized": frozenset(f"p{i}" for i in range(6)),
        "not memorized": frozenset(f"p{i}" for i in range(6, 12)),
    }
    return record({f"p{i}": 0.0 for i in range(12)}, groups)


@pytest.fixture(scope="module")
def findings(memorizing: Record) -> dict[str, Finding]:
    """Ask the first of them everything, once."""
    return mechanism.analyse(memorizing)


def verdicts(findings: dict[str, Finding]) -> dict[str, list[bool | None]]:
    return {name: [check.holds for check in found.checks] for name, found in findings.items()}


def finding_of(name: str, run: Record) -> Finding:
    return type_of(name).analyse(run)


def test_schedule_is_stable_diffusions() -> None:
    assert float(LEVELS.alpha[0]) == pytest.approx(0.0760, abs=1e-4)
    assert float(FINAL.alpha) == pytest.approx(0.99957, abs=1e-5)
    assert float(FINAL.sigma) == pytest.approx(0.02916, abs=1e-5)


def test_exact_unguided_predictor_has_its_closed_form_and_its_sums() -> None:
    samples = alone(1.0, 1.0, exact=True)
    states = samples.states()
    w0, wT, residual = weights(holding(samples), states, "target")
    exact = exact_unguided(LEVELS.at(0), states.gram.level)
    np.testing.assert_allclose(w0.values[0], exact.w0, atol=1e-12)
    np.testing.assert_allclose(wT.values[0], exact.wT, atol=1e-12)
    # The residual is the root of a difference of equal squares: 1e-8 is float64 there.
    assert float(residual.values.max()) < 1e-7
    d1, d2 = sums(samples)
    assert d1 == pytest.approx(-2.743, abs=1e-3)
    assert d2 == pytest.approx(-0.104, abs=1e-3)


def test_weights_equal_lstsq() -> None:
    world, seeds = World.of(), 3
    image = world.image(0)
    tape = walk(world, image, 0.4, 7.5, range(seeds))
    samples = alone(0.4, 7.5, seeds=seeds)
    fit = samples.gram.states().fit("x", ["target", "x_T"])
    for seed in range(seeds):
        design = torch.stack([image, tape.x_T[seed]], dim=1)
        path = torch.cat([tape.x[seed, 1:], tape.x_0[seed, None]]).T
        solved = torch.linalg.lstsq(design, path).solution.T
        # The record keeps the final sample in float64 here, so only rounding separates the two.
        torch.testing.assert_close(fit.weights[seed], solved, atol=1e-10, rtol=0)


def test_final_sample_as_reference_ends_at_one_and_zero() -> None:
    samples = alone(0.2, 7.5)
    w0, wT, _ = weights(holding(samples), samples.states(), "final sample")
    assert float(w0.values[0, -1]) == pytest.approx(1, abs=1e-10)
    assert float(wT.values[0, -1]) == pytest.approx(0, abs=1e-10)


def test_ddim_update_is_affine_in_the_guided_estimate() -> None:
    gram = alone(0.4, 7.5).gram
    states = gram.states()
    carry = states.level.sigma / gram.level.sigma
    kappa = states.level.alpha - gram.level.alpha * carry
    moved = {"x": carry.expand(4, -1), "x0_g": kappa.expand(4, -1)}
    for vector in ("target", "x_T"):
        torch.testing.assert_close(
            gram.inner(moved, vector), states.inner("x", vector), atol=1e-8, rtol=1e-10
        )


def test_k_at_the_first_call_is_near_g_when_x_is_fully_recovered() -> None:
    samples = alone(1.0, 7.5)
    finding = finding_of("overestimation", holding(samples))
    curve = next(c for c in finding.curves if c.quantity == "k, c = mean")
    assert float(curve.median[0]) == pytest.approx(7.5, abs=0.5)
    bare = next(c for c in finding.curves if c.quantity == "k of the conditional, c = 0")
    assert float(bare.median[0]) == pytest.approx(1, abs=1e-9)
    assert float(curve.median[-1]) == pytest.approx(1, abs=0.05)


def test_d1_with_the_target_rises_with_what_leaks() -> None:
    d1 = [sums(alone(lam, 7.5))[0] for lam in (0.0, 0.05, 0.1, 0.2, 0.4, 1.0)]
    assert d1 == sorted(d1)
    # An image that never enters leaves w0 near 0, so D1 near minus the sum of alpha.
    assert d1[0] == pytest.approx(-27.8, abs=6)
    assert d1[-1] > 10


def test_a_memorizing_run_meets_the_expectations(findings: dict[str, Finding]) -> None:
    held = verdicts(findings)
    assert held["loss"] == [True] * 6
    assert held["overestimation"][1:] == [True] * 4
    assert held["alignment"][0] is True
    assert held["alignment"][3:] == [True, True]
    assert held["baseline"][2] is True
    assert held["convergence"] == [True] * 4
    assert held["decomposition"][:2] == [True, True]
    assert held["noise_decomposition"][0] is True
    # With swapped images r is 0.79, which 20 prompts do not tell from 0.89.
    assert held["deviation"][0] is False
    assert held["deviation"][1:4] == [True, True, True]
    assert held["deviation"][6] is True


def test_a_run_that_memorized_nothing_meets_none_of_the_claims_of_memorization(
    innocent: Record,
) -> None:
    held = verdicts(mechanism.analyse(innocent))
    assert held["overestimation"][:2] == [False, False]
    assert held["alignment"][3] is False
    assert held["decomposition"][0] is False
    assert held["convergence"][1:3] == [False, False]
    assert held["noise_decomposition"][0] is False
    assert held["noise_decomposition"][3] is False
    assert held["amplification"][0] is not True
    kinds = {analysis.name: analysis.evidence for analysis in mechanism.all_analyses()}
    assert not any(held[name][claim] for name, claims in kinds.items() for claim in claims)


def test_without_memorized_prompts_nothing_about_them_is_decided(innocent: Record) -> None:
    everyone = innocent.memorized | innocent.others
    findings = mechanism.analyse(replace(innocent, groups={"not memorized": everyone}))
    for finding in findings.values():
        for check in finding.checks:
            if "memorized prompts" in check.claim:
                assert check.holds is None, check
                assert check.reason


@pytest.mark.parametrize(
    "lacking",
    [
        {"target": False},
        {"seeds": 1},
        {"guidances": (7.5,)},
        {"guidances": (1.0,)},
        {"probes": False},
        {"severity": False},
        {"mean": False},
        {"swap": False},
    ],
)
def test_what_a_run_lacks_is_a_reason_and_never_an_exception(lacking: dict) -> None:
    strengths = {f"p{i}": 0.5 * (i < 3) for i in range(6)}
    groups = {"memorized": frozenset({"p0", "p1", "p2"}), "control": frozenset({"p3", "p4", "p5"})}
    findings = mechanism.analyse(record(strengths, groups, **({"seeds": 2} | lacking)))
    assert list(findings) == [analysis.name for analysis in mechanism.all_analyses()]
    for finding in findings.values():
        assert len(finding.checks) == len(type_of(finding.name).claims)
        for check in finding.checks:
            assert (check.holds is None) == bool(check.reason), check


def type_of(name: str) -> mechanism.Analysis:
    return next(analysis for analysis in mechanism.all_analyses() if analysis.name == name)


def test_an_empty_run_answers_with_reasons() -> None:
    for finding in mechanism.analyse(Record({}, {})).values():
        assert all(check.holds is None and check.reason for check in finding.checks)


def test_a_path_from_pure_noise_is_analysed_but_for_what_it_cannot_tell() -> None:
    strengths = {f"p{i}": 0.6 * (i < 5) for i in range(10)}
    groups = {
        "memorized": frozenset(f"p{i}" for i in range(5)),
        "not memorized": frozenset(f"p{i}" for i in range(5, 10)),
    }
    zero = record(strengths, groups, seeds=2, zero=True)
    assert float(zero.take().gram.level.alpha[0]) == 0
    with np.errstate(all="raise"):
        findings = mechanism.analyse(zero)
    untold = {
        (name, claim)
        for name, finding in findings.items()
        for claim, check in enumerate(finding.checks)
        if "pure noise (alpha = 0)" in check.reason
    }
    expected = {("alignment", claim) for claim in range(5)}
    assert untold == expected | {("noise_decomposition", 0), ("noise_decomposition", 1)}
    assert [check.holds for check in findings["overestimation"].checks][1:4] == [True, True, True]
    assert findings["noise_decomposition"].checks[2].holds is not None
    assert findings["amplification"].checks[5].holds is not None
    for finding in findings.values():
        assert finding.panels
        for statistic in finding.statistics:
            assert not np.isinf(statistic.value)
            if isnan(statistic.value):
                assert finding.name in ("alignment", "deviation")


def test_samples_that_are_not_finite_are_left_out(memorizing: Record) -> None:
    whole = memorizing.take()
    products = whole.gram.products.clone()
    products[0] = torch.nan
    broken = replace(whole, gram=replace(whole.gram, products=products))
    holed = replace(memorizing, samples={("path", 7.5): broken})
    w0, _, _ = weights(holed, broken.states(), "target")
    kept = replace(whole, gram=whole.gram.select(torch.arange(len(products)) > 0))
    kept = replace(kept, prompts=whole.prompts[1:], seeds=whole.seeds[1:])
    expected, _, _ = weights(memorizing, kept.states(), "target")
    np.testing.assert_array_equal(w0.values, expected.values)


def test_columns_fit_the_tables(findings: dict[str, Finding]) -> None:
    from mnemoscope.runs.tables import TABLES

    laid = mechanism.columns(findings)
    for name, columns in laid.items():
        table = TABLES[name].of(columns)
        assert table.num_rows > 20
    nothing = mechanism.columns(mechanism.analyse(Record({}, {})))
    assert TABLES["statistics"].of(nothing["statistics"]).num_rows == 0


def test_panels_are_drawable_data(findings: dict[str, Finding]) -> None:
    for finding in findings.values():
        assert finding.panels
        for panel in finding.panels:
            assert panel.title
            assert panel.caption
            if isinstance(panel, CurvePanel):
                for series in panel.series:
                    assert series.x.shape == series.y.shape == series.log_snr.shape
                assert any(np.isfinite(series.y).any() for series in panel.series)


def test_severity_explained_wholly_by_the_final_weight_leaves_nothing(memorizing: Record) -> None:
    states = memorizing.take().states()
    w0, _, _ = weights(memorizing, states, "target")
    circular = replace(memorizing, severity={7.5: w0.at(-1)})
    finding = finding_of("deviation", circular)
    row = next(
        s
        for s in finding.statistics
        if s.name.startswith("partial r given the final w0 of D1 and") and s.window == "all updates"
    )
    assert isnan(row.value)
    assert "constant" in row.method


def test_an_unguided_run_does_not_refute_claims_about_guidance(memorizing: Record) -> None:
    unguided = replace(memorizing, samples={("path", 1.0): memorizing.samples["path", 1.0]})
    held = verdicts({name: finding_of(name, unguided) for name in ("loss", "decomposition")})
    assert held["loss"][1:3] == [None, None]
    assert held["decomposition"][:2] == [None, None]
    assert held["loss"][0] is True


def test_a_row_says_which_reference_window_and_population_it_is_of(
    findings: dict[str, Finding],
) -> None:
    rows = findings["deviation"].statistics
    keys = {(r.name, r.reference, r.window, r.population, r.guidance) for r in rows}
    assert len(keys) == len(rows)
    assert {r.n for r in rows if r.population == "memorized prompts"} == {8}


def test_partial_correlation_is_given_the_final_weight(
    memorizing: Record, findings: dict[str, Finding]
) -> None:
    states = memorizing.take().states()
    level = states.gram.level
    w0, wT, _ = weights(memorizing, states, "target")
    d1, _, _ = departures(w0, wT, level.alpha.numpy(), level.sigma.numpy())
    rated = np.array([memorizing.severity[7.5][prompt] for prompt in w0.prompts])
    final = np.stack([np.ones(len(rated)), w0.values[:, -1]], axis=1)

    def left(of: np.ndarray) -> np.ndarray:
        return of - final @ np.linalg.lstsq(final, of, rcond=None)[0]

    early = d1.values[:, :10].sum(axis=1)
    expected = np.corrcoef(left(early), left(rated))[0, 1]
    row = next(
        s
        for s in findings["deviation"].statistics
        if s.name.startswith("partial r given the final w0 of D1 and")
        and s.window == "first fifth of the updates"
        and s.population == "all prompts"
    )
    assert row.value == pytest.approx(expected, abs=1e-9)


def scheduler(kind: type) -> Any:
    made = kind(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
        clip_sample=False,
        **({"set_alpha_to_one": False} if kind is DDIMScheduler else {}),
    )
    made.set_timesteps(50)
    return made


def test_closed_form_of_the_exact_predictor_is_what_ddim_itself_makes_of_it() -> None:
    path = exact_path(scheduler(DDIMScheduler))
    exact = exact_unguided(path.level.at(0), Level(path.level.alpha[1:], path.level.sigma[1:]))
    np.testing.assert_allclose(exact.w0, path.w0[1:], atol=1e-6)
    np.testing.assert_allclose(exact.wT, path.wT[1:], atol=1e-6)


def test_a_sampler_with_noise_of_its_own_forgets_the_initial_noise_sooner() -> None:
    path = exact_path(scheduler(DDPMScheduler))
    leaving = path.level.sigma[1:] / path.level.sigma[0]
    # Halfway, injected noise has taken the place of much of x_T, while sigma has hardly fallen.
    assert float(path.wT[25]) < 0.6 * float(leaving[24])


def test_a_trial_state_of_a_second_order_sampler_is_no_destination() -> None:
    made = HeunDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )
    made.set_timesteps(50)
    path = exact_path(made)
    alpha, sigma = (part[1:].numpy() for part in path.level)
    calls = np.arange(1, len(alpha) + 1)
    w0, wT = (
        Trace(
            "", "path", 1.0, "target", ("p",), calls, np.zeros(len(alpha)), part[None, 1:].numpy()
        )
        for part in (path.w0, path.wT)
    )
    d1, _, _ = departures(w0, wT, alpha, sigma)
    assert len(alpha) == 99
    assert len(d1.calls) == 50
    # Summed over both calls of every level it would be -5.5; this is DDIM's sum but for its end.
    assert float(d1.values.sum()) == pytest.approx(-2.74, abs=0.1)
