r"""References are the training images a prompt list names, each known once, opened when needed.

Formulas::

    reference_id = name of the pixels (see `data.images`), so that equal pixels are one reference
    pixels       = those of the file, cropped and shrunk to the model's size where they are larger
    trained      = some prompt that is no control names the image
    digest       = SHA-256 of the names, in order, each with that of its mask where it has one

Nothing is opened before it is asked for. The first question about the list as a whole opens every
image once, to name it; after that, pixels are read when they are wanted, and `CACHED` bytes of
those used last are held.

Contents: `Reference`, one of them with its pixels; `References`, all of a list; `Entry`, what is
known of one without its pixels; `swapped`, the image of another prompt for each.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from torch import Tensor

from mnemoscope.data.images import (
    ImageSource,
    Mask,
    Pixels,
    TrainingImage,
    fit,
    load_image,
    load_mask,
    pixels_id,
    thumbnails,
)
from mnemoscope.data.packed import Packed
from mnemoscope.data.prompts import Prompt, PromptList
from mnemoscope.errors import InputError

CACHED = 2**26
"""Most bytes of pixels that are held: 21 images of 512 x 512, or 1,365 of 64 x 64."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A training image to compare with.

    Attributes:
        reference_id: Its name.
        pixels: RGB from 0 to 1, of any size.
        mask: 1 where a template repeats, 0 where it changes; None for an image of its own.
    """

    reference_id: str
    pixels: Pixels
    mask: Mask | None = None

    @property
    def bytes(self) -> int:
        """Return the memory it takes."""
        return self.pixels.nbytes + (0 if self.mask is None else self.mask.nbytes)


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of one training image without its pixels.

    Attributes:
        reference_id: Its name.
        source: Where its pixels are.
        mask: Where its mask is; None for an image of its own.
        digest: SHA-256 of the file.
        height: Height of the file's image, in pixels.
        width: Width of the file's image, in pixels.
        prompt_ids: Prompts it belongs to.
        trained: Whether it was trained on, as far as the list knows; a control's was not.
    """

    reference_id: str
    source: ImageSource
    mask: ImageSource | None
    digest: str
    height: int
    width: int
    prompt_ids: tuple[str, ...]
    trained: bool


@dataclass(frozen=True)
class _Catalogue:
    entries: tuple[Entry, ...]
    own: Mapping[str, tuple[int, ...]]


