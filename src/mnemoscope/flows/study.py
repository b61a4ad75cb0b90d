"""A study samples a model on prompts and leaves a run: tables of what happened, and what follows.

Flow of `run`: load model and prompts, make the plan and say its price, run the units that are not
on disk yet, then derive severity and the mechanism's tables from what was recorded.

Contents: `Study`, `run`, `derive`.
"""

import hashlib
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mnemoscope import mechanism
from mnemoscope.errors import InputError, RunError, did_you_mean
from mnemoscope.executors import serial
from mnemoscope.data.images import thumbnail
from mnemoscope.models.base import Model
from mnemoscope.models.load import load_model
from mnemoscope.plan import (
    MEAN_DRAWS,
    Library,
    Plan,
    make_library,
    make_plan,
    reference_mean,
    seconds_a_row,
)
from mnemoscope.data.prompts import Prompt, embedded_prompts, load_prompts
from mnemoscope.runs.folder import Manifest, Run, Writer
from mnemoscope.severity.grade import assess
from mnemoscope.runs.tables import TABLES

Notify = Callable[[str], None]
"""Told one line at a time what is going on."""

PACKAGES = ("mnemoscope", "torch", "diffusers", "transformers", "numpy", "pyarrow")
NOISES = ("independent", "shared")


@dataclass(frozen=True)
class Study:
    """What to do. Every field is an option of `mnemoscope study`, with this default and help."""

    model: str = field(
        default="embedded",
        metadata={
            "help": "embedded, oracle:NAME, a diffusers folder, a .safetensors file, or a hub id."
        },
    )
    prompts: str | Path | None = field(
        default=None,
        metadata={"help": "Prompt file or image folder; the embedded model brings its own."},
    )
    seeds: int = field(default=10, metadata={"help": "Samples a prompt."})
    guidance: tuple[float, ...] = field(
        default=(1.0, 7.5), metadata={"help": "Guidance scales, comma-separated; 1 is unguided."}
    )
    steps: int = field(default=50, metadata={"help": "Sampler updates."})
    scheduler: str = field(default="ddim", metadata={"help": "Sampler."})
    out: str | Path = field(
        default="runs/study", metadata={"help": "Run folder; an unfinished run in it is continued."}
    )
    subset: int | None = field(
        default=None,
        metadata={
            "help": "Use this many embedded prompts, one control in four, spread over all levels."
        },
    )
    similarity: tuple[str, ...] = field(
        default=("l2", "tiled_l2", "masked_l2"),
        metadata={
            "help": "Similarity measures, comma-separated; the first says what counts as memorized."
        },
    )
    sscd: str | Path | None = field(
        default=None, metadata={"help": "File of the SSCD network, TorchScript or ONNX."}
    )
    probes: bool = field(
        default=True,
        metadata={"help": "Also call the network on noised targets and on pure noise."},
    )
    filmstrip: int = field(
        default=0,
        metadata={
            "help": "Calls whose clean estimates are kept as pictures, for the report's scrubber; "
            "at most 32 KiB a sample, and three decodings a call."
        },
    )
    noise: str = field(
        default="independent",
        metadata={"help": "Initial noise: independent for every sample, or shared among prompts."},
    )
    seed: int = field(default=0, metadata={"help": "Seed that all noise derives from."})
    lora: str | Path | None = field(
        default=None, metadata={"help": "LoRA to merge into the model, a .safetensors file."}
    )
    vae: str | Path | None = field(
        default=None, metadata={"help": "VAE to use instead of the model's own."}
    )
    batch: int | None = field(
        default=None, metadata={"help": "Samples a batch; chosen by size where not given."}
    )
    device: str = field(default="auto", metadata={"help": "Device: auto, cpu, cuda, mps."})
    dtype: str = field(
        default="auto",
        metadata={"help": "Precision of the denoiser: auto, float32, bfloat16, float16."},
    )

    def __post_init__(self) -> None:
        """Bring values to their type and refuse those that mean nothing.

        Raises:
            InputError: If a value is out of range.
        """
        for name in ("guidance", "similarity"):
            values = getattr(self, name)
            if isinstance(values, str):
                raise InputError(f"{name} {values!r} given; expected a tuple of values")
            if not values or len(set(values)) < len(values):
                raise InputError(f"{name} {values!r} is empty or repeats a value")
        for name in ("prompts", "out", "sscd", "lora", "vae"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, str(getattr(self, name)))
        # A comparison that NaN fails as well.
        if not all(1 <= g < float("inf") for g in self.guidance):
            raise InputError(f"guidance {self.guidance} given; expected finite scales of 1 or more")
        for name in ("seeds", "steps", "batch", "subset"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} {value} given; expected at least 1")
        if self.filmstrip < 0:
            raise InputError(f"filmstrip {self.filmstrip} given; expected at least 0")
        if self.noise not in NOISES:
            raise InputError(did_you_mean(self.noise, NOISES, "noise"))

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> "Study":
        """Make a study of options in which several values are one text with commas.

        Raises:
            InputError: If a guidance scale is no number, or a value is out of range.
        """

        def parts(text: str) -> list[str]:
            return [part.strip() for part in text.split(",") if part.strip()]

        values = dict(options)
        values["similarity"] = tuple(parts(values["similarity"]))
        try:
            values["guidance"] = tuple(map(float, parts(values["guidance"])))
        except ValueError as error:
            raise InputError(
                f"guidance {options['guidance']!r} given; expected numbers such as 1,7.5"
            ) from error
        return cls(**values)

    def resolved(self) -> dict[str, Any]:
        """Return every field, several values as a list, as a manifest holds them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def given(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults."""
        differs = {f.name for f in fields(self) if getattr(self, f.name) != f.default}
        return {name: value for name, value in self.resolved().items() if name in differs}


