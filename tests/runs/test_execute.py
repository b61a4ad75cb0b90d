"""Units: how a list is cut, that it is read as needed, and in which order work is committed."""

import pickle
import threading
from itertools import count, islice

import pytest

from mnemoscope.data.prompts import Prompt
from mnemoscope.errors import RunError
from mnemoscope.runs.execute import Unit, chunk_of, execute, units_of
from mnemoscope.runs.folder import Writer, open_run
from mnemoscope.runs.parts import chunks
from mnemoscope.runs.tables import TABLES
from mnemoscope.sampling.recipe import Recipe
from tests.runs.test_folder import manifest

RECIPES = (Recipe(guidance=1.0), Recipe(guidance=7.5))


def listed(many=20):
    return tuple(Prompt(f"p{at}", f"text {at}") for at in range(many))


def test_units_cover_every_prompt_at_every_recipe_once():
    units = list(units_of(listed(), RECIPES, 3))
    cells = [(p.prompt_id, unit.recipe) for unit in units for p in unit.prompts]
    assert len(cells) == len(set(cells)) == 40
    assert len({unit.name for unit in units}) == len(units) == 14
    first = [p.prompt_id for unit in units if unit.first for p in unit.prompts]
    assert first == [f"p{at}" for at in range(20)]


def test_units_know_the_places_of_their_prompts():
    known = listed()
    for unit in units_of(known, RECIPES, 3):
        assert [known[place] for place in unit.places] == list(unit.prompts)


def test_names_sort_as_the_list_runs():
    names = [unit.name for unit in units_of(listed(2000), RECIPES[:1], 1)]
    assert names == sorted(names)


def test_a_list_is_read_as_needed():
    read = count()

    def million():
        for at in range(10**6):
            next(read)
            yield Prompt(f"p{at}", "text")

    some = list(islice(units_of(million(), RECIPES, 4), 5))
    assert [unit.start for unit in some] == [0, 0, 4, 4, 8]
    assert next(read) == 12


def test_units_are_values_that_can_be_sent():
    unit = next(iter(units_of(listed(), RECIPES, 3)))
    assert pickle.loads(pickle.dumps(unit)) == unit
    assert hash(unit) == hash(pickle.loads(pickle.dumps(unit)))


def test_chunks_lose_nothing():
    assert list(chunks(range(7), 3)) == [(0, 1, 2), (3, 4, 5), (6,)]
    assert list(chunks((), 3)) == []


def test_a_unit_is_a_batch_unless_the_tape_would_be_too_large():
    small = {"batch": 32, "calls": 50, "d": 192}
    assert chunk_of(seeds=4, **small) == 8
    assert chunk_of(seeds=64, **small) == 1
    assert chunk_of(seeds=1, batch=32, calls=50, d=2**20) == 1
    assert chunk_of(seeds=1, batch=32, calls=50, d=2**16) == 1
    # An accelerator holds 32 times as much.
    assert chunk_of(seeds=1, batch=64, calls=50, d=2**16, accelerator=True) == 40


class Working:
    """A worker whose rows are the names of its prompts; notes what it does in which thread.

    Args:
        fails: Unit whose rows cannot be written.
        stops: Unit at which it is interrupted.
        breaks: What goes wrong with one prompt: a step, and the prompt.
    """

    def __init__(self, fails=None, stops=None, breaks=None):
        self.fails, self.stops, self.breaks = fails, stops, breaks
        self.done = []

    def break_at(self, step, names):
        if self.breaks and self.breaks[0] == step and self.breaks[1] in names:
            raise ValueError(f"cannot {step}")

    def gather(self, unit):
        if unit.name == self.stops:
            raise KeyboardInterrupt
        self.break_at("gather", [prompt.prompt_id for prompt in unit.prompts])
        self.done.append(("gather", unit.name, threading.current_thread().name))
        return [prompt.prompt_id for prompt in unit.prompts]

    def reduce(self, unit, gathered):
        if unit.name == self.fails:
            raise RunError("no space")
        self.break_at("reduce", gathered)
        self.done.append(("reduce", unit.name, threading.current_thread().name))
        return self.rows(unit, "ok")

    def failed(self, unit, error):
        assert len(unit.prompts) == 1
        return self.rows(unit, "error", str(error))

    def rows(self, unit, status, reason=None):
        rows = [
            {
                "prompt_id": prompt.prompt_id,
                "seed": 0,
                "recipe": unit.recipe.key,
                "status": status,
                "reason": reason,
                "network_calls": 1,
                "seconds": 0.0,
            }
            for prompt in unit.prompts
        ]
        return {"samples": TABLES["samples"].of_rows(rows)}


