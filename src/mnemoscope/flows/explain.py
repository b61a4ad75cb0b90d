r"""An explanation says which words and which places of a prompt's samples are memorized.

Formulas, means over seeds::

    change_j            what leaving word j out changes, first call (see `words`)
    attribution_i       ||d ||gap|| / d s_i||, first call, s_i the text encoder's state there
    attention_i         cross-attention to position i under the prompt, first and last call
    squared gap         sum over channels of gap² / sigma², last call
    curvature           relu( sum over channels of diag(d gap / dx) ), last call
    bright ending       cross-attention to the end token, last call

At the first call the state is noise and depends on no guidance. The released code of the
attribution goes on along a path whose guidance scale is 1 - g, because it swaps the branches.

Each prompt is a unit of a run folder, and so is the control prompt that is shown beside it for
scale: what was explained is not explained again, and another prompt may join later.

Contents: `Explaining`; `explain_all`, a run of it; `explain`, one prompt.
"""

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mnemoscope.core.explanation import Explanation, Part, Word
from mnemoscope.data.prompts import Prompt, PromptList, named
from mnemoscope.data.references import References
from mnemoscope.errors import InputError, MnemoscopeError, RunError, did_you_mean
from mnemoscope.evidence import Absent, Bank, Evidence, Piece
from mnemoscope.evidence.gather import gather, sit
from mnemoscope.evidence.pieces.curvature import Curvature
from mnemoscope.evidence.pieces.end_attention import EndAttention
from mnemoscope.evidence.pieces.maps import Maps
from mnemoscope.evidence.pieces.pictures import Pictures
from mnemoscope.evidence.pieces.token_attention import TokenAttention
from mnemoscope.evidence.pieces.token_gradient import TokenGradient
from mnemoscope.evidence.sitting import told
from mnemoscope.evidence.values import LatentMaps
from mnemoscope.flows.options import (
    brought,
    given,
    listed,
    loaded,
    name_of,
    of_one_kind,
    opened,
    recipe_of,
    resolved,
    values_of,
)
from mnemoscope.flows.rows import Sat, failed_rows, prompt_rows, reference_rows, sample_rows
from mnemoscope.flows.words import changes, without
from mnemoscope.models.base import Model
from mnemoscope.models.source import Source
from mnemoscope.options import option
from mnemoscope.reporting.explanation import read
from mnemoscope.runs.execute import Rows, Unit, execute
from mnemoscope.runs.folder import Run, Writer
from mnemoscope.runs.manifest import Manifest, packages
from mnemoscope.runs.tables import TABLES
from mnemoscope.sampling.recipe import Recipe

Notify = Callable[[str], None]

CONTROL = "a photo of a house by the sea"
"""The ordinary prompt that is shown for scale where no list of prompts has a control."""

NAMING = ("prompt", "prompts", "ids", "out")
"""Options that say which prompts, and not how."""


