"""Conditions: rows taken, repeated and joined, whatever the parts are called."""

import pytest
import torch

from mnemoscope.errors import ModelError
from mnemoscope.sampling.condition import Condition, cat


def condition(rows=3, seed=0, **fixed):
    generator = torch.Generator().manual_seed(seed)
    return Condition(
        {
            "states": torch.randn(rows, 5, 4, generator=generator),
            "pooled": torch.randn(rows, 6, generator=generator),
            "label": torch.arange(rows) + 10 * seed,
        },
        tokens="states",
        fixed=fixed,
    )


@pytest.mark.parametrize("rows", [[2, 0, 0], torch.tensor([2, 0, 0]), slice(1, 3)])
def test_rows_are_taken_of_every_part(rows):
    whole = condition(positions=7)
    part = whole.take(rows)
    for name, values in whole.parts.items():
        assert torch.equal(part.parts[name], values[rows])
    assert len(part) == len(part.parts["label"])
    assert part.tokens == "states"
    assert part.fixed == {"positions": 7}


def test_a_single_row_is_expanded_without_memory():
    one = condition(1)
    many = one.expand(1000)
    assert len(many) == 1000
    assert torch.equal(many.parts["pooled"], one.parts["pooled"].repeat(1000, 1))
    assert many.parts["states"].untyped_storage().nbytes() == 5 * 4 * 4


def test_several_rows_are_not_expanded():
    with pytest.raises(ModelError, match="has 3"):
        condition(3).expand(6)


def test_conditions_are_joined_row_after_row():
    first, second = condition(2, seed=1, positions=7), condition(3, seed=2)
    both = cat([first, second])
    assert both.parts["label"].tolist() == [10, 11, 20, 21, 22]
    assert torch.equal(both.take(slice(2, None)).parts["states"], second.parts["states"])
    assert both.fixed == {"positions": 7}


def test_what_was_joined_is_taken_apart_again():
    parts = [condition(2, seed=1), condition(3, seed=2)]
    both = cat(parts)
    for part, rows in zip(parts, (slice(0, 2), slice(2, 5)), strict=True):
        again = both.take(rows)
        assert all(torch.equal(again.parts[name], part.parts[name]) for name in part.parts)


def test_conditions_of_another_make_are_not_joined():
    with pytest.raises(ModelError, match="pooled"):
        cat([condition(), Condition.of(torch.randn(3, 5, 4))])


def test_embeddings_are_replaced_and_nothing_else():
    before = condition(seed=1)
    new = torch.randn(3, 5, 4, requires_grad=True)
    after = before.embedded(new)
    assert after.embedding is new
    assert torch.equal(after.parts["pooled"], before.parts["pooled"])
    assert not torch.equal(before.embedding, new)


def test_embeddings_of_another_shape_are_refused():
    with pytest.raises(ModelError, match=r"\(3, 5, 4\)"):
        condition().embedded(torch.randn(3, 6, 4))


def test_a_network_without_tokens_has_no_embeddings():
    bare = Condition.of(torch.randn(3, 4))
    assert bare.embedding is None
    with pytest.raises(ModelError, match="not conditioned on tokens"):
        bare.embedded(torch.randn(3, 4, 1))


def test_text_states_are_tokens():
    states = torch.randn(2, 7, 3)
    assert Condition.of(states).embedding is states


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ({}, "got none"),
        ({"a": torch.zeros(2), "b": torch.zeros(3)}, "'a': 2, 'b': 3"),
    ],
)
def test_parts_of_several_lengths_are_refused(parts, word):
    with pytest.raises(ModelError, match=word):
        Condition(parts)
