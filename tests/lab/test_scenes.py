"""Scenes: reproducible, endless, and never showing a reserved combination."""

import torch

from mnemoscope.lab.captions import CONNECTORS
from mnemoscope.lab.scenes import Layout, Scenes, artwork, drawings, render, shown


def test_every_drawing_exists_by_both_artists() -> None:
    emoji = [name.split()[1] for name in drawings()]
    assert len(emoji) == 2 * len(set(emoji))
    assert artwork().shape == (len(drawings()), 4, 64, 64)


def test_premultiplied_colour_never_exceeds_alpha() -> None:
    assert bool((artwork()[:, :3] <= artwork()[:, 3:] + 1e-6).all())


def test_same_seed_same_scenes_and_the_stream_moves_on() -> None:
    first, again = Scenes(3), Scenes(3)
    a, captions = first.batch(16)
    b, same = again.batch(16)
    assert torch.equal(a, b)
    assert captions == same
    assert not torch.equal(first.batch(16)[0], a)


def test_reserved_combinations_never_occur() -> None:
    names = drawings()
    # Everything that pairs the first drawing is reserved, so it may only stand alone.
    reserved = frozenset(frozenset({names[0], other}) for other in names[1:])
    held = shown(Scenes(0, reserved).layout(4000))
    assert (names[0],) in held
    assert not any(names[0] in named and len(named) > 1 for named in held)


def test_caption_names_both_drawings_in_order() -> None:
    layout, (_, captions) = Scenes(1).layout(64), Scenes(1).batch(64)
    for named, caption in zip(shown(layout), captions, strict=True):
        cores = {f" {connector} ".join(named) for connector in CONNECTORS}
        assert any(core in caption for core in cores)


def test_an_upright_drawing_covers_its_place_with_its_own_colour() -> None:
    # A basketball fills its frame: the picture's centre is the drawing's centre, whatever is
    # behind.
    index = drawings().index("twemoji basketball")
    layout = Layout(
        drawing=torch.tensor([[index, -1]]),
        size=torch.ones(1, 2),
        tilt=torch.zeros(1, 2),
        mirror=torch.zeros(1, 2, dtype=torch.bool),
        place=torch.zeros(1, 2, 2),
        colour=torch.zeros(1, 2, 3),
        direction=torch.zeros(1),
        texture=torch.zeros(1, 3, 5, 5),
    )
    assert torch.allclose(render(layout)[0], artwork()[index, :3], atol=1e-5)
