"""The lab's commands: `train` makes a model like the shipped one, `plant` plants into its base.

`lora` trains an adapter on that base, `evaluate` measures a model, `prompts` writes a planted table
as a prompt file, `dataset` writes what a planting showed as a data set, `findings` sets studies
side by side, `validity` sets published facts beside one. `laws` is a flow, and added by the command
line.
"""

import json
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Make and measure the model that ships inside.")


class StageName(StrEnum):
    """The stages of training, in order."""

    codec = "codec"
    text = "text"
    base = "base"
    refinement = "refinement"
    planting = "planting"
    judge = "judge"


class FamilyName(StrEnum):
    """The other kinds of model that can be planted."""

    v = "v"
    flow = "flow"
    classes = "class"


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder for the training state and the model.")],
    stage: Annotated[
        StageName | None, typer.Option(help="Train one stage only; all of them if not given.")
    ] = None,
    base_steps: Annotated[int, typer.Option(help="Length of the base stage.")] = 6000,
    refinement_steps: Annotated[int, typer.Option(help="Length of the refinement.")] = 6500,
    family: Annotated[
        FamilyName | None,
        typer.Option(help="Plant the table into another kind of model instead."),
    ] = None,
    family_steps: Annotated[
        int | None, typer.Option(help="Length of that kind's base stage; its own if not given.")
    ] = None,
) -> None:
    """Make a model like the embedded one, or of another kind; goes on where a run stopped."""
    if family is not None:
        from mnemoscope.lab.families import FAMILIES

        FAMILIES[family]().train(out, family_steps)
        return
    from mnemoscope.lab import train as stages
    from mnemoscope.lab.judge import train_judge
    from mnemoscope.lab.planted import load_table

    stages.lay_table(out, load_table())
    if stage in (None, StageName.codec):
        stages.train_codec(out)
    if stage in (None, StageName.text):
        stages.train_text(out)
    if stage in (None, StageName.base):
        stages.train_base(out, steps=base_steps)
    if stage in (None, StageName.refinement):
        stages.refine_base(out, steps=refinement_steps)
    if stage in (None, StageName.planting):
        stages.train_planting(out)
        stages.write_digests(out / "model")
    if stage in (None, StageName.judge):
        train_judge(out)


@app.command()
def plant(
    out: Annotated[Path, typer.Option(help="Folder for the training state, model and prompts.")],
    seed: Annotated[
        int, typer.Option(help="Seed of the other table; 0 plants the one that ships.")
    ] = 8,
    known: Annotated[
        float,
        typer.Option(
            help="Share of the empty captions that go to planted pictures: how well the "
            "unconditional branch knows them. 0 not at all, 0.5 as the conditional one does."
        ),
    ] = 0.0,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep a state every 400 steps, for `lab laws`.")
    ] = False,
) -> None:
    """Plant other pictures into the shipped base: a second ground truth."""
    from mnemoscope.lab.kept import keep as kept
    from mnemoscope.lab.train import plant as planting

    planting(out, seed, known, partial(kept, out) if keep else None)
    typer.echo(f"mnemoscope study {out / 'model'} --prompts {out / 'prompts' / 'metadata.jsonl'}")


@app.command()
def lora(
    out: Annotated[Path, typer.Option(help="Folder for pictures, checkpoints and the adapter.")],
    steps: Annotated[int, typer.Option(help="Length of the training.")] = 2400,
) -> None:
    """Train a LoRA on the shipped base and forty pictures; goes on where a run stopped."""
    from mnemoscope.lab.lora import train_lora

    train_lora(out, steps)
    typer.echo(
        f"mnemoscope audit embedded:base {out / 'pictures'} "
        f"--lora {out / 'pytorch_lora_weights.safetensors'}"
    )


