"""Handing out units: who gets what, what becomes of a death, and when a driver gives up."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mnemoscope.errors import InputError, RunError
from mnemoscope.runs import crew as module
from mnemoscope.runs.actors import Cluster
from mnemoscope.runs.crew import STARTS, TRIES, Died, Order, Post, hand_out
from mnemoscope.runs.execute import execute
from mnemoscope.runs.executors import Execution, executor_of
from mnemoscope.runs.folder import Writer, open_run
from mnemoscope.runs.processes import Local
from tests.runs.test_folder import manifest
from tests.runs.workers import Sleeper, units


class Played:
    """A crew without processes: a place works when it is waited for, or dies when it is told to.

    Args:
        post: Where the work is done.
        dies: For each unit, how many workers die at it; for "" before they begin.
        late: Whether they die once the unit is committed, and before they report.
    """

    def __init__(self, post, dies=(), late=False):
        self.post, self.dies, self.late = post, Counter(dies), late
        self.given = {}
        self.hired, self.begun, self.closed = [], [], 0

    def hire(self, place):
        self.hired.append(place)
        self.given[place] = None

    def give(self, place, unit):
        self.given[place] = unit
        self.begun.append(unit.name)

    def wait(self, places):
        assert set(places) <= set(self.given)
        place = min(places)
        unit = self.given[place]
        name = "" if unit is None else unit.name
        if self.dies[name]:
            self.dies[name] -= 1
            if self.late:
                self.post.do(unit)
            return {place: Died("status -9")}
        return {place: 0 if unit is None else self.post.do(unit)}

    def close(self):
        self.closed += 1


@pytest.fixture
def writer(tmp_path):
    with Writer.open(tmp_path / "run", manifest()) as writer:
        yield writer


def played(writer, **changes):
    return Played(Post(Order.of(writer, 1), Sleeper().elsewhere()), **changes)


def statuses(writer):
    rows = open_run(writer.path).table("samples").to_pylist()
    assert [row["prompt_id"] for row in rows] == [f"p{at:05d}" for at in range(len(rows))]
    return Counter(row["status"] for row in rows)


def test_every_unit_is_done_once_and_told(writer):
    crew, worker, told = played(writer), Sleeper(), []
    hand_out(crew, 3, writer, worker, units(7), told.append)
    assert sorted(crew.begun) == [unit.name for unit in units(7)]
    assert sorted(unit.name for unit in told) == sorted(crew.begun)
    assert statuses(writer) == {"ok": 7}
    assert worker.credited == 7
    assert (crew.hired, crew.closed) == ([0, 1, 2], 1)


def test_no_more_are_hired_than_there_are_units(writer):
    crew = played(writer)
    hand_out(crew, 50, writer, Sleeper(), units(2))
    assert crew.hired == [0, 1]
    crew = played(writer)
    hand_out(crew, 50, writer, Sleeper(), [])
    assert crew.hired == []


def test_units_are_read_no_further_than_there_are_workers(writer):
    read, ahead = [], []

    def listed():
        for unit in units(20):
            read.append(unit.name)
            yield unit

    done = []

    def told(unit):
        done.append(unit)
        ahead.append(len(read) - len(done))

    hand_out(played(writer), 2, writer, Sleeper(), listed(), told)
    assert len(done) == 20
    assert max(ahead) <= 1


@pytest.mark.parametrize("deaths", range(1, TRIES))
def test_the_unit_of_a_worker_that_died_is_done_by_another_after_all_others(writer, deaths):
    victim = units(5)[1].name
    crew = played(writer, dies={victim: deaths})
    hand_out(crew, 2, writer, Sleeper(), units(5))
    assert set(crew.begun[-deaths:]) == {victim}
    assert statuses(writer) == {"ok": 5}
    assert Counter(crew.begun)[victim] == deaths + 1
    assert len(crew.hired) == 2 + deaths


def test_the_last_unit_is_not_lost_with_its_worker(writer):
    crew = played(writer, dies={units(4)[-1].name: 1})
    hand_out(crew, 2, writer, Sleeper(), units(4))
    assert statuses(writer) == {"ok": 4}


def test_a_unit_that_was_committed_before_its_worker_died_is_not_done_again(writer):
    victim = units(5)[1].name
    crew, told = played(writer, dies={victim: 1}, late=True), []
    hand_out(crew, 2, writer, Sleeper(), units(5), told.append)
    assert Counter(crew.begun)[victim] == 1
    assert len(told) == 5
    assert statuses(writer) == {"ok": 5}


def test_a_unit_at_which_workers_always_die_is_marked(writer):
    victim = units(6, 2)[1]
    crew = played(writer, dies={victim.name: 99})
    hand_out(crew, 2, writer, Sleeper(), units(6, 2))
    assert statuses(writer) == {"ok": 4, "error": 2}
    assert Counter(crew.begun)[victim.name] == TRIES
    rows = open_run(writer.path).part("samples", victim.name).to_pylist()
    assert {row["reason"] for row in rows} == {f"{TRIES} workers died at it: status -9"}


def test_workers_that_never_begin_end_the_run(writer):
    crew = played(writer, dies={"": 99})
    with pytest.raises(RunError, match="died before they began, the last one: status -9"):
        hand_out(crew, 2, writer, Sleeper(), units(5))
    assert len(crew.hired) == STARTS * 2 + 1
    assert crew.closed == 1


def test_some_that_do_not_begin_do_not(writer):
    crew = played(writer, dies={"": STARTS})
    hand_out(crew, 2, writer, Sleeper(), units(5))
    assert statuses(writer) == {"ok": 5}


def test_a_list_that_breaks_off_ends_the_run(writer):
    def listed():
        yield from units(3)
        raise InputError("the list has changed")

    crew = played(writer)
    with pytest.raises(InputError, match="has changed"):
        hand_out(crew, 2, writer, Sleeper(), listed())
    assert crew.closed == 1


def test_commits_that_are_not_seen_end_the_run(writer, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    with Writer.open(tmp_path / "elsewhere", manifest()) as other:
        crew = played(other)
        with pytest.raises(RunError, match="storage that all machines share"):
            hand_out(crew, 2, writer, Sleeper(), units(3))


def test_another_version_is_refused(writer):
    order = replace(Order.of(writer, 1), version="0.0.9")
    with pytest.raises(RunError, match=r"a worker runs mnemoscope .*, its driver 0\.0\.9"):
        order.taken()


def test_a_folder_that_is_not_shared_is_refused(writer, tmp_path):
    (tmp_path / "empty").mkdir()
    order = replace(Order.of(writer, 1), folder=str(tmp_path / "empty"))
    with pytest.raises(RunError, match="storage that all machines share"):
        order.taken()


def test_who_works_for_a_driver_that_is_gone_writes_nothing(tmp_path):
    with Writer.open(tmp_path, manifest()) as first:
        post = Post(Order.of(first, 1), Sleeper().elsewhere())
        post.do(units(2)[0])
    with Writer.open(tmp_path, manifest()) as second:
        with pytest.raises(RunError, match="held by another process by now"):
            post.do(units(2)[1])
        assert second.finished() == {units(2)[0].name}


def test_relative_paths_begin_where_the_driver_is(writer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    order = Order.of(Writer(Path("run"), writer.holder), 1)
    monkeypatch.chdir("/")
    assert order.taken().path == tmp_path / "run"
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("inline", execute),
        ("local", Local()),
        ("local:3", Local(3)),
        ("ray", Cluster()),
        ("ray:12", Cluster(12)),
    ],
)
def test_an_executor_is_named(name, wanted):
    assert executor_of(Execution(executor=name)) == wanted


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"executor": "locale"}, "Did you mean 'local'"),
        ({"executor": "slurm"}, "unknown executor 'slurm'"),
        ({"executor": "local:0"}, "at least 1"),
        ({"executor": "local:-2"}, "at least 1"),
        ({"executor": "local:many"}, "at least 1"),
        ({"executor": "inline:2"}, "at least 1"),
        ({"executor": "ray:0"}, "at least 1"),
        ({"executor": "local", "address": "auto"}, "which --executor ray alone takes"),
        ({"executor": "local", "share": 0.0}, "share"),
        ({"executor": "local", "share": float("nan")}, "share"),
    ],
)
def test_an_executor_that_is_none_is_refused(changes, word):
    with pytest.raises(InputError, match=word):
        executor_of(Execution(**changes))
