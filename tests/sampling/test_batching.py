"""Batching: what a call frees stays for the next one, where the C library can do that."""

import os
import subprocess
import sys

import pytest

MEASURE = """
import resource, sys
import torch
from mnemoscope.sampling.batching import keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        held = [torch.ones(2**22) for _ in range(4)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = keep_freed() if sys.argv[1] == "keep" else None
faults()
print(kept, faults())
"""


def measured(how: str) -> tuple[str, int]:
    # By itself glibc learns which blocks to keep, and what it learns depends on their order.
    strict = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    told = subprocess.run(
        [sys.executable, "-c", MEASURE, how],
        capture_output=True, text=True, check=True, env=strict,
    )  # fmt: skip
    kept, faults = told.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="another C library")
def test_freed_memory_is_not_asked_for_again() -> None:
    kept, faults = measured("keep")
    if kept == "False":
        pytest.skip("not glibc")
    # 64 MiB a round are 16,384 pages of 4 KiB.
    assert faults < 1000
    assert measured("give back")[1] > 100 * max(1, faults)
