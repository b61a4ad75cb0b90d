"""Rows of a study's tables, made of what a sitting left; no network is called.

Contents: `Sat`, and a function for each table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from mnemoscope.core.gram import NAMES, PAIRS, Gram
from mnemoscope.data.images import thumbnails
from mnemoscope.data.prompts import Prompt
from mnemoscope.data.references import References
from mnemoscope.evidence import Absent, Bank, Evidence, Piece
from mnemoscope.evidence.pieces.convergence import Convergence
from mnemoscope.evidence.pieces.filmstrip import Filmstrip
from mnemoscope.evidence.pieces.pictures import Pictures
from mnemoscope.evidence.pieces.probed import Probed
from mnemoscope.evidence.pieces.whole_path import WholePath
from mnemoscope.evidence.sitting import Outcome
from mnemoscope.models.base import Model
from mnemoscope.runs.tables import TABLES
from mnemoscope.sampling.batching import attempt
from mnemoscope.similarity import Index


@dataclass(frozen=True)
class Sat:
    """What a sitting left.

    Attributes:
        bank: What its prompts shared.
        prompts: The prompts.
        keys: Place of the prompt, and seed, of every sample.
        outcomes: What became of every sample.
        evidence: What was gathered.
        spent: Seconds by piece.
    """

    bank: Bank
    prompts: tuple[Prompt, ...]
    keys: tuple[tuple[int, int], ...]
    outcomes: tuple[Outcome, ...]
    evidence: Evidence
    spent: Mapping[Piece[Any], float]

    @property
    def recipe(self) -> str:
        """Return the key of the recipe."""
        return self.bank.recipe.key

    @property
    def ok(self) -> list[int]:
        """Return the numbers of the samples that are ok."""
        return [at for at, outcome in enumerate(self.outcomes) if outcome.status == "ok"]

    def named(self, sample: int) -> tuple[str, int]:
        """Return prompt_id and seed of a sample."""
        prompt, seed = self.keys[sample]
        return self.prompts[prompt].prompt_id, seed

    def found(self, piece: Piece[Any]) -> Any:
        """Return a piece; None where it could not be gathered."""
        value = self.evidence.pieces.get(piece)
        return None if isinstance(value, Absent) else value


def prompt_rows(
    model: Model,
    prompts: Sequence[Prompt],
    references: References | None = None,
    swapped: Mapping[str, int] | None = None,
) -> pa.Table:
    """Return rows of table `prompts`; their training images where those are known."""

    def measured(some: Sequence[Prompt]) -> list[tuple[int | None, bool | None]]:
        texts = [prompt.text for prompt in some]
        return list(zip(model.token_counts(texts), model.truncated(texts), strict=True))

    def other(prompt: Prompt) -> str | None:
        place = (swapped or {}).get(prompt.prompt_id)
        return (
            None if references is None or place is None else references.entries[place].reference_id
        )

    lengths: list[tuple[int | None, bool | None]] = []
    for _, found in attempt(prompts, measured):
        lengths += [(None, None)] if isinstance(found, Exception) else found
    return TABLES["prompts"].of_rows(
        [
            {
                "prompt_id": prompt.prompt_id,
                "prompt": prompt.text,
                "group": prompt.group,
                "kind": prompt.kind,
                "family": prompt.family,
                "level": prompt.level,
                "repetitions": prompt.repetitions,
                "overfit_type": prompt.overfit_type,
                "tokens": tokens,
                "truncated": truncated,
                "references": list[str]()
                if references is None
                else references.ids(prompt.prompt_id),
                "other": other(prompt),
            }
            for prompt, (tokens, truncated) in zip(prompts, lengths, strict=True)
        ]
    )


def reference_rows(references: References, places: Sequence[int]) -> pa.Table:
    """Return rows of table `references`, with thumbnails."""
    return TABLES["references"].of_rows(list(references.rows(places)))


def sample_rows(sat: Sat, calls: int) -> pa.Table:
    """Return rows of table `samples`, with pictures; `calls` of the path were sampled."""
    images = sat.found(Pictures())
    whole: list[bytes | None] = [None] * len(sat.keys)
    if images is not None:
        flat = images.flatten(0, 1)
        for at, picture in zip(sat.ok, thumbnails((flat[at], None) for at in sat.ok), strict=True):
            whole[at] = picture
    named = [sat.named(at) for at in range(len(sat.keys))]
    return TABLES["samples"].of(
        {
            "prompt_id": [prompt for prompt, _ in named],
            "seed": [seed for _, seed in named],
            "recipe": [sat.recipe] * len(named),
            "status": [outcome.status for outcome in sat.outcomes],
            "reason": [outcome.reason for outcome in sat.outcomes],
            "network_calls": [
                calls * sat.bank.branches + outcome.before for outcome in sat.outcomes
            ],
            "seconds": [outcome.seconds for outcome in sat.outcomes],
            "image": whole,
        }
    )


def failed_rows(bank: Bank, prompts: Sequence[Prompt], reason: str) -> pa.Table:
    """Return rows of table `samples` for prompts of which nothing could be gathered."""
    names = [prompt.prompt_id for prompt in prompts for _ in range(bank.seeds)]
    return TABLES["samples"].of(
        {
            "prompt_id": names,
            "seed": list(range(bank.seeds)) * len(prompts),
            "recipe": [bank.recipe.key] * len(names),
            "status": ["error"] * len(names),
            "reason": [reason] * len(names),
            "network_calls": [0] * len(names),
            "seconds": [0.0] * len(names),
        }
    )


def gram_rows(sat: Sat, probed: bool) -> pa.Table:
    """Return rows of table `gram`: the path, and the probes of both laws where there are any."""
    tables = [TABLES["gram"].schema.empty_table()]
    path = sat.found(WholePath())
    if path is not None and sat.ok:
        calls = range(sat.bank.calls)
        named = [sat.named(at) for at in sat.ok]
        tables.append(_products(path, "path", sat.recipe, calls, named))
    for law in ("forward", "noise") if probed else ():
        probes = sat.found(Probed(law))
        if probes is None:
            continue
        for keys, gram in probes.parts:
            named = [(sat.prompts[p].prompt_id, seed) for p, seed in keys]
            tables.append(_products(gram, law, None, probes.calls, named))
    return pa.concat_tables(tables)


def _products(
    gram: Gram,
    law: str,
    recipe: str | None,
    calls: Sequence[int],
    keys: Sequence[tuple[str, int]],
) -> pa.Table:
    samples, count = len(keys), len(calls)
    products = gram.products.reshape(samples * count, len(NAMES), len(NAMES)).numpy()

    def each(values: Sequence[Any]) -> list[Any]:
        return [value for value in values for _ in range(count)]

    columns: dict[str, Any] = {
        "prompt_id": each([prompt for prompt, _ in keys]),
        "seed": each([seed for _, seed in keys]),
        "recipe": [recipe] * (samples * count),
        "law": [law] * (samples * count),
        "call": list(calls) * samples,
        "alpha": gram.level.alpha.repeat(samples).numpy(),
        "sigma": gram.level.sigma.repeat(samples).numpy(),
    }
    for a, b in PAIRS:
        values = products[:, NAMES.index(a), NAMES.index(b)]
        columns[f"{a}·{b}"] = pa.array(values, from_pandas=True)
    return TABLES["gram"].of(columns)


def convergence_rows(sat: Sat) -> pa.Table:
    """Return rows of table `convergence`."""
    tables = [TABLES["convergence"].schema.empty_table()]
    found = sat.found(Convergence())
    if found is None:
        return tables[0]
    level, calls = found[0], sat.bank.calls
    for agreement in found[1]:
        columns: dict[str, Any] = {
            "prompt_id": [sat.prompts[agreement.prompt].prompt_id] * calls,
            "recipe": [sat.recipe] * calls,
            "call": range(calls),
            "alpha": level.alpha.numpy(),
            "sigma": level.sigma.numpy(),
            "seeds": [agreement.seeds] * calls,
        }
        for name, values in agreement.values.items():
            columns[name] = pa.array(values.numpy(), from_pandas=True)
        tables.append(TABLES["convergence"].of(columns))
    return pa.concat_tables(tables)


def filmstrip_rows(sat: Sat, columns: int) -> pa.Table:
    """Return rows of table `filmstrips`."""
    strips = sat.found(Filmstrip(columns)) or ()
    return TABLES["filmstrips"].of_rows(
        [
            {
                "prompt_id": sat.named(strip.sample)[0],
                "seed": sat.named(strip.sample)[1],
                "recipe": sat.recipe,
                "calls": list(strip.calls),
                "branches": list(strip.branches),
                "side": strip.side,
                "image": strip.image,
            }
            for strip in strips
        ]
    )


def similarity_rows(
    sat: Sat,
    references: References,
    indices: Mapping[str, Index],
    swapped: Mapping[str, int],
) -> pa.Table:
    """Return rows of table `similarities`: own images, the nearest, typical and swapped other."""
    pictures = sat.found(Pictures())
    ok = sat.ok
    if pictures is None or not len(references) or not ok:
        return TABLES["similarities"].schema.empty_table()
    images = pictures.flatten(0, 1)[ok]
    trained = torch.tensor(references.trained)
    rows: list[dict[str, Any]] = []
    for measure, index in indices.items():
        values = index.compare(images)
        candidates = torch.where(trained & torch.isfinite(values), values, -torch.inf)
        for place, sample in enumerate(ok):
            prompt_id, seed = sat.named(sample)
            own = references.own[prompt_id]
            others = candidates[place].clone()
            others[list(own)] = -torch.inf
            nearest = int(others.argmax())
            pairs = [(at, "own") for at in own if torch.isfinite(values[place, at])]
            if torch.isfinite(others[nearest]):
                pairs.append((nearest, "nearest"))
            usual = torch.isfinite(values[place])
            usual[list(own)] = False
            if bool(usual.any()):
                ranked = values[place].masked_fill(~usual, torch.inf).argsort()
                pairs.append((int(ranked[(int(usual.sum()) - 1) // 2]), "typical"))
            swap = swapped.get(prompt_id)
            if swap is not None and torch.isfinite(values[place, swap]):
                pairs.append((swap, "other"))
            rows += [
                {
                    "prompt_id": prompt_id,
                    "seed": seed,
                    "recipe": sat.recipe,
                    "measure": measure,
                    "reference_id": references.entries[at].reference_id,
                    "relation": relation,
                    "value": float(values[place, at]),
                }
                for at, relation in pairs
            ]
    return TABLES["similarities"].of_rows(rows)
