"""The command line parses, calls the functions a notebook would call, and prints what they return.

Exit status::

    0    done                          2    wrong input; the message says what to do
    3    done, but some samples are not finite or failed
    130  interrupted; the same command continues
"""

import inspect
import logging
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from mnemoscope import __version__
from mnemoscope.errors import MnemoscopeError
from mnemoscope.lab.cli import app as lab

app = typer.Typer(
    help="Show what a text-to-image diffusion model has memorized, and why.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line and exit with its status."""
    logging.getLogger("mnemoscope").addHandler(logging.NullHandler())
    try:
        app()
    except MnemoscopeError as error:
        typer.echo(f"mnemoscope: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("mnemoscope: interrupted; the same command continues.", err=True)
        sys.exit(130)


def _options_of_study() -> Callable[..., None]:
    """Make the command `study` of the fields of `Study`: one definition, default and help."""
    from mnemoscope.study import Study

    def study(**given: Any) -> None:
        """Sample a model on prompts and measure what it memorized, and why."""
        _study(Study.of_options(given))

    parameters: list[inspect.Parameter] = []
    for f in fields(Study):
        kind: Any = next((k for k in (bool, int) if f.type in (k, k | None)), str)
        default = ",".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
        if f.name == "model":
            mark: Any = typer.Argument(help=f.metadata["help"])
        else:
            flag = f"--{f.name}/--no-{f.name}" if kind is bool else f"--{f.name}"
            mark = typer.Option(flag, help=f.metadata["help"])
        parameters.append(
            inspect.Parameter(
                f.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[kind | None if f.default is None else kind, mark],
            )
        )
    study.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    study.__annotations__ = {p.name: p.annotation for p in parameters}
    return study


def _study(study: Any) -> None:
    from mnemoscope.study import run

    finished = run(study, notify=lambda line: typer.echo(line, err=True), progress=True)
    samples = finished.manifest.samples
    checks = finished.table("checks").to_pylist()
    for row in checks:
        if row["holds"] is not None:
            mark = "holds" if row["holds"] else "does not hold"
            typer.echo(f"{mark:>14}  {row['claim']}  [{row['measured']}]")
    if open_ := sum(row["holds"] is None for row in checks):
        typer.echo(f"{open_} of {len(checks)} claims cannot be told here; table checks says why")
    typer.echo(f"{sum(samples.values())} samples in {finished.path}")
    bad = {status: count for status, count in samples.items() if status != "ok"}
    if bad:
        told = ", ".join(f"{count} {status}" for status, count in bad.items())
        typer.echo(f"mnemoscope: excluded from every number: {told}", err=True)
        raise typer.Exit(3)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the report.")] = None,
    single_file: Annotated[
        bool, typer.Option("--single-file", help="Write one HTML file that holds everything.")
    ] = False,
    redact_images: Annotated[
        bool, typer.Option("--redact-images", help="Show digests in place of pictures.")
    ] = False,
    compare: Annotated[
        Path | None,
        typer.Option(help="Second run folder: write the page that holds the two side by side."),
    ] = None,
) -> None:
    """Write the page of a run, or of two runs held against each other."""
    from mnemoscope.report import compare as write_both
    from mnemoscope.report import report as write
    from mnemoscope.runs import open_run

    first = open_run(run)
    if compare is not None:
        typer.echo(write_both(first, open_run(compare), out, redact_images=redact_images))
    else:
        typer.echo(write(first, out, single_file=single_file, redact_images=redact_images))


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="Model, as for study.")] = "embedded",
    scheduler: Annotated[str, typer.Option(help="Sampler.")] = "ddim",
    steps: Annotated[int, typer.Option(help="Sampler updates.")] = 50,
    lora: Annotated[Path | None, typer.Option(help="LoRA to merge, a .safetensors file.")] = None,
    vae: Annotated[Path | None, typer.Option(help="VAE to use instead.")] = None,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Precision of the denoiser.")] = "auto",
) -> None:
    """Print a model's levels, its parity with its host pipeline, and its price a sample."""
    from mnemoscope.check import check as examine
    from mnemoscope.models import load_model

    found = examine(
        load_model(model, device=device, dtype=dtype, lora=lora, vae=vae), scheduler, steps
    )
    typer.echo(str(found))
    if not found.ok:
        raise typer.Exit(3)


@app.command("list")
def list_() -> None:
    """List models, schedulers, similarities and analyses by name."""
    from mnemoscope.mechanism import all_analyses
    from mnemoscope.models import SCHEDULERS
    from mnemoscope.models.oracle import ORACLES
    from mnemoscope.similarity import names

    models = ["embedded", "embedded:base", *(f"oracle:{name}" for name in ORACLES)]
    for what, known in (
        ("models", models),
        ("schedulers", SCHEDULERS),
        ("similarities", names()),
        ("analyses", [analysis.name for analysis in all_analyses()]),
    ):
        typer.echo(f"{what}: {', '.join(known)}")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


app.add_typer(lab, name="lab")
app.command("study")(_options_of_study())