def run(
    study: Study,
    *,
    model: Model | None = None,
    notify: Notify | None = None,
    progress: bool = False,
) -> Run:
    """Run a study, or what is left of it.

    Args:
        study: The study.
        model: Its model, if it is loaded already.
        notify: Told the price first, then what was found on disk and what is done.
        progress: Whether to draw a progress bar on standard error.

    Returns:
        The finished run.

    Raises:
        InputError: If prompts, images or an option cannot be used.
        ModelError: If the model cannot be loaded or cannot do what is asked.
        RunError: If the run folder is of another study, in use, or cannot be written.
        KeyboardInterrupt: If it was interrupted; the same study continues where it stopped.
    """
    say = notify or (lambda line: None)
    prompts, known = _prompts(study)
    model = model or load_model(
        study.model, device=study.device, dtype=study.dtype, lora=study.lora, vae=study.vae
    )
    library = make_library(known, model.image_size)
    plan = make_plan(
        model,
        prompts,
        library,
        seeds=study.seeds,
        guidance=study.guidance,
        steps=study.steps,
        scheduler=study.scheduler,
        seed=study.seed,
        shared_noise=study.noise == "shared",
        probes=study.probes,
        similarity=study.similarity,
        sscd=study.sscd,
        batch=study.batch,
        filmstrip=study.filmstrip,
    )
    manifest = _manifest(study, model, plan, prompts, library)
    with Writer.open(Path(study.out), manifest) as writer:
        done = writer.finished()
        todo = [unit for unit in plan.units if unit.name not in done]
        say(_price(study, model, plan, prompts))
        if len(todo) < len(plan.units):
            say(f"{len(plan.units) - len(todo)} of {len(plan.units)} units are on disk already")
        try:
            if "inputs" not in done:
                writer.append("inputs", _inputs(model, prompts, library))
            plan = _with_mean(model, plan, writer, manifest)
            branches = 2 if model.has_uncond else 1
            total = sum(plan.network_calls(unit, branches) for unit in todo)
            with tqdm(
                total=total, unit="call", unit_scale=True, disable=not progress or not todo
            ) as bar:

                def tick(rows: int) -> None:
                    bar.update(rows)

                for unit, parts in serial(model, plan, todo, tick):
                    writer.append(unit.name, parts)
            derive(writer, manifest, plan)
        except KeyboardInterrupt:
            writer.close(manifest, "interrupted")
            raise
        except RunError:
            # A full disk may have room for the manifest, or not: what was finished is intact.
            with suppress(RunError):
                writer.close(manifest, "interrupted")
            raise
        return writer.close(manifest, "complete")