@dataclass(frozen=True)
class Explaining(Recipe, Source):
    """What to explain. Every field is an option of `mnemoscope explain`."""

    noise: str = option("shared", "Initial noise, as for detect.")
    prompt: tuple[str, ...] = option((), "Prompt; give it several times for several.")
    prompts: str | Path | None = option(None, "Prompt file; the embedded model brings its own.")
    ids: tuple[str, ...] = option((), "Which of the list's prompts, prompt_id, comma-separated.")
    control: str | None = option(
        None, "Ordinary prompt to show beside for scale; a control of the list where not given."
    )
    out: str | Path = option("runs/explained", "Run folder; what is explained there is kept.")
    seeds: int = option(4, "Samples a prompt.")
    probes: int = option(16, "Random vectors of the curvature's estimate.")
    batch: int | None = option(None, "Samples a batch; chosen by size where not given.")

    def __post_init__(self) -> None:
        """Bring values to their type and refuse those that mean nothing.

        Raises:
            InputError: If a value is out of range, or it is not clear which prompts are meant.
        """
        super().__post_init__()
        if isinstance(self.prompt, str):
            object.__setattr__(self, "prompt", (self.prompt,))
        brought(self)
        if self.probes < 1:
            raise InputError(f"probes {self.probes} given; expected at least 1")
        of_one_kind(self)
        if self.control is not None and not self.control.strip():
            raise InputError("a blank --control was given; expected text")
        if Path(self.out).is_file():
            raise InputError(f"{str(self.out)!r} is a file; give a folder with --out")

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> "Explaining":
        """Make it of options in which several values are one text with commas.

        Raises:
            InputError: If a value does not fit.
        """
        given = dict(options)
        given["prompt"] = tuple(given.get("prompt") or ())
        return cls(**values_of(cls, given))

    def known(self) -> PromptList | None:
        """Return the list that prompts and the control come from; None where there is none."""
        if self.prompts is None and not self.model.startswith("embedded"):
            return None
        return listed(self.prompts, self.model)

    def chosen(self) -> list[Prompt]:
        """Return the prompts to explain: those given, or those of a list that are named.

        Raises:
            InputError: If none was named, or one is not in the list.
        """
        if self.prompt:
            return list(named(self.prompt))
        if not self.ids:
            raise InputError(
                "no prompt was named; give --prompt TEXT, or --ids of a list's prompts"
            )
        known = {one.prompt_id: one for one in listed(self.prompts, self.model)}
        for name in self.ids:
            if name not in known:
                raise InputError(did_you_mean(name, known, "prompt"))
        return [known[name] for name in self.ids]


def explain_all(
    asked: Explaining, *, model: Model | None = None, notify: Notify | None = None
) -> tuple[Run, tuple[str, ...], str]:
    """Explain prompts, or those of them that are not explained in the folder yet.

    Args:
        asked: Which prompts, and how.
        model: The model, if it is loaded already.
        notify: Told one line at a time what is going on.

    Returns:
        The run, the names of the prompts in it, and that of the control.

    Raises:
        InputError: If prompts or an option cannot be used.
        ModelError: If the model cannot be loaded or cannot do what is asked.
        RunError: If the folder holds something else, is in use, or cannot be written.
    """
    return _explained(asked, asked.chosen(), asked.known(), model, notify or (lambda line: None))


def explain(model: Any, prompt: str | Prompt, **options: Any) -> Explanation:
    """Explain one prompt.

    Args:
        model: The model, its name, or a pipeline object.
        prompt: The prompt.
        **options: Fields of `Explaining`: seeds, guidance, steps, scheduler, seed, probes, out ...

    Returns:
        Words, positions and maps; what the model cannot give is left out with a reason.
    """
    whole = named([prompt])[0]
    with tempfile.TemporaryDirectory(prefix="mnemoscope-") as folder:
        out: dict[str, Any] = {"out": Path(folder) / "run"}
        asked = Explaining(model=name_of(model), **out | options)
        known = opened(model, asked)
        held = asked.known()
        run, _, _ = _explained(asked, [whole], held, known, lambda line: None, control=False)
        return read(run, whole.prompt_id)


def _explained(
    asked: Explaining,
    prompts: Sequence[Prompt],
    known: PromptList | None,
    model: Model | None,
    say: Notify,
    *,
    control: bool = True,
) -> tuple[Run, tuple[str, ...], str]:
    model = model or loaded(asked)
    worker = ExplainWorker(asked, model)
    beside = _control(asked, known)
    units = {
        unit_name(prompt, worker.bank.recipe): Unit(
            unit_name(prompt, worker.bank.recipe), 0, (prompt,), worker.bank.recipe
        )
        for prompt in (*prompts, *([beside] if control else []))
    }
    manifest = worker.manifest(beside)
    with Writer.open(Path(asked.out), manifest) as writer:
        done = writer.finished()
        _same_names(Run(writer.path, manifest), prompts)
        if "inputs" not in done:
            writer.append(
                "inputs", {"recipes": TABLES["recipes"].of_rows([worker.bank.recipe.row])}
            )
        left = [unit for name, unit in units.items() if name not in done]
        if len(left) < len(units):
            say(f"{len(units) - len(left)} of {len(units)} prompts are explained in there already")
        with writer.noting(manifest):
            execute(
                writer,
                worker,
                left,
                done=lambda unit: say(f"explained {unit.prompts[0].prompt_id}"),
            )
        run = writer.close(manifest, "complete")
    return run, tuple(prompt.prompt_id for prompt in prompts), beside.prompt_id


