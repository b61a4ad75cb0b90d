"""A manifest says what was asked of which model, and how far it came.

Contents: `Manifest`, `Status`, `packages`.
"""

import sys
from collections.abc import Container, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mnemoscope.runs.tables import SCHEMA

Status = Literal["started", "interrupted", "complete"]
Flow = Literal["study", "detection", "explanation", "audit"]

UNASKED: dict[str, Any] = {
    "filmstrip": 0, "levels": [], "controls": None, "ids": [], "scales": [],
}  # fmt: skip
"""Options that folders may lack, since they came later, and what was done then."""

FREE = (
    "batch", "device", "out", "prompt", "prompts", "model", "lora", "vae", "variant", "ordinary",
    "false_positives", "sscd", "retry", "executor", "address", "share",
)  # fmt: skip
"""Options that may differ when a run goes on: the same tables come out. What a model or a list is
called does not matter; what it holds does, and has a digest."""

PACKAGES = ("mnemoscope", "torch", "diffusers", "transformers", "numpy", "pyarrow")


class Manifest(BaseModel):
    """What is known of a run as a whole.

    Attributes:
        schema_version: Version of the folder; `schema` in the file.
        flow: What made it.
        status: How far it came.
        given: The options as passed: what differs from the defaults.
        options: The options as resolved.
        methods: SHA-256 over the formulas and files of all that computes scores; empty where there
            is none.
        packages: Versions of the packages that matter.
        model: Identifier and SHA-256 of the weights.
        prompts: SHA-256 over prompts and training images; empty where prompts may join later.
        device: Where it ran.
        dtype: Precision of the denoiser.
        final_level: (alpha, sigma) of the final state, unit form.
        d: Number of latent coordinates.
        latent_shape: Shape of a sample's latents.
        started: When it first began, UTC.
        finished: When it last ended, UTC; None while it runs.
        rows: Number of rows of each table.
        samples: Number of samples by status.
        units: Which units the run has once it is complete: a name with `*` stands for as many as
            the number says. Empty in folders from before there were digests.
        done: How many of them were on disk when it last ended.
    """

    model_config = ConfigDict(populate_by_name=True, extra="forbid")

    schema_version: int = Field(alias="schema", default=SCHEMA)
    flow: Flow = "study"
    status: Status = "started"
    given: dict[str, Any]
    options: dict[str, Any]
    methods: str = ""
    packages: dict[str, str]
    model: dict[str, str]
    prompts: str
    device: str
    dtype: str
    final_level: tuple[float, float]
    d: int
    latent_shape: tuple[int, ...]
    started: str = Field(default_factory=lambda: now())
    finished: str | None = None
    rows: dict[str, int] = Field(default_factory=dict[str, int])
    samples: dict[str, int] = Field(default_factory=dict[str, int])
    units: dict[str, int] = Field(default_factory=dict[str, int])
    done: int = 0

    def told(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return self.model_dump(mode="json", by_alias=True)

    def missing(self, units: Container[str]) -> Iterator[str]:
        """Yield which of the run's units are not among some."""
        for name, count in self.units.items():
            named = (name.replace("*", f"{at:06d}") for at in range(count))
            yield from (unit for unit in named if unit not in units)

    @model_validator(mode="before")
    @classmethod
    def _of_schema_1(cls, given: Any) -> Any:
        """Read what schema 1 called `study`."""
        if isinstance(given, dict) and given.get("schema") == 1 and "study" in given:
            given = dict(given)
            given["options"] = given.pop("study")
        return given

    def differences(self, other: "Manifest") -> list[str]:
        """Say in which way another run would not continue this one."""
        mine, others = UNASKED | self.options, UNASKED | other.options
        found = [
            f"{name}: {mine.get(name)!r} there, {others.get(name)!r} here"
            for name in sorted(mine.keys() | others.keys())
            if name not in FREE and mine.get(name) != others.get(name)
        ]
        if self.schema_version != other.schema_version:
            found.append(f"schema: {self.schema_version} there, {other.schema_version} here")
        if self.flow != other.flow:
            found.append(f"flow: a {self.flow} there, a {other.flow} here")
        if self.prompts != other.prompts:
            found.append("prompts or training images")
        if self.model["digest"] != other.model["digest"]:
            found.append("weights of the model")
        if self.methods != other.methods:
            found.append("formulas of the detectors, or the file of SSCD")
        if self.dtype != other.dtype:
            found.append(f"dtype: {self.dtype} there, {other.dtype} here")
        return found


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def packages() -> dict[str, str]:
    """Return the versions of the packages that matter."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
