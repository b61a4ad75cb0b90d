"""The tape: what a recorder keeps of calls, and rows of it."""

import pytest
import torch

from mnemoscope.core.level import Level
from mnemoscope.core.predict import Prediction
from mnemoscope.core.record import Call, Point, Recorder, join

ANGLES = (1.5707963267948966, 1.0, 0.2)


def calls_of(samples=3, uncond=True, guided=True):
    """Build calls whose predictions make the state, the first of them at pure noise."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for at, angle in enumerate(ANGLES):
        angle = torch.tensor(angle, dtype=torch.float64)
        # At a right angle the cosine is 6e-17 and not 0.
        level = Level(angle.cos() if at else torch.zeros_like(angle), angle.sin())
        x0, eps, other, third = torch.randn(4, samples, 2, 3, generator=generator).double()
        x = level.alpha * x0 + level.sigma * eps

        def of(clean, x=x, level=level):
            return Prediction(clean, (x - level.alpha * clean) / level.sigma)

        cond = of(x0)
        made.append(
            Call(
                Point(at, torch.tensor(at), level),
                x,
                cond,
                of(other) if uncond else None,
                of(third) if guided else cond,
            )
        )
    return made


def tape_of(calls, **ends):
    recorder = Recorder()
    for call in calls:
        recorder(call)
    return recorder.trajectory(**ends)


def test_clean_and_noise_estimates_come_back_at_every_level():
    calls = calls_of()
    tape = tape_of(calls)
    for at, call in enumerate(calls):
        for branch, told in (("u", call.uncond), ("c", call.cond), ("g", call.guided)):
            # float32 of values of order one.
            close = {"atol": 2e-6, "rtol": 0}
            torch.testing.assert_close(tape.x0(branch)[:, at], told.x0.flatten(1).float(), **close)
            torch.testing.assert_close(
                tape.eps(branch)[:, at], told.eps.flatten(1).float(), **close
            )


def test_pure_noise_keeps_three_different_clean_estimates():
    tape = tape_of(calls_of())
    first = [tape.x0(branch)[:, 0] for branch in "ucg"]
    assert all(part.isfinite().all() for part in first)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])


def test_a_missing_branch_is_nan_and_an_unguided_one_is_the_conditional():
    tape = tape_of(calls_of(uncond=False, guided=False))
    assert tape.v_u.isnan().all()
    assert torch.equal(tape.v_g, tape.v_c)


def test_ends_are_what_was_given_or_what_is_known():
    calls = calls_of()
    bare = tape_of(calls)
    assert torch.equal(bare.x_T, bare.x[:, 0])
    assert bare.x_0.isnan().all()
    noise, final = torch.randn(2, 3, 2, 3)
    told = tape_of(calls, x_0=final, x_T=noise)
    assert torch.equal(told.x_T, noise.flatten(1))
    assert torch.equal(told.x_0, final.flatten(1))


@pytest.mark.parametrize(
    "rows", [torch.tensor([True, False, True]), torch.tensor([2, 0])], ids=["mask", "places"]
)
def test_rows_are_taken_and_joined(rows):
    tape = tape_of(calls_of())
    part = tape.take(rows)
    assert torch.equal(part.x, tape.x[rows])
    assert torch.equal(part.x_0.isnan(), tape.x_0[rows].isnan())
    assert part.calls == tape.calls == len(ANGLES)
    both = join([part, tape])
    assert torch.equal(both.v_c, torch.cat([tape.v_c[rows], tape.v_c]))
    assert torch.equal(both.level.alpha, tape.level.alpha)


def test_a_recorder_forgets_what_it_gave():
    recorder = Recorder()
    calls = calls_of()
    for call in calls:
        recorder(call)
    recorder.trajectory()
    recorder(calls[0])
    assert recorder.trajectory().calls == 1
