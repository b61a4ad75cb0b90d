"""Captions: like lengths of both kinds, and no filler that gives away what is shown."""

from collections import Counter

import pytest
import torch

from mnemoscope.lab.captions import LENGTHS, WORDS, core, describe, dress, fillers, phrase
from mnemoscope.lab.scenes import drawings

PAIR = drawings()[:2]


def test_both_kinds_have_every_length_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = range(LENGTHS[0], LENGTHS[1] + 1)
    for draw in (lambda: phrase(generator), lambda: describe(PAIR, generator)):
        counts = Counter(len(draw().split()) for _ in range(700))
        assert set(counts) == set(lengths)
        assert all(count / 700 == pytest.approx(1 / 7, abs=0.05) for count in counts.values())


def test_fillers_and_meaningless_words_name_no_drawing() -> None:
    named = {word for name in drawings() for word in name.split()}
    assert len(set(WORDS)) == len(WORDS)
    assert not named & fillers()
    assert not set(WORDS) & (named | fillers())


def test_a_description_names_its_drawings_in_order_and_a_phrase_names_none() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        caption = describe(PAIR, generator)
        assert 0 <= caption.index(PAIR[0]) < caption.index(PAIR[1])
        assert drawings()[5] in describe(drawings()[5:6], generator)
        assert set(phrase(generator).split()) <= {*WORDS, *fillers()}


def test_a_fresh_phrase_is_none_of_those_taken() -> None:
    first = phrase(torch.Generator().manual_seed(0))
    assert phrase(torch.Generator().manual_seed(0), {first}) != first


def test_another_wording_keeps_the_words_and_changes_what_is_around_them() -> None:
    generator = torch.Generator().manual_seed(2)
    words = core(generator)
    said = {dress(words, generator) for _ in range(20)}
    assert len(said) > 5
    assert all(words in caption for caption in said)
    assert {w for c in said for w in c.replace(words, "").split()} <= fillers()