def units():
    return list(units_of(listed(6), RECIPES[:1], 2))


def done(folder, worker, todo, **options):
    with Writer.open(folder, manifest()) as writer:
        execute(writer, worker, todo, **options)
    return open_run(folder)


@pytest.mark.parametrize("overlap", [False, True])
def test_every_unit_is_committed_and_told(tmp_path, overlap):
    told = []
    run = done(tmp_path, Working(), iter(units()), overlap=overlap, done=told.append)
    names = run.table("samples")["prompt_id"].to_pylist()
    assert names == [f"p{at}" for at in range(6)]
    assert told == units()


def test_overlap_changes_the_thread_and_nothing_else(tmp_path):
    plain, beside = Working(), Working()
    one = done(tmp_path / "one", plain, units())
    two = done(tmp_path / "two", beside, units(), overlap=True)
    assert one.table("samples").equals(two.table("samples"))
    assert {thread for _, _, thread in plain.done} == {threading.current_thread().name}
    for what, _, thread in beside.done:
        assert thread.startswith("mnemoscope-rows") == (what == "reduce")
    assert sorted(beside.done)[:3] == sorted(plain.done)[:3]


@pytest.mark.parametrize("overlap", [False, True])
def test_a_unit_that_cannot_be_written_stops_the_run_and_keeps_the_others(tmp_path, overlap):
    second = units()[1].name
    with pytest.raises(RunError, match="no space"):
        done(tmp_path, Working(fails=second), units(), overlap=overlap)
    assert open_run(tmp_path).commits().keys() == {units()[0].name}


@pytest.mark.parametrize("overlap", [False, True])
def test_what_was_gathered_before_an_interruption_is_kept(tmp_path, overlap):
    third = units()[2].name
    with pytest.raises(KeyboardInterrupt):
        done(tmp_path, Working(stops=third), units(), overlap=overlap)
    assert open_run(tmp_path).commits().keys() == {unit.name for unit in units()[:2]}


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("step", ["gather", "reduce"])
@pytest.mark.parametrize("victim", ["p0", "p3", "p5"])
def test_an_error_in_one_prompt_marks_it_alone(tmp_path, overlap, step, victim):
    run = done(tmp_path, Working(breaks=(step, victim)), units(), overlap=overlap)
    rows = run.table("samples").to_pylist()
    assert [row["prompt_id"] for row in rows] == [f"p{at}" for at in range(6)]
    bad = {row["prompt_id"]: row["reason"] for row in rows if row["status"] != "ok"}
    assert bad == {victim: f"cannot {step}"}
    assert run.commits().keys() == {unit.name for unit in units()}


def test_a_part_of_a_unit_knows_its_places():
    unit = list(units_of(listed(), RECIPES[:1], 5))[2]
    part = unit.part([1, 2])
    assert part.name == unit.name
    assert [prompt.prompt_id for prompt in part.prompts] == ["p11", "p12"]
    assert list(part.places) == [11, 12]


def test_a_unit_of_one_prompt_at_the_end():
    last = list(units_of(listed(5), RECIPES[:1], 2))[-1]
    assert isinstance(last, Unit)
    assert len(last.prompts) == 1
    assert list(last.places) == [4]
