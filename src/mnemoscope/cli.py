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
from mnemoscope.errors import InputError, MnemoscopeError, did_you_mean
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
    from mnemoscope.flows.study import Study

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
    from mnemoscope.flows.study import run

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
    leaderboard: Annotated[
        Path | None,
        typer.Option(help="Folder of `bench detectors` on the same model, shown in the page."),
    ] = None,
) -> None:
    """Write the page of a run, or of two runs held against each other."""
    from mnemoscope.reporting import compare as write_both
    from mnemoscope.reporting import report as write
    from mnemoscope.runs.folder import open_run

    first = open_run(run)
    if compare is not None:
        typer.echo(write_both(first, open_run(compare), out, redact_images=redact_images))
    else:
        page = write(
            first,
            out,
            single_file=single_file,
            redact_images=redact_images,
            leaderboard=leaderboard,
        )
        typer.echo(page)


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
    from mnemoscope.flows.check import check as examine
    from mnemoscope.models import load_model

    found = examine(
        load_model(model, device=device, dtype=dtype, lora=lora, vae=vae), scheduler, steps
    )
    typer.echo(str(found))
    if not found.ok:
        raise typer.Exit(3)


@app.command()
def detect(
    model: Annotated[str, typer.Argument(help="Model, as for study.")] = "embedded",
    prompts: Annotated[
        Path | None, typer.Option(help="Prompt file; the embedded model brings its own.")
    ] = None,
    detectors: Annotated[
        str, typer.Option(help="Detectors, comma-separated; 'first-step' or 'all'.")
    ] = "first-step",
    seeds: Annotated[int, typer.Option(help="Samples a prompt.")] = 4,
    guidance: Annotated[float, typer.Option(help="Guidance scale of the path.")] = 7.5,
    steps: Annotated[int, typer.Option(help="Sampler updates of a whole path.")] = 50,
    scheduler: Annotated[str, typer.Option(help="Sampler.")] = "ddim",
    seed: Annotated[int, typer.Option(help="Seed that all noise derives from.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Write the scores as .parquet, .csv or .jsonl.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Rows a network call.")] = None,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Precision of the denoiser.")] = "auto",
) -> None:
    """Score prompts by how memorized they are; larger is more."""
    from mnemoscope.flows.detect import detect as score
    from mnemoscope.models import load_model
    from mnemoscope.data.prompts import embedded_prompts, load_prompts

    if prompts is None and not model.startswith("embedded"):
        raise InputError(f"model {model!r} brings no prompts of its own; give --prompts FILE")
    listed = embedded_prompts() if prompts is None else load_prompts(prompts)
    scores = score(
        load_model(model, device=device, dtype=dtype),
        listed,
        detectors=_names(detectors),
        seeds=seeds,
        guidance=guidance,
        steps=steps,
        scheduler=scheduler,
        seed=seed,
        batch=batch,
        notify=lambda line: typer.echo(line, err=True),
        progress=True,
    )
    if out is not None:
        scores.write(out)
        typer.echo(f"{scores.table.num_rows} scores in {out}")
        return
    for row in scores.table.to_pylist():
        told = f"{row['score']:.6g}" if row["reason"] is None else f"none: {row['reason']}"
        typer.echo(
            f"{row['prompt_id']}\t{row['detector']}\t{told}\t{row['network_calls']} calls"
            f"\t{row['seconds']:.3g} s"
        )


