"""Workers that need no model, of which other processes can have their like."""

import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mnemoscope.data.prompts import Prompt
from mnemoscope.errors import ModelError
from mnemoscope.runs.execute import units_of
from mnemoscope.runs.tables import TABLES
from mnemoscope.sampling.recipe import Recipe


def prompts(many):
    return tuple(Prompt(f"p{at:05d}", f"text {at}") for at in range(many))


def units(many, size=1):
    return list(units_of(prompts(many), [Recipe(guidance=1.0)], size))


@dataclass
class Sleeper:
    """Sleeps over every prompt; a row says which process it was done in.

    Attributes:
        pace: Seconds a prompt.
        deadly: Prompt that ends the process.
        broken: Prompt that raises.
        refuses: Whether it cannot begin elsewhere.
        log: File that a line is added to for every unit begun.
    """

    pace: float = 0.0
    deadly: str = ""
    broken: str = ""
    refuses: bool = False
    log: str = ""
    tick: object = None
    credited: int = 0

    def elsewhere(self):
        return partial(again, (self.pace, self.deadly, self.broken, self.refuses, self.log))

    def credit(self, rows):
        self.credited += rows

    def gather(self, unit):
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{unit.name}\n")
        names = [prompt.prompt_id for prompt in unit.prompts]
        if self.broken in names:
            raise ValueError("cannot gather")
        if self.deadly in names:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.pace * len(names))
        if self.tick is not None:
            self.tick(len(names))
        return names

    def reduce(self, unit, gathered):
        return self.rows(unit, "ok")

    def failed(self, unit, error):
        return self.rows(unit, "error", str(error))

    def rows(self, unit, status, reason=None):
        rows = [
            {
                "prompt_id": prompt.prompt_id,
                "seed": 0,
                "recipe": unit.recipe.key,
                "status": status,
                "reason": reason,
                "network_calls": 1,
                "seconds": float(os.getpid()),
            }
            for prompt in unit.prompts
        ]
        return {"samples": TABLES["samples"].of_rows(rows)}


def again(told, tick):
    pace, deadly, broken, refuses, log = told
    if refuses:
        raise ModelError("no such model here")
    return Sleeper(pace, deadly, broken, refuses, log, tick)
