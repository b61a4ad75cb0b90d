r"""A family of the lab plants the same table into another kind of model, to see what outlives it.

Contents: `recipe` holds the two stages, `velocity` a zero-terminal-SNR v-prediction UNet, `flow` a
flow-matching transformer, `labels` a class-conditional one; `FAMILIES` finds them by name.
"""

from mnemoscope.lab.families.flow import Flow
from mnemoscope.lab.families.labels import Labels
from mnemoscope.lab.families.recipe import Family
from mnemoscope.lab.families.velocity import Velocity

FAMILIES: dict[str, type[Family]] = {kind.name: kind for kind in (Velocity, Flow, Labels)}
