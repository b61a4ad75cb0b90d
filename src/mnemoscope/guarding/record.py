"""A record says what a guard saw and did about one image.

Contents: `Guarded`, `ACTIONS`, `append`.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Action = Literal["record", "mitigate", "regenerate", "refuse"]

ACTIONS: tuple[Action, ...] = ("record", "mitigate", "regenerate", "refuse")
"""What a guard may do about a suspicious prompt."""


@dataclass(frozen=True)
class Guarded:
    """What became of an image.

    Attributes:
        run: Index of the pipeline's run, from 0.
        image: Index of the image in the run, from 0.
        prompt: Index of its prompt in the run, from 0.
        detector: What the score is of.
        score: The prompt's score at the first step; None where it could not be scored.
        threshold: Above it a prompt is suspicious; None where there is none.
        suspicious: Whether it was; None where it could not be told.
        action: What was done: "none", "record", a mitigation with its settings, "regenerate" or
            "refuse".
        network_calls: Evaluations of the network beyond those of the pipeline.
        reason: Why it was not scored, or how regenerating ended; empty where there is nothing to
            say.
    """

    run: int
    image: int
    prompt: int
    detector: str
    score: float | None
    threshold: float | None
    suspicious: bool | None
    action: str
    network_calls: int = 0
    reason: str = ""


def append(path: Path, records: Sequence[Guarded]) -> None:
    """Append records to a file of JSON lines, all of a run at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(asdict(record)) + "\n" for record in records)
    with path.open("a", encoding="utf-8") as file:
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())
