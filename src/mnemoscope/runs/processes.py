"""Local workers are processes of this machine, each with a model on threads or a GPU of its own.

Contents: `Local`.
"""

import copyreg
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from selectors import EVENT_READ, BaseSelector, DefaultSelector
from typing import Any

import torch

from mnemoscope.errors import InputError, MnemoscopeError, RunError
from mnemoscope.runs.crew import Died, Order, Portable, Post, Report, hand_out
from mnemoscope.runs.execute import Unit
from mnemoscope.runs.folder import Writer

GRACE = 2
"""Seconds processes are given to end before they are told to, and then before they are killed."""

VISIBLE = "CUDA_VISIBLE_DEVICES"

METHOD = "forkserver" if sys.platform == "linux" else "spawn"
"""How processes start: from a server that has imported what workers need, where forks are safe."""


@dataclass(frozen=True)
class Local:
    """The executor of several processes on this machine.

    Attributes:
        workers: How many; as many as there is room for where None.
        share: GPUs a worker takes, or cores where the model is on none.
    """

    workers: int | None = None
    share: float = 1.0

    def __call__(
        self,
        writer: Writer,
        worker: Portable,
        units: Iterable[Unit],
        *,
        overlap: bool = False,
        done: Callable[[Unit], None] | None = None,
    ) -> None:
        """Have units done; `overlap` is left to several workers on one GPU.

        Raises:
            InputError: If a share of a GPU is none.
        """
        del overlap
        gpus = _gpus(worker)
        if gpus and self.share > 1:
            raise InputError(f"share {self.share:g} given; a model takes at most one GPU")
        room = (len(gpus) or _cores()) / self.share
        count = self.workers or max(1, int(room))
        places = [gpus[int(at * self.share) % len(gpus)] if gpus else None for at in range(count)]
        order = Order.of(writer, threads=max(1, int(self.share)))
        sent = _sent((order, worker.elsewhere()))
        multiprocessing.set_forkserver_preload([__name__, type(worker).__module__])
        hand_out(_Processes(sent, places), count, writer, worker, units, done)


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus(worker: Any) -> list[str]:
    """Return the GPUs to share out; none where the model is on no GPU, or on one that was named."""
    model: Any = getattr(worker, "model", None)
    source = getattr(model, "source", None)
    if source is None or model.device.type != "cuda" or ":" in source.device:
        return []
    named = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
    return named or [str(at) for at in range(torch.cuda.device_count())]


@dataclass
class _Processes:
    """Processes at numbered places.

    Attributes:
        sent: Order and work, as bytes.
        places: The GPU of each place; None for all that are visible.
        links: What is waited for; asking for one more does not cost more the more there are.
    """

    sent: bytes
    places: list[str | None]
    held: dict[int, tuple[Any, Connection]] = field(default_factory=dict[int, tuple[Any, Any]])
    links: BaseSelector = field(default_factory=DefaultSelector)

    def hire(self, place: int) -> None:
        """Start a process."""
        context = multiprocessing.get_context(METHOD)
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve,
            args=(theirs, self.sent, self.places[place]),
            name=f"mnemoscope-{place}",
            daemon=True,
        )
        process.start()
        theirs.close()
        self.held[place] = process, ours
        self.links.register(ours, EVENT_READ, place)

    def give(self, place: int, unit: Unit) -> None:
        """Send a unit."""
        # One that died meanwhile is found out by waiting for it.
        with suppress(OSError):
            self.held[place][1].send_bytes(_sent(unit))

    def wait(self, places: Collection[int]) -> Mapping[int, Report]:
        """Wait for a message, or for an end."""
        while True:
            ready: list[int] = [key.data for key, _ in self.links.select()]
            # One that has nothing to do and ends is nobody's loss.
            reports = {place: self._report(place) for place in ready}
            if asked := {place: report for place, report in reports.items() if place in places}:
                return asked

    def _report(self, place: int) -> Report:
        process, link = self.held[place]
        try:
            report: Report = link.recv()
        except (EOFError, OSError):
            process.join(GRACE)
            self.links.unregister(link)
            link.close()
            del self.held[place]
            return Died(f"its process ended with status {process.exitcode}")
        return report

    def close(self) -> None:
        """End all processes; one that has nothing to do ends by itself."""
        self.links.close()
        for _, link in self.held.values():
            link.close()
        alive = [process for process, _ in self.held.values()]
        for end in ("", "terminate", "kill"):
            for process in alive if end else ():
                getattr(process, end)()
            limit = time.monotonic() + GRACE
            for process in alive:
                process.join(max(0.0, limit - time.monotonic()))
            alive = [process for process in alive if process.exitcode is None]
        self.held.clear()


class _ByValue(ForkingPickler):
    """Pickles tensors by value: torch would share their memory, and keep a file open for each."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.dispatch_table = copyreg.dispatch_table


def _sent(what: Any) -> bytes:
    """Return a value as bytes for another process of ours."""
    buffer = BytesIO()
    try:
        _ByValue(buffer).dump(what)
    except MnemoscopeError:
        raise
    except Exception as error:
        raise RunError(
            f"the work cannot be sent to another process: {error}; what is defined in a notebook "
            "cannot, what is defined in a module can"
        ) from error
    return buffer.getvalue()


def _serve(link: Connection, sent: bytes, gpu: str | None) -> None:
    """Do units until told to stop, or until nobody is there to tell."""
    # Ctrl-C reaches every process of a terminal; the driver's is the one that acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    if gpu is not None:
        os.environ[VISIBLE] = gpu
    try:
        post = Post(*_received(sent))
        link.send(0)
        while True:
            link.send(post.do(link.recv()))
    except EOFError:
        return
    except Exception as error:
        told = isinstance(error, MnemoscopeError)
        what = f"a worker cannot go on: {type(error).__name__}: {error}"
        with suppress(OSError):
            link.send(error if told else RunError(what))


def _received(sent: bytes) -> Any:
    return ForkingPickler.loads(sent)  # pyright: ignore[reportAttributeAccessIssue]


def _end_with_the_driver() -> None:
    """End at once when the driver is gone: another one may write its folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
