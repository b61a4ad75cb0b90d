"""Confirming samples captions in full and holds every sample against a whole data set.

It is a study like any other, but that the images known to it are those of its own prompts and a
few others taken at random; on these alone thresholds are fitted. The nearest image of each sample
is looked for among all of the data set (`severity.nearest`), and enters the run's tables once it
was found. The threshold for nearest images is likewise fitted on the nearest of the whole set,
those left out that are all but the same picture, or an edited copy where an embedding says so.

Contents: `Images`, what is known of the pictures of a data set; `ConfirmWorker`; `known_prompts`;
`certain`, how often the search is sure.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, UInt64
from torch import Tensor

from mnemoscope.data.images import ImageSource, decode, fit, load_image, thumbnail
from mnemoscope.data.prompts import Prompt, PromptList
from mnemoscope.data.references import CACHED, Reference, References
from mnemoscope.detectors import Detector
from mnemoscope.errors import InputError
from mnemoscope.evidence.pieces.pictures import Pictures
from mnemoscope.flows.rows import Sat
from mnemoscope.flows.study import Study, StudyWorker
from mnemoscope.models.base import Model
from mnemoscope.runs.execute import Rows, Unit
from mnemoscope.runs.folder import Run, Writer
from mnemoscope.runs.manifest import Manifest
from mnemoscope.runs.tables import TABLES
from mnemoscope.sampling.loop import Progress
from mnemoscope.severity.grade import assess
from mnemoscope.severity.nearest import Whole
from mnemoscope.similarity import Describing, Similarity

COMPARED = 8
"""Images whose prints are nearest to a sample's that are compared with it in full."""
OTHERS = 200
"""Images of the set that thresholds are fitted on, beside those of the prompts."""
ROUNDS = 8
"""How often the search for an image that is not all but the same goes further out."""
UNITS = 32
"""Units on whose samples it is told how often the search can be sure."""
FOUND = "inputs-found"
"""Unit of the images that samples turned out to be near to."""


class Images:
    """What is known of the pictures of a data set; the few that were read last are held.

    Args:
        whole: Their prints.
        sources: Where each item's picture is; None where it cannot be used.
    """

    def __init__(self, whole: Whole, sources: Sequence[ImageSource | None]) -> None:
        self.whole = whole
        self.sources = sources
        self.nulls: dict[str, Float[np.ndarray, " image"]] = {}
        self.means: dict[str, Float[Tensor, " d"] | None] = {}
        self._held: OrderedDict[int, Reference] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_held": OrderedDict[int, Reference]()}

    @property
    def names(self) -> UInt64[np.ndarray, " item"]:
        """Return the name of each item's picture as a number."""
        return self.whole.names

    def reference(self, place: int) -> Reference:
        """Return the picture of an item, brought to the model's size.

        Raises:
            InputError: If it cannot be read any more.
        """
        if place in self._held:
            self._held.move_to_end(place)
            return self._held[place]
        source = self.sources[place]
        assert source is not None, "only usable pictures have prints"
        pixels = fit(load_image(source).pixels, self.whole.size)
        self._held[place] = Reference(f"{int(self.names[place]):016x}", pixels)
        while len(self._held) > CACHED:
            self._held.popitem(last=False)
        return self._held[place]

    def thumbnail(self, place: int) -> bytes | None:
        """Return a small picture of an item; None where it has none, or none any more."""
        if place < 0 or self.sources[place] is None:
            return None
        try:
            return thumbnail(self.reference(place).pixels)
        except InputError:
            return None

    @cached_property
    def _first(self) -> dict[int, int]:
        return {int(self.names[place]): place for place in self.whole.places.tolist()}

    def place(self, reference_id: str) -> int:
        """Return the first item that shows a picture."""
        return self._first[int(reference_id, 16)]

    def others(self, seed: int) -> list[int]:
        """Choose items at random, each with a picture of its own."""
        places, rng = self.whole.places, np.random.default_rng(seed)
        return np.sort(rng.choice(places, size=min(OTHERS, len(places)), replace=False)).tolist()


