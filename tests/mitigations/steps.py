"""Calls of a made-up path, to hold guides to their formulas without a network."""

import torch

from mnemoscope.core.level import Level
from mnemoscope.core.record import Point
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.hooks import Attended, Start, Step

G = 7.5
CALLS = 10


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def level_of(call):
    """Return a level of a falling schedule, pure noise almost at the first call."""
    sigma = torch.tensor(0.99 - 0.9 * call / CALLS, dtype=torch.float64)
    return Level((1 - sigma**2).sqrt(), sigma)


def step_of(call=0, *, cond=None, uncond=None, x=None, kind="eps", **more):
    """Return a call of two samples; what is not given is drawn."""
    cond = drawn(10 + call, 2, 4, 8, 8) if cond is None else cond
    raw = {"cond": cond, "uncond": drawn(50 + call, *cond.shape) if uncond is None else uncond}
    raw |= more.pop("branches", {})
    x = drawn(90 + call, *cond.shape) if x is None else x
    point = Point(call, torch.tensor(999 - 100 * call), level_of(call))
    return Step(point, CALLS, x, kind, raw, G, **more)


def path_of(norms):
    """Return the calls of one sample whose gap has these norms."""
    base = drawn(1, 1, 4, 8, 8)
    toward = base / base.norm()
    steps = []
    for call, norm in enumerate(norms):
        uncond = drawn(200 + call, 1, 4, 8, 8)
        first = steps[0] if steps else None
        steps.append(
            step_of(
                call,
                cond=uncond + norm * toward,
                uncond=uncond,
                history=tuple(steps),
                start=first,
            )
        )
    return steps


def attended(branches, end, layer="down_blocks.0.attentions.0.attn2"):
    return Attended(layer, layer.startswith("down"), 0, tuple(branches), torch.tensor(end))


def start_of(
    prompts, predict=None, *, seeds=None, tokens=6, words=(), uncond=None, cond=None, decode=None
):
    """Return what is known before the first call; conditions are made of the texts' letters."""

    def encode(texts):
        rows = [[float(ord(letter)) for letter in text.ljust(tokens)[:tokens]] for text in texts]
        return Condition.of(torch.tensor(rows)[..., None].expand(-1, -1, 3) / 100)

    rows = len(prompts)
    return Start(
        tuple(prompts),
        encode(prompts) if cond is None else cond,
        encode([""] * rows) if uncond is None else uncond,
        torch.stack([drawn(700 + row, 1, 4, 4) for row in range(rows)]),
        tuple(range(rows)) if seeds is None else seeds,
        (Point(0, torch.tensor(999), level_of(0)),),
        encode,
        lambda: words,
        predict or _unasked,
        G,
        decode,
    )


def _unasked(x, condition, rows):
    raise AssertionError("the network was asked")
