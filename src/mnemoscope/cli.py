"""The command line parses, calls the functions a notebook would call, and prints what they return.

Exit status::

    0    done                          2    wrong input; the message says what to do
    3    done, but some samples are not finite or failed
    130  interrupted; the same command continues
"""

import inspect
import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from mnemoscope import __version__
from mnemoscope.errors import InputError, MnemoscopeError, did_you_mean
from mnemoscope.lab.cli import app as lab
from mnemoscope.options import help_of

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


def derived(kind: type[Any], work: Callable[[Any], None]) -> Callable[..., None]:
    """Make a command of the fields of a dataclass: one definition, default and help of each option.

    Args:
        kind: A frozen dataclass of options, with `of_options`.
        work: What the command does with one of it; its docstring is the help of the command.
    """

    def command(**given: Any) -> None:
        work(kind.of_options(given))

    parameters: list[inspect.Parameter] = []
    for f in fields(kind):
        about_it, default, taken = help_of(f), f.default, _taken(f.type)
        if f.name == "model":
            mark: Any = typer.Argument(help=about_it)
        else:
            name = f.name.replace("_", "-")
            mark = typer.Option(
                f"--{name}/--no-{name}" if taken is bool else f"--{name}", help=about_it
            )
        if f.name == "prompt":
            taken, default = list[str] | None, None
        elif isinstance(default, tuple):
            default = ",".join(
                f"{part:g}" if isinstance(part, float) else str(part) for part in default
            )
        optional = default is None and taken in (bool, int, float, str)
        parameters.append(
            inspect.Parameter(
                f.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[taken | None if optional else taken, mark],
            )
        )
    command.__doc__ = work.__doc__
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _taken(kind: Any) -> Any:
    """Return the type an option is read as; text where it is neither number nor flag."""
    return next((k for k in (bool, int, float) if kind in (k, k | None)), str)


def _study(study: Any) -> None:
    """Sample a model on prompts; measure what it memorized, and why."""
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


def _check(asked: Any) -> None:
    """Print a model's family, levels, parity with its host pipeline, and price a sample."""
    from mnemoscope.flows.check import check as examine
    from mnemoscope.flows.options import loaded

    found = examine(loaded(asked), asked.scheduler, asked.steps)
    typer.echo(str(found))
    if not found.ok:
        raise typer.Exit(3)


def _detect(asked: Any) -> None:
    """Score prompts by how memorized they are; larger is more."""
    from dataclasses import asdict

    from mnemoscope.flows.detect import FORMATS, detect

    out = None if asked.out is None else Path(asked.out)
    held = out
    if out is not None and out.suffix in FORMATS:
        # What is interrupted goes on from here; once the file is there, the folder is not needed.
        held = out.with_name(f".{out.name}.run")
    options = asdict(asked) | {"intervention": asked.intervention}
    model, prompts, detectors = (options.pop(name) for name in ("model", "prompts", "detectors"))
    options.pop("out")
    scores = detect(
        model,
        prompts,
        detectors=detectors,
        out=held,
        notify=lambda line: typer.echo(line, err=True),
        progress=True,
        **options,
    )
    if scores.truncated:
        typer.echo(
            f"{len(scores.truncated)} prompts exceed the model's window; only their beginning was "
            "seen",
            err=True,
        )
    if out is not None and held is not None and held != out:
        scores.write(out)
        shutil.rmtree(held, ignore_errors=True)
    if out is not None:
        typer.echo(f"{scores.table.num_rows} scores in {out}")
        return
    for row in scores.table.to_pylist():
        told = f"{row['score']:.6g}" if row["reason"] is None else f"none: {row['reason']}"
        typer.echo(
            f"{row['prompt_id']}\t{row['detector']}\t{told}\t{row['network_calls']} calls"
            f"\t{row['seconds']:.3g} s"
        )


def _explain(asked: Any) -> None:
    """Show which tokens and which places of a prompt's samples are memorized."""
    from mnemoscope.flows.explain import explain
    from mnemoscope.flows.options import loaded
    from mnemoscope.reporting.explanation import write

    chosen = asked.chosen()
    model = loaded(asked)
    options = {
        name: getattr(asked, name)
        for name in (
            "seeds", "guidance", "steps", "scheduler", "seed", "noise", "eta", "intervention",
            "probes", "batch",
        )
    }  # fmt: skip
    for one in chosen:
        found = explain(model, one, **options)
        if found.window is not None:
            typer.echo(
                f"{one.prompt_id} exceeds the model's window of {found.window} tokens; what is "
                "beyond it has no effect",
                err=True,
            )
        typer.echo(write(found, Path(asked.out) / f"prompt-{one.prompt_id}"))


def _calibrate(asked: Any) -> None:
    """Set the score above which a prompt of a model is suspicious, on ordinary prompts."""
    from mnemoscope.flows.calibrate import calibrate

    made = calibrate(asked, notify=lambda line: typer.echo(line, err=True), progress=True)
    for level in made.thresholds:
        samples = "sample" if level.seeds == 1 else "samples"
        typer.echo(
            f"{level.seeds} {samples}: suspicious above {level.value:.5g} "
            f"[{level.low:.5g}, {level.high:.5g}], {level.n} ordinary prompts"
        )
    typer.echo(f"guard(pipe, calibration={str(asked.out)!r})")


bench = typer.Typer(no_args_is_help=True, help="Compare methods on a model.")


def _bench_detectors(asked: Any) -> None:
    """Rank detectors against measured severity."""
    from dataclasses import asdict

    from mnemoscope.flows.bench import leaderboard, summary

    options = asdict(asked) | {"intervention": asked.intervention}
    model, prompts, detectors = (options.pop(name) for name in ("model", "prompts", "detectors"))
    board = leaderboard(
        model,
        prompts,
        detectors=detectors,
        notify=lambda line: typer.echo(line, err=True),
        progress=True,
        **options,
    )
    typer.echo(summary(board))
    typer.echo(f"in {board.path}")


@app.command("list")
def list_(
    what: Annotated[
        str | None, typer.Argument(help="'detectors' says what each needs and costs.")
    ] = None,
) -> None:
    """List models, samplers, similarities, analyses, detectors and mitigations by name."""
    from mnemoscope.detectors import all_detectors
    from mnemoscope.mechanism import all_analyses
    from mnemoscope.mitigations import all_mitigations
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
        "mitigations": list(all_mitigations()),
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
    from mnemoscope.evidence import price

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


def _add_derived() -> None:
    from mnemoscope.flows.bench import Benchmark
    from mnemoscope.flows.calibrate import Calibrating
    from mnemoscope.flows.check import Checking
    from mnemoscope.flows.detect import Detection
    from mnemoscope.flows.explain import Explaining
    from mnemoscope.flows.study import Study

    for home, name, kind, work in (
        (app, "study", Study, _study),
        (app, "detect", Detection, _detect),
        (app, "explain", Explaining, _explain),
        (app, "check", Checking, _check),
        (app, "calibrate", Calibrating, _calibrate),
        (bench, "detectors", Benchmark, _bench_detectors),
    ):
        home.command(name)(derived(kind, work))


_add_derived()
app.add_typer(bench, name="bench")
app.add_typer(lab, name="lab")
