"""The memory that work takes is the largest number of bytes it holds at once beyond what was held.

On an accelerator its allocator tells; on a CPU the profiler, which sees every tensor made and gone.

Contents: `peak_bytes`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Do work and return the most bytes of tensors it held at once.

    Args:
        work: The work; what it returns is dropped.
        device: Where it is done.

    Source: ours.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return int(torch.cuda.max_memory_allocated(device) - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    # Sums over operations forget what was held between them; single events do not.
    told: Any = seen.profiler
    events = [event for event in told.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
