"""Where units are done is one value: in this process, in several, or on a cluster.

Contents: `Execution`, the options; `executor_of`, the executor they name.
"""

import re
from dataclasses import dataclass

from mnemoscope.errors import InputError, did_you_mean
from mnemoscope.options import option
from mnemoscope.runs.actors import Cluster
from mnemoscope.runs.execute import Executor, execute
from mnemoscope.runs.processes import Local

EXECUTORS = ("inline", "local", "ray")


@dataclass(frozen=True)
class Execution:
    """Where units are done. Every field is an option of every command that leaves a run folder."""

    executor: str = option(
        "inline",
        "Where the work is done: inline in this process; local or local:N in N processes; ray or "
        "ray:N by N actors of a Ray cluster.",
    )
    address: str | None = option(
        None, "Address of the Ray cluster, such as auto; one of this machine alone if left."
    )
    share: float = option(
        1.0, "GPUs a worker takes, or cores where there is none; 0.5 puts two on one GPU."
    )


def executor_of(asked: Execution) -> Executor:
    """Return the executor that options name.

    Raises:
        InputError: If there is none of that name, or an option does not fit it.
    """
    name, _, number = asked.executor.partition(":")
    if name not in EXECUTORS:
        raise InputError(did_you_mean(asked.executor, EXECUTORS, "executor"))
    if number and (name == "inline" or not re.fullmatch("[1-9][0-9]{0,5}", number)):
        raise InputError(
            f"executor {asked.executor!r} given; expected inline, local:N or ray:N with N workers, "
            "at least 1"
        )
    if asked.address is not None and name != "ray":
        raise InputError(f"address {asked.address!r} is given, which --executor ray alone takes")
    # A comparison that NaN fails as well.
    if not 0 < asked.share < float("inf"):
        raise InputError(f"share {asked.share} given; expected a number above 0")
    if name == "inline":
        return execute
    count = int(number) if number else None
    if name == "local":
        return Local(count, asked.share)
    return Cluster(count, asked.share, asked.address)
