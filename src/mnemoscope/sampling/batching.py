"""Batching decides how many samples go through a network together, and halves them when it must.

Contents: `batch_of`, `attempt`, `batched`; `keep_freed`, which holds on to the memory of a call.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

import torch

from mnemoscope.errors import MnemoscopeError

Row = TypeVar("Row")
Done = TypeVar("Done")

COORDINATES = 2**16
"""Latent coordinates a batch on a CPU, 4 samples of Stable Diffusion 1.4."""

ON_ACCELERATOR = 2**21
"""The same on an accelerator, 32 samples of Stable Diffusion XL; what is too much is halved."""

LARGEST = 64
"""Most samples a batch: more gain nothing."""

KEPT = {-1: 2**30, -2: 2**26, -3: 2**25}
"""glibc's M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD: most bytes that stay with the process
when they are freed, bytes that are asked for beyond need, and size from which a block is mapped
apart, 32 MiB being the most that glibc takes."""


@cache
def keep_freed() -> bool:
    """Have the C library keep what a network call on the CPU frees: the next one asks for as much.

    glibc gives blocks of that size back to the system, which has to clear them before it hands them
    out again: in 34 calls of a study of the embedded model 196,000 pages, and 16,000 where they are
    kept. Up to 1 GiB stays with the process.

    Returns:
        Whether it does; another C library is left as it is.
    """
    if sys.platform != "linux":
        return False
    mallopt: Any = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, value) for option, value in KEPT.items())


def batch_of(d: int, device: torch.device) -> int:
    """Return how many samples of d latent coordinates go through a network together."""
    room = COORDINATES if device.type == "cpu" else ON_ACCELERATOR
    return max(1, min(LARGEST, room // d))


def attempt(
    rows: Sequence[Row], work: Callable[[Sequence[Row]], Done]
) -> Iterator[tuple[Sequence[Row], Done | Exception]]:
    """Do a batch of work; where it fails, halve it until the row at fault stands alone.

    Yields:
        Rows with what the work returned for them, or with the error for a row at fault.
    """
    try:
        yield rows, work(rows)
        return
    except MnemoscopeError:
        raise
    except Exception as error:
        # Whatever it is, it must not take others along; running out of memory is one of many.
        if len(rows) == 1:
            yield rows, error
            return
    half = len(rows) // 2
    yield from attempt(rows[:half], work)
    yield from attempt(rows[half:], work)


def batched(
    rows: Sequence[Row], batch: int, work: Callable[[Sequence[Row]], Done]
) -> Iterator[tuple[Sequence[Row], Done | Exception]]:
    """Do work on rows, a batch at a time, as `attempt` does."""
    for start in range(0, len(rows), batch):
        yield from attempt(rows[start : start + batch], work)
