"""A family says which pipelines of diffusers it serves, and makes a model of one.

A file in `models/families`, or a module that another distribution names under the entry point group
`mnemoscope.models.families`, adds one; nothing else is edited. A pipeline goes to the family that
serves the nearest of its base classes, so one that serves `DiffusionPipeline` takes what is left.

Contents: `Host`, `Family`, `families`, `family_of`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mnemoscope.errors import ModelError
from mnemoscope.models.base import Model
from mnemoscope.models.source import Source
from mnemoscope.registry import classes, named

PACKAGE = "mnemoscope.models.families"
"""Where families are found; the entry point group as well."""


@dataclass(frozen=True, eq=False)
class Host:
    """A pipeline that is to become a model.

    Attributes:
        pipeline: The pipeline; its networks are used as they are.
        name: What it was loaded as.
        digest: sha256 over its weights and what else changes its results.
        device: Where its networks run.
        dtype: Precision of its denoiser.
        source: What another process loads it by; None for an object of this process.
        size: Height and width of its images in pixels; the pipeline's own where not given.
        true_guidance: Whether a model of distilled guidance is to be guided by two branches.
    """

    pipeline: Any
    name: str
    digest: str
    device: torch.device
    dtype: torch.dtype
    source: Source | None = None
    size: tuple[int, int] | None = None
    true_guidance: bool = False


class Family(ABC):
    """Pipelines that are called alike. One subclass a file; see the module for how it is found.

    `family` is its name; `pipelines` the names of the pipeline classes it serves, their subclasses
    included; `marks` the beginnings of tensor names that tell its single-file checkpoints from
    those of others, empty where it reads none.
    """

    family: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    marks: ClassVar[tuple[str, ...]] = ()

    @classmethod
    @abstractmethod
    def wrap(cls, host: Host) -> Model:
        """Make a model of a pipeline.

        Args:
            host: The pipeline and what it was loaded as.

        Returns:
            The model, ready to sample.

        Raises:
            ModelError: If the pipeline, or how it is put together, cannot be served; the message
                says what is missing.
        """


def families() -> Mapping[str, type[Family]]:
    """Return the families by name, those of other distributions included."""
    return named(((kind.family, kind) for kind in classes(PACKAGE, Family)), "model family")


def family_of(pipeline: type) -> type[Family]:
    """Return the family that serves a class of pipelines.

    Args:
        pipeline: The class.

    Returns:
        The family that names the nearest of its base classes.

    Raises:
        ModelError: If no family does.
    """
    serving = {name: kind for kind in families().values() for name in kind.pipelines}
    for base in pipeline.__mro__:
        if base.__name__ in serving:
            return serving[base.__name__]
    raise ModelError(
        f"a {pipeline.__name__} was given; expected a text-to-image pipeline of diffusers, or one "
        f"that an installed family serves: {', '.join(sorted(serving))}"
    )
