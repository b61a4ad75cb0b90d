"""Scenes: reproducible, endless, and never showing a reserved combination."""

import torch

from mnemoscope.lab.scenes import Layout, Scenes, artwork, captions_of, drawings, pair_of, render


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
    reserved = frozenset(pair_of(f"{names[0]} and {other}") for other in names[1:])
    captions = Scenes(0, reserved).batch(4000)[1]
    assert any(c == names[0] for c in captions)
    assert not any(names[0] in pair_of(c) and " and " in c for c in captions)


def test_caption_names_both_drawings_in_order() -> None:
    layout = Scenes(1).layout(64)
    for row, caption in zip(layout.drawing.tolist(), captions_of(layout), strict=True):
        assert caption.split(" and ") == [drawings()[i] for i in row if i >= 0]


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