class References(Sequence[Reference]):
    """The training images of a prompt list, in the order they are first named.

    It is a sequence of `Reference`, whose pixels are read as each is taken; it can be pickled, and
    takes no pixels along.

    Args:
        prompts: All prompts whose images count as known.
        size: Height and width of the model's images in pixels; larger ones are shrunk to it, and
            all keep their size where None.
    """

    def __init__(self, prompts: Iterable[Prompt], size: tuple[int, int] | None = None) -> None:
        self.prompts = prompts if isinstance(prompts, PromptList) else tuple(prompts)
        self.size = size
        self._held: OrderedDict[int | Path | Packed, Reference] = OrderedDict()
        self._bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_held": OrderedDict[int | Path | Packed, Reference](), "_bytes": 0}

    @cached_property
    def _catalogue(self) -> _Catalogue:
        """Open every image once.

        Raises:
            InputError: If an image cannot be read.
        """
        found: list[Entry] = []
        named: list[list[str]] = []
        trained: list[bool] = []
        place: dict[str, int] = {}
        known: dict[Path | Packed, int] = {}
        own: dict[str, tuple[int, ...]] = {}
        for prompt in self.prompts:
            mine: list[int] = []
            for source in prompt.images:
                at = None if isinstance(source, Tensor) else known.get(source)
                if at is None:
                    image = load_image(source)
                    at = place.setdefault(image.reference_id, len(found))
                    if not isinstance(source, Tensor):
                        known[source] = at
                    if at == len(found):
                        found.append(_entry(image, source, prompt.mask))
                        named.append([])
                        trained.append(False)
                        self._keep(at, self._shrunk(image.reference_id, image.pixels, prompt.mask))
                mine.append(at)
                named[at].append(prompt.prompt_id)
                trained[at] |= prompt.group != "control"
            own[prompt.prompt_id] = tuple(dict.fromkeys(mine))
        entries = (
            replace(entry, prompt_ids=tuple(ids), trained=yes)
            for entry, ids, yes in zip(found, named, trained, strict=True)
        )
        return _Catalogue(tuple(entries), own)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Return what is known of each image, without pixels.

        Raises:
            InputError: If an image cannot be read.
        """
        return self._catalogue.entries

    @property
    def own(self) -> Mapping[str, tuple[int, ...]]:
        """Return the positions of each prompt's own images, by prompt_id.

        Raises:
            InputError: If an image cannot be read.
        """
        return self._catalogue.own

    @property
    def trained(self) -> tuple[bool, ...]:
        """Return whether each image was trained on, as far as the list knows."""
        return tuple(entry.trained for entry in self.entries)

    @property
    def digest(self) -> str:
        """Return the SHA-256 over the names of the images, and over masks where there are any."""
        names = "\n".join(map(_name, self.entries))
        return hashlib.sha256(names.encode()).hexdigest()

    def ids(self, prompt_id: str) -> list[str]:
        """Return the names of a prompt's own images."""
        return [self.entries[at].reference_id for at in self.own[prompt_id]]

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, at: int) -> Reference: ...

    @overload
    def __getitem__(self, at: slice) -> list[Reference]: ...

    def __getitem__(self, at: int | slice) -> Reference | list[Reference]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        if at in self._held:
            self._held.move_to_end(at)
            return self._held[at]
        entry = self.entries[at]
        pixels = load_image(entry.source).pixels
        if pixels_id(pixels) != entry.reference_id:
            raise InputError(
                f"image {str(entry.source)!r} has changed since the list was read; start again"
            )
        return self._keep(at, self._shrunk(entry.reference_id, pixels, entry.mask))

    def __iter__(self) -> Iterator[Reference]:
        return (self[at] for at in range(len(self)))

    def first(self, prompt: Prompt) -> Pixels | None:
        """Return the pixels of a prompt's first image, and open no other.

        Args:
            prompt: Any prompt, of the list or not.

        Returns:
            RGB from 0 to 1, shrunk to the model's size where larger; None where it has no image.

        Raises:
            InputError: If the image cannot be read.
        """
        if not prompt.images:
            return None
        source = prompt.images[0]
        if isinstance(source, Tensor):
            return self._shrunk("", load_image(source).pixels, None).pixels
        if source not in self._held:
            image = load_image(source)
            self._keep(source, self._shrunk(image.reference_id, image.pixels, None))
        self._held.move_to_end(source)
        return self._held[source].pixels

    def rows(self, positions: Iterable[int] | None = None) -> Iterator[dict[str, Any]]:
        """Yield rows of table `references`, each with its thumbnail, made as it is asked for.

        Args:
            positions: Which images; all where not given.
        """
        places = list(range(len(self)) if positions is None else positions)
        taken = (self[at] for at in places)
        pictures = thumbnails((reference.pixels, reference.mask) for reference in taken)
        for entry, picture in zip((self.entries[at] for at in places), pictures, strict=True):
            yield {
                "reference_id": entry.reference_id,
                "prompt_ids": list(entry.prompt_ids),
                "digest": entry.digest,
                "width": entry.width,
                "height": entry.height,
                "masked": entry.mask is not None,
                "image": picture,
            }

    def _shrunk(self, name: str, pixels: Pixels, mask: ImageSource | None) -> Reference:
        if self.size is not None and all(
            side > wanted for side, wanted in zip(pixels.shape[-2:], self.size, strict=True)
        ):
            pixels = fit(pixels, self.size)
        return Reference(name, pixels, None if mask is None else _brought(load_mask(mask), pixels))

    def _keep(self, key: int | Path | Packed, reference: Reference) -> Reference:
        self._held[key] = reference
        self._bytes += reference.bytes
        while self._bytes > CACHED and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1].bytes
        return reference


def swapped(prompts: Iterable[Prompt], references: References) -> dict[str, int]:
    """Choose for each prompt the image of another, which it is judged with as a null.

    Prompts that have an image are put in the order of the SHA-256 of their names, and each gets the
    first image of the next one; one that shares its image, or shows a template as it does, is
    passed over.

    Args:
        prompts: The prompts.
        references: Their training images.

    Returns:
        The position of the image by prompt_id; a prompt for which there is none is left out.

    Source: ours; a permutation, so that every image is in the null as often as in the data.
    """
    held = [p.prompt_id for p in prompts if references.own[p.prompt_id]]
    order = sorted(held, key=lambda name: hashlib.sha256(name.encode("utf-8")).digest())
    found: dict[str, int] = {}
    for at, name in enumerate(order):
        own = references.own[name]
        template = references.entries[own[0]].mask is not None
        for other in (*order[at + 1 :], *order[:at]):
            image = references.own[other][0]
            alike = template and references.entries[image].mask is not None
            if image not in own and own[0] not in references.own[other] and not alike:
                found[name] = image
                break
    return found


def _entry(image: TrainingImage, source: ImageSource, mask: ImageSource | None) -> Entry:
    height, width = image.pixels.shape[-2:]
    return Entry(image.reference_id, source, mask, image.digest, height, width, (), False)


def _name(entry: Entry) -> str:
    """Return what an entry is in the digest."""
    if entry.mask is None:
        return entry.reference_id
    mask = hashlib.sha256(load_mask(entry.mask).contiguous().numpy().tobytes()).hexdigest()
    return f"{entry.reference_id} {mask}"


def _brought(mask: Mask, pixels: Pixels) -> Mask:
    height, width = pixels.shape[-2:]
    return mask if mask.shape == (height, width) else fit(mask, (height, width))
