"""A panel is a figure as plain data: arrays, labels, and the roles that decide its colours.

Nothing here draws, and nothing knows what is measured: analyses, rankings and severity make panels,
a report draws them.

Contents: `CurvePanel` of `Series`, `ScatterPanel` of `Points`, `BarPanel` of `Bar`; `Panel`, any of
them; `Role`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

Role = Literal["memorized", "another", "not memorized", "control", "schedule", "other"]
"""What a line, a group of dots or a bar stands for."""


@dataclass(frozen=True)
class Series:
    """One line of a curve panel.

    Attributes:
        label: Its name.
        role: What it stands for; decides colour and dash.
        x: Index of the call, from the first to the last.
        y: Value.
        low: Lower edge of its band; None for a line without one.
        high: Upper edge of its band.
        log_snr: Log signal-to-noise ratio at each x.
    """

    label: str
    role: Role
    x: Float[np.ndarray, " call"]
    y: Float[np.ndarray, " call"]
    low: Float[np.ndarray, " call"] | None
    high: Float[np.ndarray, " call"] | None
    log_snr: Float[np.ndarray, " call"]


@dataclass(frozen=True)
class CurvePanel:
    """Curves over the path, or over another quantity.

    Attributes:
        log_x: Whether x is logarithmic.
        log_y: Whether y is logarithmic.
    """

    title: str
    x_label: str
    y_label: str
    caption: str
    series: tuple[Series, ...]
    log_y: bool = False
    log_x: bool = False


@dataclass(frozen=True)
class Points:
    """The points of one group of a scatter panel."""

    label: str
    role: Role
    x: Float[np.ndarray, " point"]
    y: Float[np.ndarray, " point"]
    prompt_ids: tuple[str, ...]


@dataclass(frozen=True)
class ScatterPanel:
    """One dot a prompt.

    Attributes:
        named: Those of the `prompt_ids` that are written beside their dots.
        log_x: Whether x is logarithmic.
        equal: Whether both axes have the same range, with the diagonal drawn.
    """

    title: str
    x_label: str
    y_label: str
    caption: str
    points: tuple[Points, ...]
    note: str = ""
    named: tuple[str, ...] = ()
    log_x: bool = False
    equal: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar; NaN edges where it has no interval."""

    label: str
    role: Role
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class BarPanel:
    """Bars with intervals."""

    title: str
    x_label: str
    y_label: str
    caption: str
    bars: tuple[Bar, ...]


Panel = CurvePanel | ScatterPanel | BarPanel
