"""A script that reads a run ends as it should, whatever else the machine is doing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs.test_folder import filled

ROOT = Path(__file__).parents[2]

SCRIPT = """
import os, sys
def threads():
    return len(os.listdir("/proc/self/task"))
from mnemoscope import open_run
import mnemoscope.runs.folder
before = threads()
{read}
print(before, threads())
"""

OURS = "open_run(sys.argv[1]).table('samples')"
PYTHONS_FILE = (
    "import pyarrow.parquet as pq\n"
    "pq.ParquetFile(open(sys.argv[1] + '/samples/a.parquet', 'rb')).read(use_threads=False)"
)
"""Read through a file of Python's, a pool has a thread that wants Python's lock."""


def started(folder, read):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(read=read), str(folder)],
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads where Linux lists them")
def test_reading_a_table_leaves_no_thread_that_could_abort_the_end(tmp_path):
    folder = filled(tmp_path / "run")
    # At once, so that each has to wait for the others: under load is where it aborted.
    scripts = [started(folder, read) for read in (OURS, OURS, PYTHONS_FILE)]
    said = [script.communicate()[0] for script in scripts]
    counts = [[int(count) for count in line.split()] for line in said]
    assert [script.returncode for script in scripts[:2]] == [0, 0]
    assert [after - before for before, after in counts[:2]] == [0, 0]
    # What it is about is seen.
    assert counts[2][1] > counts[2][0]