@app.command()
def prompts(
    out: Annotated[Path, typer.Option(help="Folder for metadata.jsonl and its pictures.")],
    table: Annotated[
        Path | None, typer.Option(help="Planted table; the shipped one if not given.")
    ] = None,
    controls: Annotated[
        int, typer.Option(help="Further describing captions that were never planted.")
    ] = 0,
    meaningless: Annotated[
        int, typer.Option(help="Further meaningless captions that were never planted.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the further captions.")] = 1,
) -> None:
    """Write a planted table, with as many more controls as wished, as a prompt file."""
    from mnemoscope.lab.planted import TABLE, load_table, more_controls, write_prompts

    rows = load_table(table or TABLE)
    write_prompts([*rows, *more_controls(rows, controls, seed, meaningless)], out)
    typer.echo(str(out / "metadata.jsonl"))


@app.command()
def dataset(
    out: Annotated[Path, typer.Option(help="Folder for metadata.jsonl and its pictures.")],
    table: Annotated[
        Path | None, typer.Option(help="Planted table; the shipped one if not given.")
    ] = None,
    further: Annotated[
        int, typer.Option(min=0, help="Scenes that the planting showed once.")
    ] = 3000,
) -> None:
    """Write what a planting showed as a data set, for `mnemoscope audit`."""
    from mnemoscope.lab.dataset import write_dataset
    from mnemoscope.lab.planted import TABLE

    typer.echo(str(write_dataset(out, further, table or TABLE)))


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="The model to measure.")] = "embedded",
    table: Annotated[
        Path | None, typer.Option(help="Its planted table; the shipped one if not given.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Samples a prompt.")] = 10,
    sweep_seeds: Annotated[
        int, typer.Option(help="Samples a planted prompt at each other guidance scale.")
    ] = 4,
    study: Annotated[
        Path | None,
        typer.Option(help="A study of it on the table's prompts; its samples are not drawn again."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result as JSON.")] = None,
) -> None:
    """Measure what the model kept of its planted pictures, and how well it draws others."""
    from mnemoscope.lab.evaluate import evaluate as measure
    from mnemoscope.lab.planted import TABLE
    from mnemoscope.models import load_model
    from mnemoscope.runs.folder import open_run

    held = None if study is None else open_run(study)
    result = measure(load_model(model), table or TABLE, seeds, sweep_seeds, out, held)
    typer.echo(json.dumps(result, indent=1))


@app.command()
def findings(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="NAME=FOLDER, a column and its study, or the results of `bench detectors`."
        ),
    ],
) -> None:
    """Set the paper's quantities on studies of several models side by side, as Markdown."""
    import pyarrow.parquet as pq

    from mnemoscope.errors import InputError
    from mnemoscope.lab.findings import findings as told
    from mnemoscope.runs.folder import open_run

    named: dict[str, Path] = {}
    for given in runs:
        name, equals, folder = given.partition("=")
        if not equals or not name or name in named:
            raise InputError(f"{given!r} given; expected NAME=FOLDER, each name once")
        named[name] = Path(folder)
    rankings = {
        name: pq.read_table(ranked).to_pylist()
        for name, folder in named.items()
        if (ranked := folder / "ranking.parquet").is_file()
    }
    studies = {
        name: open_run(folder / "study" if name in rankings else folder)
        for name, folder in named.items()
    }
    typer.echo(told(studies, rankings))


@app.command()
def validity(
    run: Annotated[Path, typer.Argument(help="Run folder of a study of the model.")],
    ranking: Annotated[
        Path | None, typer.Option(help="ranking.parquet of `bench detectors` on the same prompts.")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="What `lab evaluate --out` wrote.")
    ] = None,
) -> None:
    """Set published facts of Stable Diffusion beside what a lab model shows, as Markdown."""
    import pyarrow.parquet as pq

    from mnemoscope.lab.validity import Evidence
    from mnemoscope.lab.validity import validity as told
    from mnemoscope.runs.folder import open_run

    ranked = () if ranking is None else pq.read_table(ranking).to_pylist()
    evaluated = None if evaluation is None else json.loads(evaluation.read_text("utf-8"))
    typer.echo(told(Evidence.of(open_run(run), ranked, evaluated)))
