"""Settings every test shares: no network, one thread, seeded hypothesis."""

import os
import signal

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


@pytest.fixture(autouse=True)
def _signals():
    """Give back the handlers of signals, which a command that is called in this process takes."""
    known = [n for n in signal.valid_signals() if signal.getsignal(n) is not None]
    before = {n: signal.getsignal(n) for n in known}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