class ConfirmWorker(StudyWorker):
    """Does the units of a confirmation.

    Args:
        images: The pictures of the data set.
        others: Items that thresholds for nearest images are fitted on.
        study: As for `StudyWorker`, like what follows.
        model: The model.
        detectors: What scores the evidence.
        tick: Told after every network call how many rows it evaluated.
    """

    def __init__(
        self,
        images: Images,
        others: Sequence[int],
        study: Study,
        model: Model,
        detectors: Sequence[Detector],
        tick: Progress | None = None,
    ) -> None:
        super().__init__(study, model, detectors, tick)
        self.images = images
        self.others_at = tuple(others)

    @property
    def like(self) -> Callable[..., StudyWorker]:
        """Return what makes its like: prints and places of all pictures go along."""
        return partial(ConfirmWorker, self.images, self.others_at)

    def compare_with(self, references: References, measures: Mapping[str, Similarity]) -> None:
        """Make known images ready for every measure, and hold the measures themselves."""
        super().compare_with(references, measures)
        self.measures = dict(measures)

    @property
    def mean_draws(self) -> int:
        """Return 0 where an earlier confirmation has made the reference mean."""
        return 0 if self.model.digest in self.images.means else super().mean_draws

    def reference_mean(self) -> Float[Tensor, " d"] | None:
        """Return the reference mean, made once a model: all confirmations of it share one."""
        known, digest = self.images.means, self.model.digest
        if digest not in known:
            known[digest] = super().reference_mean()
        return known[digest]

    def mean_from(self, writer: Writer) -> None:
        """Take the reference mean from the run, or of what came before."""
        super().mean_from(writer)
        self.images.means.setdefault(self.model.digest, self.first.mean)

    def manifest(self, prompts: PromptList) -> Manifest:
        """Say what is asked of which model, and of which data set.

        The mechanism's tables are not derived: `mnemoscope report` does it where they are wanted.
        """
        manifest = super().manifest(prompts)
        units = {name: count for name, count in manifest.units.items() if name != "mechanism"}
        names = hashlib.sha256(self.images.names.tobytes()).hexdigest()
        content = hashlib.sha256(f"{manifest.prompts}{names}".encode()).hexdigest()
        return manifest.model_copy(update={"prompts": content, "units": units | {FOUND: 1}})

    def reduce(self, unit: Unit, gathered: Sat) -> Rows:
        """Compare pictures with those known, and with the nearest of the whole set."""
        rows = dict(super().reduce(unit, gathered))
        pictures, ok = gathered.found(Pictures()), gathered.ok
        if pictures is not None and ok:
            named = [gathered.named(at) for at in ok]
            images = pictures.flatten(0, 1)[ok]
            rows["similarities"] = self._widened(gathered, rows["similarities"], named, images)
        return rows

    def _own(self, prompt_id: str) -> frozenset[int]:
        return frozenset(int(name, 16) for name in self.references.ids(prompt_id))

    def _widened(
        self,
        sat: Sat,
        rows: pa.Table,
        named: Sequence[tuple[str, int]],
        images: Float[Tensor, "sample 3 h w"],
    ) -> pa.Table:
        """Put the nearest image of the whole set in the place of the nearest known one."""
        near = self._near(images, [self._own(prompt) for prompt, _ in named])
        wanted = sorted({place for places in near for place in places})
        if not wanted:
            return rows
        references = [self.images.reference(place) for place in wanted]
        at = {place: row for row, place in enumerate(wanted)}
        best: dict[tuple[str, int, str], tuple[float, str]] = {}
        for name, measure in self.measures.items():
            values = measure.index(references).compare(images)
            for row, sample in enumerate(named):
                mine = [at[place] for place in near[row]]
                known = [(float(values[row, one]), references[one].reference_id) for one in mine]
                finite = [pair for pair in known if np.isfinite(pair[0])]
                if finite:
                    best[*sample, name] = max(finite)
        return TABLES["similarities"].of_rows(_replaced(rows.to_pylist(), best, sat.recipe))

    def _near(
        self, images: Float[Tensor, "sample 3 h w"], own: Sequence[frozenset[int]]
    ) -> list[list[int]]:
        """Return the items whose images each sample is compared with in full.

        Those nearest by their prints; and by their descriptors, where samples are compared by the
        embedding that the set was described by.
        """
        whole = self.images.whole
        lots = [whole.near(images, COMPARED, own).places]
        embedding = self.measures.get(whole.described.embedding) if whole.described else None
        if isinstance(embedding, Describing):
            lots.append(whole.like(embedding.embed(images), COMPARED, own))
        both = np.concatenate(lots, axis=1)
        return [[place for place in dict.fromkeys(row) if place >= 0] for row in both.tolist()]

    def derive(self, writer: Writer, manifest: Manifest) -> None:
        """Write the training images that samples are near to, and how severe that is."""
        self._found(writer, manifest)
        run = Run(writer.path, manifest)
        # Those of its own prompts are no sample: what is suspicious often looks alike.
        among = {f"{int(self.images.names[place]):016x}" for place in self.others_at}
        rows = assess(run, loaded=self.measures, nearest=self._nearest(), among=among)
        writer.append("severity", rows)

    def _found(self, writer: Writer, manifest: Manifest) -> None:
        run = Run(writer.path, manifest)
        held = {
            name
            for unit in run.units("references")
            if unit != FOUND
            for name in run.part("references", unit, ["reference_id"])["reference_id"].to_pylist()
        }
        names = {
            name
            for part in run.parts("similarities", ["reference_id"])
            for name in part["reference_id"].to_pylist()
        }
        rows: list[dict[str, Any]] = []
        for name in sorted(names - held):
            source = self.images.sources[self.images.place(name)]
            assert source is not None, "only usable pictures have prints"
            image = load_image(source)
            height, width = image.pixels.shape[-2:]
            rows.append(
                {
                    "reference_id": name,
                    "prompt_ids": [],
                    "digest": image.digest,
                    "width": width,
                    "height": height,
                    "masked": False,
                    "image": thumbnail(fit(image.pixels, self.images.whole.size)),
                }
            )
        writer.append(FOUND, {"references": TABLES["references"].of_rows(rows)})

    def _nearest(self) -> dict[str, Float[np.ndarray, " image"]]:
        """Return how near images at random are to the nearest other of the whole set.

        Those that are the same picture are passed over. It is the same in every round.
        """
        if self.images.nulls.keys() == self.measures.keys():
            return self.images.nulls
        found: dict[str, list[float]] = {name: [] for name in self.measures}
        for place in self.others_at:
            mine = self.images.reference(place)
            near = self._apart(place, mine)
            for name, measure in self.measures.items() if near else ():
                values = measure.index(near).compare(mine.pixels[None])[0]
                finite = values[torch.isfinite(values)]
                found[name] += [float(finite.max())] if len(finite) else []
        self.images.nulls = {name: np.array(values) for name, values in found.items()}
        return self.images.nulls

    def _apart(self, place: int, mine: Reference) -> list[Reference]:
        """Return the images nearest to one that are not the same picture."""
        whole, passed = self.images.whole, {int(self.images.names[place])}
        for _ in range(ROUNDS):
            (places,) = self._near(mine.pixels[None], [frozenset(passed)])
            apart = [at for at in places if not whole.alike(place, at)]
            if apart:
                return [self.images.reference(at) for at in apart]
            passed |= {int(self.images.names[at]) for at in places}
        return []


