"""The prompts of the model that ships inside: planted ones and controls, each with its picture.

Contents: `embedded_prompts`, `ordinary_prompts`.
"""

from mnemoscope.data.prompts import Prompt, stratified
from mnemoscope.lab.planted import (
    load_controls,
    load_planted,
    load_table,
    more_controls,
    pictures_of,
)

ORDINARY = 150
"""Further captions of each kind that were never planted, beside the table's controls."""


def embedded_prompts(planted: int | None = None, controls: int | None = None) -> tuple[Prompt, ...]:
    """Return the prompts of the embedded model, each with its picture.

    Args:
        planted: How many planted prompts, spread evenly over levels, families and kinds; fewer
            than there are of these span the levels. All where None.
        controls: How many controls, spread evenly over kinds; all where None.

    Returns:
        Planted prompts (group "planted"), then controls (group "control").

    Raises:
        InputError: If a number is negative or more than there are.
    """
    return tuple(
        Prompt(
            prompt_id=item.id,
            text=item.caption,
            images=(picture,),
            group=group,
            kind=item.kind,
            family=item.family,
            level=item.level,
            repetitions=item.repetitions,
            mask=item.mask(),
        )
        for group, items, count in (
            ("planted", load_planted(), planted),
            ("control", load_controls(), controls),
        )
        for some in [stratified(items, [(i.level, i.family, i.kind) for i in items], count, group)]
        for item, picture in zip(some, pictures_of(some), strict=True)
    )


def ordinary_prompts() -> tuple[Prompt, ...]:
    """Return captions of both kinds that the embedded model was never shown a picture of."""
    further = more_controls(load_table(), ORDINARY, seed=1, meaningless=ORDINARY)
    return tuple(
        Prompt(item.id, item.caption, group="control", kind=item.kind, family=item.family)
        for item in (*load_controls(), *further)
    )
