"""Workers on a cluster of Ray: what they leave is what one process leaves."""

import os
import signal
import socket
import sys
import time
from collections import Counter
from random import Random
from types import SimpleNamespace

import pytest

from benchmarks import chaos
from mnemoscope.errors import ModelError, RunError
from mnemoscope.runs import actors as module
from mnemoscope.runs.actors import Cluster
from mnemoscope.runs.folder import open_run
from tests.runs.test_processes import done, statuses
from tests.runs.workers import Sleeper, units


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match=r"pip install 'mnemoscope\[ray\]'"):
        done(tmp_path, Sleeper(), units(2), Cluster(1))


@pytest.mark.parametrize(
    ("address", "variable", "wanted"),
    [(None, "", "local"), (None, "head:6379", "head:6379"), ("auto", "head:6379", "auto")],
)
def test_a_cluster_that_happens_to_run_here_is_not_joined_unasked(
    address, variable, wanted, monkeypatch
):
    monkeypatch.setenv("RAY_ADDRESS", variable)
    told = {}
    module._join(SimpleNamespace(init=lambda **options: told.update(options)), address)
    assert told["address"] == wanted
    assert told.get("include_dashboard", True) is (wanted != "local")


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield ray
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_actors_that_are_killed_cost_their_unit_at_most(tmp_path):
    log, killed = tmp_path / "log", []

    def told(unit):
        rows = open_run(tmp_path / "run").part("samples", unit.name).to_pylist()
        if len(killed) < 2:
            killed.append(int(rows[0]["seconds"]))
            time.sleep(0.05)
            os.kill(killed[-1], signal.SIGKILL)

    worker = Sleeper(pace=0.1, broken="p00003", log=str(log))
    run = done(tmp_path / "run", worker, units(16), Cluster(2), told)
    assert statuses(run) == {f"p{at:05d}": "error" if at == 3 else "ok" for at in range(16)}
    begun = Counter(log.read_text().split())
    assert len(begun) == 16
    assert sum(begun.values()) <= 16 + len(killed)
    assert len(killed) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_an_actor_that_cannot_begin_says_why(tmp_path):
    with pytest.raises(ModelError, match="no such model here"):
        done(tmp_path, Sleeper(refuses=True), units(3), Cluster(1))


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_cluster_without_room_is_refused(tmp_path):
    with pytest.raises(RunError, match="no worker with a share of 64 has room"):
        done(tmp_path, Sleeper(), units(3), Cluster(1, share=64.0))


def test_an_address_that_does_not_answer_is_refused():
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*free.getsockname())
    with pytest.raises(RunError, match=f"no Ray cluster answers at '{address}'"):
        module._join(ray, address)


@pytest.mark.slow
@pytest.mark.parametrize("fault", chaos.CAMPAIGNS)
def test_what_dies_on_a_cluster_costs_its_units_at_most(fault):
    pytest.importorskip("ray", reason="Ray is not installed")
    with chaos.machines("ray:2") as machines:
        by = chaos.Chaos("ray:2", 0.2, 2.0, Random(0), machines)
        assert chaos.main(by, only=fault, flow="detect")