def _replaced(
    rows: Sequence[Mapping[str, Any]],
    best: Mapping[tuple[str, int, str], tuple[float, str]],
    recipe: str,
) -> list[dict[str, Any]]:
    """Return rows of table `similarities` in which nothing nearer than "nearest" is known."""
    found: list[dict[str, Any]] = []
    seen: set[tuple[str, int, str]] = set()
    for row in rows:
        key = row["prompt_id"], row["seed"], row["measure"]
        changed = dict(row)
        if row["relation"] == "nearest":
            seen.add(key)
            if key in best and best[key][0] > row["value"]:
                changed |= {"value": best[key][0], "reference_id": best[key][1]}
        found.append(changed)
    for key, (value, name) in best.items():
        if key not in seen:
            found.append(
                {
                    "prompt_id": key[0],
                    "seed": key[1],
                    "recipe": recipe,
                    "measure": key[2],
                    "reference_id": name,
                    "relation": "nearest",
                    "value": value,
                }
            )
    return found


def certain(runs: Sequence[Run], images: Images) -> tuple[int, int]:
    """Say for how many samples no copy by l2 can have been overlooked.

    Args:
        runs: The confirmations.
        images: The pictures of the data set.

    Returns:
        Samples of which every image that was not compared in full is further than a copy may be, or
        than one that was; and samples that were looked at, evenly over each run.
    """
    found = [_certain(run, images) for run in runs]
    return sum(sure for sure, _ in found), sum(looked for _, looked in found)


def _certain(run: Run, images: Images) -> tuple[int, int]:
    nulls = {row["measure"]: row["threshold"] for row in run.table("null").to_pylist()}
    threshold = nulls.get("l2:nearest")
    furthest = -np.inf if threshold is None else 1 - threshold
    own: dict[str, frozenset[int]] = {
        row["prompt_id"]: frozenset(int(name, 16) for name in row["references"])
        for row in run.table("prompts", ["prompt_id", "references"]).to_pylist()
    }
    units = list(run.units("samples"))
    some = np.linspace(0, len(units) - 1, min(len(units), UNITS)).round().astype(int)
    sure = looked = 0
    for unit in sorted({units[at] for at in some}):
        best: dict[tuple[str, int], float] = {}
        for row in run.part("similarities", unit).to_pylist():
            if row["measure"] == "l2" and row["relation"] == "nearest":
                best[row["prompt_id"], row["seed"]] = 1 - row["value"]
        rows = [row for row in run.part("samples", unit).to_pylist() if row["status"] == "ok"]
        rows = [row for row in rows if (row["prompt_id"], row["seed"]) in best]
        if not rows:
            continue
        pictures = torch.stack([decode(row["image"]) for row in rows])
        near = images.whole.near(pictures, COMPARED, [own[row["prompt_id"]] for row in rows])
        for row, beyond in zip(rows, near.beyond, strict=True):
            sure += bool(beyond >= min(furthest, best[row["prompt_id"], row["seed"]]))
        looked += len(rows)
    return sure, looked


def known_prompts(prompts: Sequence[Prompt], images: Images, others: Sequence[int]) -> PromptList:
    """Return the prompts of a confirmation, and one for each further image that is known."""
    own = {source for prompt in prompts for source in prompt.images}
    found = ((place, images.sources[place]) for place in others)
    more = [
        Prompt(f"item-{place}", f"item {place}", (source,))
        for place, source in found
        if source is not None and source not in own
    ]
    return PromptList.of([*prompts, *more])