def derive(writer: Writer, manifest: Manifest, plan: Plan) -> None:
    """Write the tables that are arithmetic on the others; no network is called."""
    assessed = assess(Run(writer.path, manifest), loaded=plan.similarities)
    writer.append("severity", assessed)
    findings = mechanism.analyse(mechanism.read(Run(writer.path, manifest)))
    columns = mechanism.columns(findings)
    writer.append("mechanism", {name: TABLES[name].of(values) for name, values in columns.items()})


def _prompts(study: Study) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Return the study's prompts, and those whose images are known."""
    if study.prompts is not None:
        if study.subset is not None:
            raise InputError("subset chooses among embedded prompts; cut the prompt file instead")
        prompts = load_prompts(study.prompts)
        return prompts, prompts
    if not study.model.startswith("embedded"):
        meant = get_close_matches(study.model, ("embedded", "embedded:base"), n=1)
        hint = f" Did you mean {meant[0]!r}?" if meant else ""
        raise InputError(
            f"model {study.model!r} brings no prompts of its own; give a file with --prompts.{hint}"
        )
    known = embedded_prompts()
    if study.subset is None:
        return known, known
    controls = study.subset // 4
    return embedded_prompts(planted=study.subset - controls, controls=controls), known


def _manifest(
    study: Study, model: Model, plan: Plan, prompts: tuple[Prompt, ...], library: Library
) -> Manifest:
    content = hashlib.sha256(library.digest.encode())
    for prompt in prompts:
        own = [library.references[at].reference_id for at in library.own[prompt.prompt_id]]
        content.update(repr((prompt, own)).encode("utf-8", "surrogatepass"))
    alpha, sigma = plan.final
    return Manifest(
        given=study.given(),
        study=study.resolved() | {"batch": plan.batch},
        packages={"python": sys.version.split()[0]} | _versions(),
        model={"name": model.name, "digest": model.digest},
        prompts=content.hexdigest(),
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        final_level=(float(alpha), float(sigma)),
        d=model.d,
        latent_shape=tuple(model.latent_shape),
    )


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _inputs(model: Model, prompts: tuple[Prompt, ...], library: Library) -> dict[str, Any]:
    texts = [prompt.text for prompt in prompts]
    rows = [
        {
            "prompt_id": prompt.prompt_id,
            "prompt": prompt.text,
            "group": prompt.group,
            "kind": prompt.kind,
            "family": prompt.family,
            "level": prompt.level,
            "overfit_type": prompt.overfit_type,
            "tokens": tokens,
            "truncated": truncated,
            "references": [
                library.references[at].reference_id for at in library.own[prompt.prompt_id]
            ],
        }
        for prompt, tokens, truncated in zip(
            prompts, model.token_counts(texts), model.truncated(texts), strict=True
        )
    ]
    pictures = [
        row | {"image": thumbnail(reference.pixels, reference.mask)}
        for row, reference in zip(library.rows, library.references, strict=True)
    ]
    return {
        "prompts": TABLES["prompts"].of_rows(rows),
        "references": TABLES["references"].of_rows(pictures),
    }


def _with_mean(model: Model, plan: Plan, writer: Writer, manifest: Manifest) -> Plan:
    """Take the reference mean from the run, or compute it and leave it there."""
    held = Run(writer.path, manifest)
    if not held.constants:
        constants = {"w0": plan.exact.w0[1:], "wT": plan.exact.wT[1:]}
        mean = reference_mean(model, plan)
        writer.write_constants(constants if mean is None else constants | {"mean": mean})
        held = Run(writer.path, manifest)
    return replace(plan, mean=held.mean)


def _price(study: Study, model: Model, plan: Plan, prompts: tuple[Prompt, ...]) -> str:
    branches = 2 if model.has_uncond else 1
    calls = sum(plan.network_calls(unit, branches) for unit in plan.units) + MEAN_DRAWS
    seconds = calls * seconds_a_row(model, plan)
    scales = len(study.guidance)
    return (
        f"{len(prompts)} prompts x {study.seeds} seeds x {scales} guidance scale"
        f"{'s' if scales > 1 else ''}, {calls:,} network calls, about {_duration(seconds)} "
        f"on {torch.device(model.device)}"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