@app.command()
def explain(
    model: Annotated[str, typer.Argument(help="Model, as for study.")] = "embedded",
    prompt: Annotated[
        list[str] | None, typer.Option(help="Prompt; give it several times for several.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompt file; the embedded model brings its own.")
    ] = None,
    ids: Annotated[
        str | None, typer.Option(help="Which of the file's prompts, prompt_id, comma-separated.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/explained"),
    seeds: Annotated[int, typer.Option(help="Samples a prompt.")] = 4,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 7.5,
    steps: Annotated[int, typer.Option(help="Sampler updates.")] = 50,
    scheduler: Annotated[str, typer.Option(help="Sampler.")] = "ddim",
    seed: Annotated[int, typer.Option(help="Seed that all noise derives from.")] = 0,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Precision of the denoiser.")] = "auto",
) -> None:
    """Show which tokens and which places of a prompt's samples are memorized."""
    from mnemoscope.flows.explain import explain as show
    from mnemoscope.models import load_model

    chosen = _explained(model, prompt or [], prompts, ids)
    loaded = load_model(model, device=device, dtype=dtype)
    for one in chosen:
        found = show(
            loaded,
            one,
            seeds=seeds,
            guidance=guidance,
            steps=steps,
            scheduler=scheduler,
            seed=seed,
        )
        if found.window is not None:
            typer.echo(
                f"{one.prompt_id} exceeds the model's window of {found.window} tokens; what is "
                "beyond it has no effect",
                err=True,
            )
        typer.echo(found.write(out / f"prompt-{one.prompt_id}"))


def _explained(model: str, given: list[str], prompts: Path | None, ids: str | None) -> list[Any]:
    """Return the prompts to explain: those given, or those of a list that are named."""
    from mnemoscope.data.prompts import Prompt, embedded_prompts, load_prompts

    if given and (prompts is not None or ids is not None):
        raise InputError("--prompt was given with --prompts or --ids; give one or the other")
    if given:
        if any(not text.strip() for text in given):
            raise InputError("a blank --prompt was given; expected text")
        return [Prompt(f"{at:05d}", text) for at, text in enumerate(given)]
    if ids is None:
        raise InputError("no prompt was named; give --prompt TEXT, or --ids of a list's prompts")
    if prompts is None and not model.startswith("embedded"):
        raise InputError(f"model {model!r} brings no prompts of its own; give --prompts FILE")
    listed = embedded_prompts() if prompts is None else load_prompts(prompts)
    known = {one.prompt_id: one for one in listed}
    for name in _names(ids):
        if name not in known:
            raise InputError(did_you_mean(name, known, "prompt"))
    return [known[name] for name in _names(ids)]


bench = typer.Typer(no_args_is_help=True, help="Compare methods on a model.")


@bench.command("detectors")
def bench_detectors(
    model: Annotated[str, typer.Argument(help="Model, as for study.")] = "embedded",
    prompts: Annotated[
        Path | None,
        typer.Option(help="Prompt file with training images; the embedded model brings its own."),
    ] = None,
    study: Annotated[
        Path | None, typer.Option(help="Run folder of a study to take severity from.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/detectors"),
    detectors: Annotated[str, typer.Option(help="Detectors, as for detect.")] = "all",
    seeds: Annotated[int, typer.Option(help="Samples a prompt.")] = 4,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 7.5,
    steps: Annotated[int, typer.Option(help="Sampler updates.")] = 50,
    scheduler: Annotated[str, typer.Option(help="Sampler.")] = "ddim",
    seed: Annotated[int, typer.Option(help="Seed of noise and split.")] = 0,
    cut: Annotated[
        float, typer.Option(help="Share of samples that are copies if a prompt is memorized.")
    ] = 0.5,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Precision of the denoiser.")] = "auto",
) -> None:
    """Rank detectors against measured severity."""
    from mnemoscope.flows.bench import leaderboard, summary
    from mnemoscope.models import load_model
    from mnemoscope.runs.folder import open_run

    board = leaderboard(
        load_model(model, device=device, dtype=dtype),
        prompts,
        out=out,
        run=None if study is None else open_run(study),
        detectors=_names(detectors),
        seeds=seeds,
        guidance=guidance,
        steps=steps,
        scheduler=scheduler,
        seed=seed,
        cut=cut,
        notify=lambda line: typer.echo(line, err=True),
        progress=True,
    )
    typer.echo(summary(board))
    typer.echo(f"in {board.path}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@app.command("list")
def list_(
    what: Annotated[
        str | None, typer.Argument(help="'detectors' says what each needs and costs.")
    ] = None,
) -> None:
    """List models, schedulers, similarities, analyses and detectors by name."""
    from mnemoscope.detectors import all_detectors
    from mnemoscope.mechanism import all_analyses
    from mnemoscope.models import SCHEDULERS
    from mnemoscope.models.oracle import ORACLES
    from mnemoscope.similarity import names

    models = ["embedded", "embedded:base", *(f"oracle:{name}" for name in ORACLES)]
    known: dict[str, list[str]] = {
        "models": models,
        "schedulers": list(SCHEDULERS),
        "similarities": list(names()),
        "analyses": [analysis.name for analysis in all_analyses()],
        "detectors": [detector.name for detector in all_detectors()],
    }
    if what is None:
        for name, found in known.items():
            typer.echo(f"{name}: {', '.join(found)}")
        return
    if what not in known:
        raise InputError(did_you_mean(what, known, "list"))
    if what != "detectors":
        typer.echo("\n".join(known[what]))
        return
    _list_detectors()


def _list_detectors() -> None:
    from mnemoscope.detectors import all_detectors
    from mnemoscope.detectors.base import price

    for detector in all_detectors():
        needs = detector.needs
        calls = price(needs.pieces, calls=50, seeds=1).calls
        pieces = ", ".join(dict.fromkeys(type(piece).__name__ for piece in needs.pieces))
        seeds = f", at least {needs.seeds} seeds" if needs.seeds > 1 else ""
        typer.echo(f"{detector.name} ({detector.kind})")
        typer.echo(f"    {detector.formula}")
        typer.echo(f"    {calls} network calls a seed at 50 steps; needs {pieces}{seeds}")
        typer.echo(f"    {detector.source}")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


app.add_typer(bench, name="bench")
app.add_typer(lab, name="lab")
app.command("study")(_options_of_study())
