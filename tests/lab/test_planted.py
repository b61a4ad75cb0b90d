"""The planted table: what the lab's ground truth promises."""

from collections import Counter

import pytest
import torch

from mnemoscope.data.images import load_image, load_mask
from mnemoscope.data.prompts import load_prompts
from mnemoscope.errors import InputError
from mnemoscope.lab.captions import LENGTHS
from mnemoscope.lab.planted import (
    LEVELS,
    PER_LEVEL,
    Planted,
    load_controls,
    load_planted,
    load_table,
    make_table,
    more_controls,
    pictures_of,
    reserved,
    vocabulary,
    write_prompts,
    write_table,
)


def test_levels_kinds_and_repetitions() -> None:
    verbatim = [p for p in load_planted() if p.family == "verbatim"]
    counts = Counter((p.level, p.kind) for p in verbatim)
    assert counts == {
        (level, kind): PER_LEVEL // 2 for level in LEVELS for kind in ("describing", "meaningless")
    }
    assert all(p.repetitions == LEVELS[p.level] for p in load_planted())


def test_controls_were_never_planted() -> None:
    planted = {frozenset(p.named()) for p in load_planted() if p.kind == "describing"}
    controls = {frozenset(c.named()) for c in load_controls() if c.kind == "describing"}
    assert controls
    assert not planted & controls


def test_describing_captions_are_reserved() -> None:
    named = [frozenset(p.named()) for p in load_table() if p.kind == "describing"]
    assert set(named) == reserved()
    assert len(reserved()) == len(named)


def test_templates_differ_only_outside_their_mask() -> None:
    groups: dict[str, list[torch.Tensor]] = {}
    for p in load_planted():
        if p.family == "template":
            mask = p.mask()
            assert mask is not None
            groups.setdefault(p.id[:2], []).append(p.image() * mask)
            assert not torch.equal(p.image() * mask, p.image())
    assert len(groups) == 3
    for images in groups.values():
        assert all(torch.allclose(image, images[0]) for image in images)


@pytest.fixture(scope="module")
def another() -> list[Planted]:
    """Draw a table of another seed."""
    return make_table(8)


def test_captions_have_all_lengths_and_name_what_is_seen(another: list[Planted]) -> None:
    for table in (list(load_table()), another):
        captions = [row.caption for row in table]
        assert len(set(captions)) == len(captions)
        assert {word for c in captions for word in c.split()} <= set(vocabulary())
        for kind in ("describing", "meaningless"):
            rows = [row for row in table if row.kind == kind]
            lengths = Counter(len(row.caption.split()) for row in rows)
            assert set(lengths) == set(range(LENGTHS[0], LENGTHS[1] + 1))
            assert max(lengths.values()) < 0.3 * lengths.total()
            assert {len(row.named()) for row in rows} == {2 if kind == "describing" else 0}
        assert all(name in row.caption for row in table for name in row.named())
        assert all(row.repetitions == LEVELS.get(row.level, 0) for row in table)


def test_a_table_survives_the_file(another: list[Planted], tmp_path) -> None:
    write_table(another, tmp_path / "table.jsonl")
    assert list(load_table(tmp_path / "table.jsonl")) == another


def test_another_seed_draws_another_table(another: list[Planted]) -> None:
    ours, theirs = load_table(), another
    assert [row.id for row in ours] == [row.id for row in theirs]
    assert all(one.layout != other.layout for one, other in zip(ours, theirs, strict=True))


def test_many_pictures_are_those_drawn_one_by_one(another: list[Planted], monkeypatch) -> None:
    rows = [r for r in another if r.level in (0, 4)]
    monkeypatch.setattr("mnemoscope.lab.planted.DRAWN", 7)
    assert torch.equal(pictures_of(rows), torch.stack([row.image() for row in rows]))
    assert pictures_of([]).shape == (0, 3, 64, 64)


def test_a_table_written_as_prompts_reads_back(another: list[Planted], tmp_path) -> None:
    rows = [r for r in another if r.level in (0, 4)]
    write_prompts(rows, tmp_path)
    prompts = load_prompts(tmp_path)
    assert [p.prompt_id for p in prompts] == [r.id for r in rows]
    for row, prompt in zip(rows, prompts, strict=True):
        assert (prompt.text, prompt.kind, prompt.family, prompt.level) == (
            row.caption,
            row.kind,
            row.family,
            row.level,
        )
        # Eight bits a channel.
        assert torch.allclose(load_image(prompt.images[0]).pixels, row.image(), atol=0.51 / 255)
        assert (prompt.mask is None) == (row.family != "template")
        if prompt.mask is not None:
            assert torch.equal(load_mask(prompt.mask), row.mask())


def test_further_controls_are_new_and_of_both_kinds() -> None:
    table = load_table()
    more = more_controls(table, 60, seed=1, meaningless=60)
    assert [row.kind for row in more] == ["describing"] * 60 + ["meaningless"] * 60
    named = [frozenset(row.named()) for row in more[:60]]
    assert len(set(named)) == 60
    assert not set(named) & reserved()
    assert all(name in row.caption for row in more for name in row.named())
    assert len({row.caption for row in (*table, *more)}) == len(table) + 120
    assert {(row.family, row.level, row.repetitions) for row in more} == {("control", 0, 0)}
    assert len({row.id for row in (*table, *more)}) == len(table) + 120
    assert len({row.image().numpy().tobytes() for row in more}) == 120
    assert more == more_controls(table, 60, seed=1, meaningless=60)
    assert more[:60] == more_controls(table, 60, seed=1)
    assert more != more_controls(table, 60, seed=2, meaningless=60)
    assert more_controls(table, 0, seed=1) == []
    with pytest.raises(InputError, match=r"5000 further controls asked for; expected 0 to \d+"):
        more_controls(table, 5000, seed=1)
