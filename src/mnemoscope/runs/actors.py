"""Workers on a cluster are actors of Ray, each with a model on its share of a GPU, or on cores.

Ray places actors, and tells when one is gone; which unit is whose is decided as for processes of
one machine, and rows are written by the actors into a folder that all machines share.

Contents: `Cluster`.
"""

import importlib
import os
import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mnemoscope.errors import MnemoscopeError, RunError
from mnemoscope.runs.crew import Died, Make, Order, Portable, Post, Report, hand_out
from mnemoscope.runs.execute import Unit
from mnemoscope.runs.folder import Writer

ANSWER = 10
"""Seconds a cluster has to answer at its address."""


@dataclass(frozen=True)
class Cluster:
    """The executor of Ray actors.

    Attributes:
        workers: How many; as many as the cluster has room for where None.
        share: GPUs a worker takes, or cores where the cluster has no GPU.
        address: Address of the cluster, "auto" for one that runs on this machine; one of this
            machine alone is started, and ended, where None.
    """

    workers: int | None = None
    share: float = 1.0
    address: str | None = None

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
            RunError: If Ray is not installed, or the cluster does not answer or has no room.
        """
        del overlap
        ray = _ray()
        make = worker.elsewhere()
        ours = not ray.is_initialized()
        if ours:
            _join(ray, self.address)
        try:
            count, asked = self._room(ray, worker)
            order = Order.of(writer, threads=max(1, int(self.share)))
            # In a list it is fetched by whoever is told to, once the version is known to be ours.
            crew = _Actors(ray, order, [ray.put(make)], asked)
            hand_out(crew, count, writer, worker, units, done)
        finally:
            if ours:
                ray.shutdown()

    def _room(self, ray: Any, worker: Any) -> tuple[int, dict[str, float]]:
        """Return how many workers there are, and what each takes."""
        there = ray.cluster_resources()
        source = getattr(getattr(worker, "model", None), "source", None)
        on_gpu = there.get("GPU", 0) > 0 and (source is None or source.device != "cpu")
        room = int(there.get("GPU" if on_gpu else "CPU", 0) / self.share)
        if room < 1:
            raise RunError(
                f"no worker with a share of {self.share:g} has room on this cluster, which has "
                f"{there.get('GPU', 0):g} GPUs and {there.get('CPU', 0):g} cores; give a smaller "
                "--share"
            )
        return self.workers or room, {"num_gpus" if on_gpu else "num_cpus": self.share}


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise RunError(
            "--executor ray needs Ray, which is not installed: pip install 'mnemoscope[ray]'"
        ) from error


def _join(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start one."""
    host, _, port = (address or "").rpartition("//")[2].rpartition(":")
    try:
        if host and port.isdecimal():
            # Ray itself waits for minutes.
            socket.create_connection((host, int(port)), ANSWER).close()
        # Telling the world how Ray is used is not for us to decide.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        known = address or os.environ.get("RAY_ADDRESS")
        # Left to itself, Ray joins whatever cluster it finds on this machine.
        ours = {"address": "local", "include_dashboard": False}
        where = {"address": known} if known else ours
        ray.init(**where, logging_level="error", log_to_driver=False)
    except Exception as error:
        where = "here" if address is None else f"at {address!r}"
        raise RunError(
            f"no Ray cluster answers {where}: {error}; start one with `ray start --head`, or leave "
            "--address out to use this machine alone"
        ) from error


@dataclass
class _Actors:
    """Actors at numbered places.

    Attributes:
        ray: The module.
        order: What each is told.
        make: Where what makes a worker is kept.
        asked: What each takes of a machine.
    """

    ray: Any
    order: Order
    make: list[Any]
    asked: Mapping[str, float]
    held: dict[int, Any] = field(default_factory=dict[int, Any])
    awaited: dict[int, Any] = field(default_factory=dict[int, Any])

    def hire(self, place: int) -> None:
        """Start an actor."""
        kind = self.ray.remote(**self.asked, max_restarts=0, max_task_retries=0)(_Actor)
        self.held[place] = kind.remote()
        self.awaited[place] = self.held[place].begin.remote(self.order, self.make)

    def give(self, place: int, unit: Unit) -> None:
        """Send a unit."""
        self.awaited[place] = self.held[place].do.remote(unit)

    def wait(self, places: Collection[int]) -> Mapping[int, Report]:
        """Wait for results, or for an end."""
        asked = {self.awaited[place]: place for place in places}
        ready, _ = self.ray.wait(list(asked), num_returns=1)
        return {asked[one]: self._report(one) for one in ready}

    def _report(self, awaited: Any) -> Report:
        try:
            return self.ray.get(awaited)
        except self.ray.exceptions.RayActorError as error:
            return Died(str(error).splitlines()[0])
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, MnemoscopeError):
                return cause
            return RunError(f"a worker cannot go on: {type(cause).__name__}: {cause}")

    def close(self) -> None:
        """End all actors."""
        for actor in self.held.values():
            with suppress(Exception):
                self.ray.kill(actor)
        self.held.clear()


class _Actor:
    """A post that Ray keeps."""

    def begin(self, order: Order, make: list[Any]) -> int:
        """Begin; what makes the worker is fetched once the order is taken."""
        order.taken()
        made: Make = importlib.import_module("ray").get(make[0])
        self.post = Post(order, made)
        return 0

    def do(self, unit: Unit) -> int:
        """Do a unit."""
        return self.post.do(unit)
