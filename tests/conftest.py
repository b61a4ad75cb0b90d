"""Settings every test shares: no network, one thread, seeded hypothesis."""

import os

# Set before any library reads them: a test that would download must fail at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# One process a core, one thread a process: networks here are too small to be shared by threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

# Examples are derandomized so that a failure on one machine is a failure on all; torch's first call
# in a process can be slow, so there is no deadline.
hypothesis.settings.register_profile("mnemoscope", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile("mnemoscope")


@pytest.fixture(autouse=True)
def _seeded():
    """Seed torch's global generator, so that a test means the same alone and in the suite."""
    torch.manual_seed(0)
