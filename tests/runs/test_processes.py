"""Workers in processes of this machine: killed, failing, and left alone by their driver."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mnemoscope.errors import InputError, ModelError, RunError
from mnemoscope.models.source import Source
from mnemoscope.runs import processes as module
from mnemoscope.runs import records
from mnemoscope.runs.execute import execute
from mnemoscope.runs.folder import Writer, open_run
from mnemoscope.runs.processes import Local
from tests.runs.test_folder import manifest
from tests.runs.workers import Sleeper, units

ROOT = Path(__file__).parents[2]


def done(folder, worker, todo, by=Local(2), told=None):  # noqa: B008
    with Writer.open(folder, manifest()) as writer:
        finished = writer.finished()
        left = (unit for unit in todo if unit.name not in finished)
        by(writer, worker, left, done=told)
    return open_run(folder)


def statuses(run):
    return {row["prompt_id"]: row["status"] for row in run.table("samples").to_pylist()}


def test_what_goes_wrong_with_one_prompt_is_marked_alone(tmp_path):
    """One raises, one ends its process whenever it comes up: of twelve prompts, ten are done."""
    log = tmp_path / "log"
    worker = Sleeper(broken="p00003", deadly="p00008", log=str(log))
    run = done(tmp_path / "run", worker, units(12), Local(1))
    assert statuses(run) == {f"p{at:05d}": "error" if at in (3, 8) else "ok" for at in range(12)}
    reasons = [row["reason"] for row in run.table("samples").to_pylist() if row["reason"]]
    assert reasons == ["cannot gather", "3 workers died at it: its process ended with status -9"]
    assert worker.credited == 10
    begun = Counter(log.read_text().split())
    assert {count for name, count in begun.items() if not name.startswith("000008")} == {1}


def test_a_worker_that_is_killed_costs_its_unit_at_most(tmp_path):
    log, killed = tmp_path / "log", []

    def told(unit):
        rows = open_run(tmp_path / "run").part("samples", unit.name).to_pylist()
        if len(killed) < 2:
            # Rows tell of the process that wrote them, which has the next unit by now.
            killed.append(int(rows[0]["seconds"]))
            time.sleep(0.05)
            os.kill(killed[-1], signal.SIGKILL)

    run = done(tmp_path / "run", Sleeper(pace=0.1, log=str(log)), units(16), told=told)
    assert statuses(run) == {f"p{at:05d}": "ok" for at in range(16)}
    begun = Counter(log.read_text().split())
    assert len(begun) == 16
    assert sum(begun.values()) <= 16 + len(killed)


CHILD = """
import signal
import sys
from pathlib import Path
from tests.runs.test_processes import done
from tests.runs.workers import Sleeper, units
if __name__ == "__main__":
    # A suite that runs in the background ignores Ctrl-C, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    at = Path(sys.argv[1])
    done(at / "run", Sleeper(pace=0.1, log=str(at / "log")), units(16))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_driver_and_another_goes_on(tmp_path, number):
    script = tmp_path / "driver.py"
    script.write_text(CHILD)
    driver = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )  # fmt: skip
    folder = tmp_path / "run"
    deadline = time.monotonic() + 300
    while len(list((folder / "commits").glob("0*.json"))) < 3:
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    driver.send_signal(number)
    driver.wait()
    before = open_run(folder).units("samples")
    begun = (tmp_path / "log").read_text().split()
    assert 3 <= len(before) < 16
    time.sleep(0.5)
    assert open_run(folder).units("samples") == before
    assert (tmp_path / "log").read_text().split() == begun
    run = done(folder, Sleeper(log=str(tmp_path / "log")), units(16), execute)
    assert statuses(run) == {f"p{at:05d}": "ok" for at in range(16)}
    # Two workers, and what each was doing.
    assert len((tmp_path / "log").read_text().split()) <= 16 + 2


@dataclass
class Filling(Sleeper):
    """Its disk is full at one prompt."""

    full: str = "p00004"

    def elsewhere(self):
        return partial(filling, self.full)

    def gather(self, unit):
        if unit.prompts[0].prompt_id == self.full:
            records.os.fsync = no_space
        return super().gather(unit)


def filling(full, tick):
    return Filling(tick=tick, full=full)


def no_space(handle):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_at_a_worker_ends_the_run_and_another_goes_on(tmp_path):
    with pytest.raises(RunError, match="No space left on device"):
        done(tmp_path, Filling(), units(8))
    before = open_run(tmp_path).units("samples")
    assert units(8)[4].name not in before
    run = done(tmp_path, Sleeper(), units(8), execute)
    assert statuses(run) == {f"p{at:05d}": "ok" for at in range(8)}


def test_a_worker_that_cannot_begin_says_why(tmp_path):
    with pytest.raises(ModelError, match="no such model here"):
        done(tmp_path, Sleeper(refuses=True), units(3), Local(1))


def test_work_that_cannot_be_sent_is_refused(tmp_path):
    class Local(Sleeper):
        def elsewhere(self):
            return lambda tick: self

    with pytest.raises(RunError, match="cannot be sent to another process"):
        done(tmp_path, Local(), units(3))


def test_tensors_are_sent_by_value():
    values = torch.arange(5.0)
    _, sent = module._received(module._sent((None, values)))
    assert torch.equal(sent, values)
    assert not values.is_shared()


@pytest.mark.parametrize(
    ("device", "visible", "wanted"),
    [("auto", "", ["0", "1"]), ("cuda", "3,5", ["3", "5"]), ("cuda:1", "", [])],
)
def test_gpus_are_shared_out_unless_one_is_named(device, visible, wanted, monkeypatch):
    monkeypatch.setenv(module.VISIBLE, visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    worker = Sleeper()
    worker.model = SimpleNamespace(source=Source(device=device), device=torch.device("cuda"))
    assert module._gpus(worker) == wanted


def test_more_than_one_gpu_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_gpus", lambda worker: ["0"])
    with pytest.raises(InputError, match="a model takes at most one GPU"):
        Local(1, share=2.0)(Writer(tmp_path), Sleeper(), units(2))