def _control(asked: Explaining, known: PromptList | None) -> Prompt:
    """Return the prompt that is shown for scale."""
    if asked.control is None:
        for one in known or ():
            if one.group == "control":
                return one
    given = named([CONTROL if asked.control is None else asked.control])[0]
    return replace(given, group="control")


def unit_name(prompt: Prompt, recipe: Recipe) -> str:
    """Return the name of a prompt's unit: the same for the same name, text and recipe."""
    content = f"{prompt.prompt_id}\n{prompt.text}".encode("utf-8", "replace")
    return f"{hashlib.sha256(content).hexdigest()[:16]}-{recipe.key}"


def _same_names(run: Run, prompts: Sequence[Prompt]) -> None:
    """Refuse a prompt whose name another one of the folder has.

    Raises:
        RunError: If there is one.
    """
    held = {row["prompt_id"]: row["prompt"] for row in run.table("prompts").to_pylist()}
    for prompt in prompts:
        if held.get(prompt.prompt_id, prompt.text) != prompt.text:
            raise RunError(
                f"{str(run.path)!r} explains another prompt named {prompt.prompt_id!r}; "
                "give another --out"
            )


class ExplainWorker:
    """Explains prompts, one a unit.

    Args:
        asked: How.
        model: The model.
    """

    def __init__(self, asked: Explaining, model: Model) -> None:
        changes: dict[str, Any] = {} if model.guidance != "none" else {"guidance": 1.0}
        self.asked = asked
        self.model = model
        self.bank = Bank(model, recipe_of(asked, model, **changes), asked.seeds, asked.batch)
        self.attention, self.curvature = TokenAttention(None), Curvature(asked.probes)
        self.pieces: tuple[Piece[Any], ...] = (
            TokenGradient(),
            Maps("last"),
            self.curvature,
            EndAttention(),
            self.attention,
            Pictures(),
        )

    def manifest(self, control: Prompt) -> Manifest:
        """Say what is asked of which model; which prompts is left open, for others may join."""
        alpha, sigma = self.bank.final
        model, scheduler = self.model, self.bank.recipe.scheduler
        options = resolved(self.asked) | {"batch": self.bank.batch, "scheduler": scheduler}
        return Manifest(
            flow="explanation",
            given=_how(given(self.asked)),
            options=_how(options) | {"control": control.prompt_id},
            packages=packages(),
            model={"name": model.name, "digest": model.digest},
            prompts="",
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            final_level=(float(alpha), float(sigma)),
            d=model.d,
            latent_shape=tuple(model.latent_shape),
        )

    def gather(self, unit: Unit) -> tuple[Sat, tuple[Word, ...] | Absent]:
        """Sample the prompt, then look at the first call without each of its words."""
        sitting = sit(self.bank, unit.prompts, unit.places, self.pieces)
        evidence = gather(sitting, self.pieces)
        sat = Sat(self.bank, unit.prompts, tuple(sitting.keys), sitting.outcomes, evidence, {})
        return sat, self._words(unit.prompts[0])

    def _words(self, prompt: Prompt) -> tuple[Word, ...] | Absent:
        if not self.model.has_uncond:
            return Absent(self.model.no_uncond)
        try:
            # Under one name, so that all of them begin with the same noise.
            prompts = [
                Prompt(prompt.prompt_id, text) for text in (prompt.text, *without(prompt.text))
            ]
            first = Maps("first")
            sitting = sit(self.bank, prompts, [0] * len(prompts), [first])
            found = gather(sitting, [first])[first]
        except MnemoscopeError as error:
            return Absent(str(error))
        return changes(prompt.text, found.eps_c, found.eps_u[0])

    def reduce(self, unit: Unit, gathered: tuple[Sat, tuple[Word, ...] | Absent]) -> Rows:
        """Make rows of it."""
        (sat, words), prompt = gathered, unit.prompts[0]
        references = References(PromptList.of([prompt]), self.model.image_size)
        key = {"prompt_id": prompt.prompt_id, "recipe": unit.recipe.key}
        missing: dict[str, str] = {}
        if isinstance(words, Absent):
            missing["words"], words = words.reason, ()
        rows = {
            "prompts": prompt_rows(self.model, unit.prompts, references),
            "references": reference_rows(references, range(len(references))),
            "samples": sample_rows(sat, self.bank.calls),
            "words": TABLES["words"].of_rows([key | vars(word) for word in words]),
            "tokens": TABLES["tokens"].of_rows(
                [key | token for token in self._tokens(prompt, sat.evidence, missing)]
            ),
            "maps": TABLES["maps"].of_rows(
                [
                    key | {"seed": seed, "map": name, "width": values.shape[1], "values": flat}
                    for name, each in self._maps(sat.evidence, missing).items()
                    for seed, values in enumerate(each)
                    for flat in [values.flatten().float().numpy()]
                ]
            ),
        }
        lost = [key | {"what": name, "reason": reason} for name, reason in missing.items()]
        return rows | {"missing": TABLES["missing"].of_rows(lost)}

    def failed(self, unit: Unit, error: Exception) -> Rows:
        """Mark a prompt."""
        return {
            "prompts": prompt_rows(self.model, unit.prompts),
            "samples": failed_rows(self.bank, unit.prompts, told(error)),
        }

    def _tokens(
        self, prompt: Prompt, evidence: Evidence, missing: dict[str, str]
    ) -> list[dict[str, Any]]:
        gradient = evidence.pieces[TokenGradient()]
        if isinstance(gradient, Absent):
            missing["positions"] = gradient.reason
            return []
        attribution = gradient[0].mean(dim=0)
        seen = evidence.pieces[self.attention]
        per_call = None if isinstance(seen, Absent) else seen[0].mean(dim=(0, 2))
        texts, window = self.model.token_texts(prompt.text), len(attribution)
        end = min(self.model.token_counts([prompt.text])[0] + 1, window - 1)

        def part(at: int) -> Part:
            return "begin" if at == 0 else "text" if at < end else "end" if at == end else "padding"

        return [
            {
                "position": at,
                "text": texts[at] if at < len(texts) else "",
                "part": part(at),
                "attribution": float(attribution[at]),
            }
            | (
                {}
                if per_call is None
                else {
                    "attention_first": float(per_call[0, at]),
                    "attention_last": float(per_call[-1, at]),
                }
            )
            for at in range(window)
        ]

    def _maps(self, evidence: Evidence, missing: dict[str, str]) -> dict[str, torch.Tensor]:
        last = evidence.pieces[Maps("last")]
        curvature, ending = (evidence.pieces[p] for p in (self.curvature, EndAttention()))
        made: dict[str, torch.Tensor] = {}
        for name, piece, value in (
            ("squared gap", last, lambda: _squared(last)),
            ("curvature", curvature, lambda: curvature[0].double().sum(dim=1).clamp_min(0)),
            ("bright ending", ending, lambda: ending[0]),
        ):
            if isinstance(piece, Absent):
                missing[name] = piece.reason
            else:
                made[name] = value()
        return made


def _squared(last: LatentMaps) -> torch.Tensor:
    return last.gap[0].double().square().sum(dim=1) / last.level.sigma**2


def _how(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in NAMING}
