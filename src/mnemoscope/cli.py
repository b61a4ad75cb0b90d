"""The command line parses, calls the functions a notebook would call, and prints what they return.

What is for a person is a table on a terminal; in a pipe it is rows with tabs. Prices, progress and
hints go to standard error.

Exit status::

    0    done                          2    wrong input; the message says what to do
    3    done, but some samples are not finite or failed, or a run is not whole
    4    an audit is done, and more than --fail-above gives a training image back
    129, 130, 143    interrupted by SIGHUP, SIGINT, SIGTERM
"""

import inspect
import logging
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mnemoscope import __version__
from mnemoscope.errors import InputError, MnemoscopeError, did_you_mean
from mnemoscope.lab.cli import app as lab
from mnemoscope.options import help_of

WORST = 5
"""Prompts that a study ends with."""

ARGUMENTS = ("model", "dataset")
"""Fields that are given without their name."""

SHOWN = 20
"""Prompts that a detection shows on a terminal; a file or a pipe takes all."""


class Interrupted(Exception):
    """A command was interrupted; says what becomes of it.

    Args:
        text: What becomes of it.
        number: The signal.
    """

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


class Stopped(KeyboardInterrupt):
    """A signal other than that of the keyboard.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Commands(TyperGroup):
    """Commands whose interruption is told by us: Typer would end without a word."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise _interrupted(stop, "interrupted.") from stop


app = typer.Typer(
    cls=Commands,
    help="Show what a text-to-image diffusion model has memorized, and why.",
    epilog="Start with: mnemoscope study embedded --subset 12 --seeds 4 --out runs/first",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line and exit with its status."""
    logging.getLogger("mnemoscope").addHandler(logging.NullHandler())
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # Whoever started us with a signal ignored, as nohup does, wants it ignored.
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _stop)
    try:
        app()
    except MnemoscopeError as error:
        typer.echo(f"mnemoscope: {error}", err=True)
        sys.exit(2)
    except Interrupted as stop:
        # After SIGHUP there may be nobody to tell.
        with suppress(OSError):
            typer.echo(f"mnemoscope: {stop}", err=True)
        sys.exit(128 + stop.number)


def _stop(number: int, _: Any) -> None:
    # The next one finds us putting things in order.
    signal.signal(number, signal.SIG_IGN)
    raise Stopped(number)


def _interrupted(stop: KeyboardInterrupt, text: str) -> Interrupted:
    return Interrupted(text, stop.number if isinstance(stop, Stopped) else signal.SIGINT)


def derived(
    kind: type[Any],
    work: Callable[..., None],
    interrupted: str,
    flags: dict[str, str] | None = None,
) -> Callable[..., None]:
    """Make a command of the fields of a dataclass: one definition, default and help of each option.

    Args:
        kind: A frozen dataclass of options, with `of_options`.
        work: What the command does with one of it; its docstring is the help of the command.
        interrupted: What becomes of the command where it is interrupted.
        flags: Flags that say what is shown, with their help; handed to `work` by name.
    """
    more = flags or {}

    def command(**given: Any) -> None:
        shown = {name: given.pop(name) for name in more}
        asked = kind.of_options(given)
        try:
            work(asked, **shown)
        except KeyboardInterrupt as stop:
            raise _interrupted(stop, interrupted) from stop

    parameters: list[inspect.Parameter] = []
    for f in fields(kind):
        about_it, default, taken = help_of(f), f.default, _taken(f.type)
        if f.name in ARGUMENTS:
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
        parameters.append(_parameter(f.name, taken | None if optional else taken, mark, default))
    for name, about_it in more.items():
        parameters.append(_parameter(name, bool, typer.Option(f"--{name}", help=about_it), False))
    command.__doc__ = work.__doc__
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _parameter(name: str, kind: Any, mark: Any, default: Any) -> inspect.Parameter:
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=default, annotation=Annotated[kind, mark])


def _taken(kind: Any) -> Any:
    """Return the type an option is read as; text where it is neither number nor flag."""
    return next((k for k in (bool, int, float) if kind in (k, k | None)), str)


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table for whoever reads it."""
    from mnemoscope.reporting.terminal import laid_out

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    typer.echo(laid_out(head, rows, width=width), nl=False)


def _next(*command: object) -> None:
    """Say what to run next."""
    _say(f"next: {shlex.join(['mnemoscope', *map(str, command)])}")


def _study(study: Any, *, claims: bool) -> None:
    """Sample a model on prompts; measure what it memorized, and why."""
    from mnemoscope.flows.study import run
    from mnemoscope.reporting.verdict import verdict_of

    finished = run(study, notify=_say, progress=True)
    found = verdict_of(finished)
    typer.echo(found.title)
    for sentence in found.sentences:
        typer.echo(sentence)
    _worst(finished, found)
    if claims:
        _claims(finished)
    samples = finished.manifest.samples
    _say(f"{sum(samples.values())} samples in {finished.path}")
    _next("report", finished.path)
    _marked(samples)


def _marked(samples: Mapping[str, int]) -> None:
    """Say which samples are in no number, and exit so where there are any."""
    bad = {status: count for status, count in samples.items() if status != "ok"}
    if bad:
        told = ", ".join(f"{count} {status}" for status, count in bad.items())
        _say(f"mnemoscope: excluded from every number: {told}")
        raise typer.Exit(3)


def _worst(run: Any, found: Any) -> None:
    """Print the prompts that reproduce most, at the guidance scale of the verdict."""
    texts = {row["prompt_id"]: row["prompt"] for row in run.table("prompts").to_pylist()}
    rows = [
        row
        for row in run.table("severity").to_pylist()
        if row["measure"] == found.measure and row["guidance"] == found.guidance
    ]
    # Shares first; among equal ones, how close the samples are.
    rows.sort(key=lambda row: (row["share"] or 0.0, row["mean"] or 0.0), reverse=True)
    if rows:
        typer.echo(f"\nMost severe at guidance {found.guidance:g}, by {found.measure}:\n")
        _table(
            ("reproduced", "grade", "similarity", "prompt"),
            [
                (
                    "" if row["share"] is None else f"{row['share'] * row['n']:.0f} of {row['n']}",
                    row["grade"] or "not judged",
                    row["mean"],
                    texts[row["prompt_id"]],
                )
                for row in rows[:WORST]
            ],
        )


def _claims(run: Any) -> None:
    """Print the claims that can be told: evidence beside its null first, then sanity checks."""
    checks = run.table("checks").to_pylist()
    judged = [row for row in checks if row["holds"] is not None]
    # What has no interval, as from a single prompt, is no evidence of anything.
    evidence = [row for row in judged if row["kind"] == "evidence" and row["low"] is not None]
    sanity = [row for row in judged if row["kind"] != "evidence"]
    head = ("holds", "analysis", "claim", "measured")
    for rows in (evidence, sanity):
        if rows:
            typer.echo()
            _table(
                head, [("yes" if row["holds"] else "no", *map(row.get, head[1:])) for row in rows]
            )
    if left := len(checks) - len(evidence) - len(sanity):
        _say(f"{left} of {len(checks)} claims cannot be told here; table checks says why")


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
    """Write the page of a run, of two runs held against each other, or of `bench mitigations`."""
    from mnemoscope.reporting import compare as write_both
    from mnemoscope.reporting import mitigations
    from mnemoscope.reporting import report as write
    from mnemoscope.runs.folder import open_run

    if mitigations.is_comparison(run):
        typer.echo(mitigations.write(run, out))
        return
    first = open_run(run)
    if first.manifest.flow == "audit":
        if single_file or compare is not None or leaderboard is not None:
            raise InputError("the page of an audit is one file of one audit; give --out alone")
        from mnemoscope.reporting.audit import found_of
        from mnemoscope.reporting.audit import write as write_audit

        typer.echo(write_audit(found_of(first), out, redact_images=redact_images))
    elif compare is not None:
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
    _next("study", *_source(asked), *([] if _embedded(asked) else ["--prompts", "FILE"]))


def _embedded(asked: Any) -> bool:
    return asked.model.startswith("embedded")


def _source(asked: Any) -> list[str]:
    """Return the arguments that name the model of a command."""
    from mnemoscope.flows.options import given
    from mnemoscope.models.source import Source

    told = [asked.model]
    for name, value in given(asked).items():
        if name != "model" and name in Source.__dataclass_fields__:
            told.append(f"--{name.replace('_', '-')}")
            told += [] if value is True else [str(value)]
    return told


def _detect(asked: Any) -> None:
    """Score prompts by how memorized they are; larger is more."""
    from dataclasses import asdict

    from mnemoscope.flows.detect import FORMATS, HANDED, detect

    out = None if asked.out is None else Path(asked.out)
    held = out
    if out is not None and out.suffix in FORMATS:
        # What is interrupted goes on from here; once the file is there, the folder is not needed.
        held = out.with_name(f".{out.name}.run")
    options = asdict(asked) | {"intervention": asked.intervention}
    scores = detect(
        asked.model,
        asked.prompt or asked.prompts,
        detectors=asked.detectors,
        out=held,
        ordinary=asked.ordinary,
        false_positives=asked.false_positives,
        notify=_say,
        progress=True,
        **{name: value for name, value in options.items() if name not in HANDED},
    )
    if scores.truncated:
        _say(
            f"{len(scores.truncated)} prompts exceed the model's window; only their beginning was "
            "seen"
        )
    if out is not None and held is not None and held != out:
        scores.write(out)
        shutil.rmtree(held, ignore_errors=True)
    if out is not None:
        typer.echo(f"{scores.table.num_rows} scores in {out}")
    else:
        _scores(scores)
    _hints(asked, scores)
    _marked(scores.marked)


def _scores(scores: Any) -> None:
    """Print scores, the highest of each detector first."""
    rows = scores.told().to_pylist()
    rows.sort(key=lambda row: -(row["score"] or 0.0) if row["score"] is not None else float("inf"))
    by_detector = {d.name: [r for r in rows if r["detector"] == d.name] for d in scores.detectors}
    if sys.stdout.isatty():
        for name, ours in by_detector.items():
            _for_a_person(name, ours, scores.ordinary.get(name))
        return
    head = ("detector", "score", "above", "flagged", "prompt_id", "prompt", "reason")
    listed = [row for ours in by_detector.values() for row in ours]
    _table(head, [[row.get(name) for name in head] for row in listed])


def _for_a_person(detector: str, rows: Sequence[Any], ordinary: Any) -> None:
    """Print the highest scores of a detector, and what they mean."""
    from mnemoscope.reporting.text import percent

    typer.echo(f"{detector}: larger is more memorized")
    shown = rows[:SHOWN]
    columns: dict[str, list[Any]] = {
        "score": ["none" if row["score"] is None else row["score"] for row in shown]
    }
    if ordinary is not None:
        columns["above ordinary"] = [
            "" if row["above"] is None else percent(row["above"]) for row in shown
        ]
        columns["memorized?"] = [row["flagged"] for row in shown]
    columns["id"] = [row["prompt_id"] for row in shown]
    columns["prompt"] = [
        row["prompt"] if row["reason"] is None else f"{row['prompt']} (no score: {row['reason']})"
        for row in shown
    ]
    _table(list(columns), list(zip(*columns.values(), strict=True)))
    if len(rows) > len(shown):
        typer.echo(f"{len(rows) - len(shown)} more; a file (--out scores.csv) or a pipe has all")
    if ordinary is not None:
        typer.echo(ordinary.told)


def _hints(asked: Any, scores: Any) -> None:
    """Say what to run next: what explains the highest score, and what tells how high it is."""
    name = scores.detectors[0].name
    rows = [row for row in scores.told().to_pylist() if row["detector"] == name]
    rows = [row for row in rows if row["score"] is not None]
    if rows:
        first = max(rows, key=lambda row: row["score"])
        listed = ["--prompts", asked.prompts] if asked.prompts else []
        which = [*listed, "--ids", first["prompt_id"]]
        _next(
            "explain", *_source(asked), *(["--prompt", first["prompt"]] if asked.prompt else which)
        )
    if not scores.ordinary:
        _say("how high is high? Score captions that are certainly not memorized, as below; then")
        _say("the same command with --ordinary runs/ordinary says where each score lies")
        _next("detect", *_source(asked), "--prompts", "ORDINARY.txt", "--out", "runs/ordinary")


def _explain(asked: Any) -> None:
    """Show which words and which places of a prompt's samples are memorized."""
    from mnemoscope.flows.explain import explain_all
    from mnemoscope.reporting.explanation import read, write

    run, names, control = explain_all(asked, notify=lambda line: typer.echo(line, err=True))
    for name in names:
        found = read(run, name)
        if found.window is not None:
            _say(
                f"{name} exceeds the model's window of {found.window} tokens; what is beyond it "
                "has no effect"
            )
        beside = None if name == control else read(run, control)
        typer.echo(write(found, run.path / f"prompt-{name}", beside))


def _audit(asked: Any, *, json: bool) -> None:
    """Say which images of a data set a model gives back, and how many may have been missed."""
    from json import dumps

    from mnemoscope.flows.audit import audit
    from mnemoscope.reporting.audit import found_of
    from mnemoscope.reporting.text import percent

    found = found_of(audit(asked, notify=_say, progress=True))
    if json:
        typer.echo(dumps(found.told(), indent=1))
    else:
        typer.echo(found.title)
        for sentence in found.sentences:
            typer.echo(sentence)
        _returned(found)
    _next("report", asked.out)
    limit = asked.limit()
    if limit is not None:
        ends = f"{percent(found.share['low'])} to {percent(found.share['high'])}"
        fails = found.exceeds(limit)
        _say(f"--fail-above {asked.fail_above}: {'exceeded' if fails else 'held'}, {ends}")
        if fails:
            raise typer.Exit(4)
    _marked(found.marked)


def _returned(found: Any) -> None:
    """Print the captions that give an image back, the surest first."""
    from mnemoscope.reporting.text import percent

    rows = found.given_back
    if rows:
        typer.echo()
        _table(
            ("samples", "items", "caption"),
            [
                (
                    percent(max(row["share"] or 0.0, row["share_elsewhere"] or 0.0)),
                    ", ".join(row["items"][:3]) + (" ..." if len(row["items"]) > 3 else ""),
                    row["prompt"],
                )
                for row in rows[:SHOWN]
            ],
        )
    if len(rows) > SHOWN:
        _say(f"{len(rows) - SHOWN} more in table audited")


def _lab_laws(asked: Any) -> None:
    """Train small denoisers from scratch: when memorizing begins, and from how many pictures on."""
    from mnemoscope.flows.laws import find_laws

    typer.echo(find_laws(asked, notify=_say))


def _calibrate(asked: Any) -> None:
    """Set the score above which a prompt of a model is suspicious, on ordinary prompts."""
    from mnemoscope.flows.calibrate import calibrate

    made = calibrate(asked, notify=_say, progress=True)
    for level in made.thresholds:
        samples = "sample" if level.seeds == 1 else "samples"
        typer.echo(
            f"{level.seeds} {samples}: suspicious above {level.value:.5g} "
            f"[{level.low:.5g}, {level.high:.5g}], {level.n} ordinary prompts"
        )
    typer.echo(f"guard(pipe, calibration={str(asked.out)!r})")
    _next("detect", *_source(asked), "--detectors", made.detector, "--ordinary", asked.out)


def _forget(asked: Any) -> None:
    """Take out of a pipeline what memorized prompts use, and save the rest as another."""
    from mnemoscope.flows.forget import forget

    left = forget(asked, notify=_say)
    typer.echo(f"taken out: {left.told}")
    _next("study", left.path, "--prompts", asked.prompts or "FILE")


bench = typer.Typer(no_args_is_help=True, help="Compare methods on a model.")
adapters = typer.Typer(no_args_is_help=True, help="Change an adapter.")


def _filter(asked: Any) -> None:
    """Take out of a LoRA what lies least along its base: no data, no training."""
    from mnemoscope.flows.lora import filter_lora

    typer.echo(filter_lora(asked))
    typer.echo(str(asked.out))
    _next("audit", asked.model, "PICTURES", "--lora", asked.out)


def _bench_detectors(asked: Any) -> None:
    """Rank detectors against measured severity."""
    from dataclasses import asdict

    from mnemoscope.flows.bench import leaderboard

    options = asdict(asked) | {"intervention": asked.intervention}
    model, prompts, detectors = (options.pop(name) for name in ("model", "prompts", "detectors"))
    board = leaderboard(model, prompts, detectors=detectors, notify=_say, progress=True, **options)
    _ranked(board)
    _say(f"by population, thresholds and agreement: {board.path / 'leaderboard.md'}")
    if asked.study is None:
        _next("report", board.run.path)
    _next("detect", *_source(asked), "--ordinary", board.path)


def _ranked(board: Any) -> None:
    """Print the detectors, the best AUC first."""
    from mnemoscope.ranking.markdown import shown

    ranking, kinds = board.ranking, {d.name: d.kind for d in board.scores.detectors}
    found = {name: (ranking.get(name), ranking.get(name, "tpr")) for name in kinds}
    names = [name for name in ranking.names if name in kinds]
    if sys.stdout.isatty():
        _table(
            ("detector", "kind", "AUC", "TPR at 1 % FPR", "network calls"),
            [(n, kinds[n], *map(shown, found[n]), round(ranking.price[n])) for n in names],
        )
        return
    head = ("detector", "kind", "auc", "low", "high", "tpr", "network_calls")
    rows = [
        (name, kinds[name], auc.value, auc.low, auc.high, tpr.value, ranking.price[name])
        for name in names
        for auc, tpr in [found[name]]
    ]
    _table(head, rows)


def _bench_mitigations(asked: Any) -> None:
    """Compare mitigations on a model that memorized: what each buys, and at what price."""
    from dataclasses import asdict

    from mnemoscope.flows.comparison import compare_mitigations, summary

    options = asdict(asked)
    model, prompts = options.pop("model"), options.pop("prompts")
    found = compare_mitigations(model, prompts, notify=_say, progress=True, **options)
    typer.echo(summary(found))
    _next("report", found.path)


def _bench_adversary(asked: Any) -> None:
    """Search for changes of prompt or noise that bring pictures back, past the detector."""
    from dataclasses import asdict

    from mnemoscope.flows.adversary import attack, told

    options = asdict(asked)
    model, prompts = options.pop("model"), options.pop("prompts")
    found = attack(model, prompts, notify=_say, progress=True, **options)
    typer.echo(told(found))
    _say(f"in {found.path}")


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
    if what is None and sys.stdout.isatty():
        _table(("what", "names"), [(kind, ", ".join(found)) for kind, found in known.items()])
        _next("list", "detectors")
    elif what is None:
        _table(("what", "name"), [(kind, name) for kind, found in known.items() for name in found])
    elif what not in known:
        raise InputError(did_you_mean(what, known, "list"))
    elif what != "detectors":
        typer.echo("\n".join(known[what]))
    else:
        _list_detectors()


def _list_detectors() -> None:
    from mnemoscope.detectors import all_detectors
    from mnemoscope.evidence import price

    rows: list[tuple[Any, ...]] = []
    for detector in all_detectors():
        needs = detector.needs
        calls = price(needs.pieces, calls=50, seeds=1).calls
        pieces = ", ".join(dict.fromkeys(type(piece).__name__ for piece in needs.pieces))
        rows.append(
            (detector.name, detector.kind, calls, needs.seeds, pieces, detector.source,
             detector.formula)
        )  # fmt: skip
    head = ("detector", "kind", "calls", "seeds", "takes", "source", "computes")
    if sys.stdout.isatty():
        _table((*head[:3], head[-1]), [(*row[:3], row[-1]) for row in rows])
        _say(
            "calls: network calls a seed at 50 steps. In a pipe there are also the fewest seeds, "
            "the evidence each takes, and its source"
        )
    else:
        _table(head, rows)


def verify(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Rebuild a damaged manifest from its copy first.")
    ] = False,
) -> None:
    """Compare every file of a run with its digest, and say what is whole."""
    from mnemoscope.runs.folder import repair as rebuild
    from mnemoscope.runs.verify import runs_in
    from mnemoscope.runs.verify import verify as examine

    folders = runs_in(run)
    if repair:
        for folder in folders:
            rebuild(folder)
    found = [examine(folder) for folder in folders]
    for one in found:
        typer.echo(str(one))
    if not all(one.ok for one in found):
        raise typer.Exit(3)


def version() -> None:
    """Print the version."""
    typer.echo(__version__)


GOES_ON = "interrupted; the same command continues."

EXAMPLES = {
    "study": "study embedded --subset 12 --seeds 4 --out runs/first",
    "report": "report runs/first",
    "detect": "detect embedded --prompt 'noto swan and twemoji bomb'",
    "explain": "explain embedded --prompt 'noto swan and twemoji bomb'",
    "check": "check CompVis/stable-diffusion-v1-4",
    "audit": "audit my-fine-tune pictures/ --ordinary prompts.txt --out runs/audit",
    "calibrate": "calibrate embedded --out calibration.json",
    "forget": "forget embedded --prompt 'noto swan and twemoji bomb' --out less",
    "bench detectors": "bench detectors embedded --out runs/detectors",
    "bench mitigations": "bench mitigations embedded --subset 24 --seeds 2 --no-ladder",
    "bench adversary": "bench adversary embedded --study runs/mitigations/study --seeds 2",
    "lora filter": "lora filter embedded:base --lora lora.safetensors --strength 0.5",
    "lab laws": "lab laws --out runs/laws",
    "list": "list detectors",
    "verify": "verify runs/first",
    "version": "version",
}
"""What each command is shown with in its help."""


def _add_all() -> None:
    """Add the commands, the main one first."""
    from mnemoscope.flows.adversary import Attacking
    from mnemoscope.flows.audit import Audit
    from mnemoscope.flows.bench import Benchmark
    from mnemoscope.flows.calibrate import Calibrating
    from mnemoscope.flows.check import Checking
    from mnemoscope.flows.comparison import Comparing
    from mnemoscope.flows.detect import Detection
    from mnemoscope.flows.explain import Explaining
    from mnemoscope.flows.forget import Forgetting
    from mnemoscope.flows.laws import Lawful
    from mnemoscope.flows.lora import Filtering
    from mnemoscope.flows.study import Study

    claims = {"claims": "Also print which claims of the founding paper hold."}
    again = "interrupted; the same command starts again."
    commands: dict[str, Callable[..., None]] = {
        "study": derived(Study, _study, GOES_ON, claims),
        "report": report,
        "detect": derived(
            Detection, _detect, "interrupted; with --out the same command continues."
        ),
        "explain": derived(Explaining, _explain, again),
        "check": derived(Checking, _check, again),
        "audit": derived(
            Audit, _audit, GOES_ON, {"json": "Print what was found as JSON, for a machine."}
        ),
        "calibrate": derived(Calibrating, _calibrate, again),
        "forget": derived(Forgetting, _forget, again),
        "bench detectors": derived(Benchmark, _bench_detectors, GOES_ON),
        "bench mitigations": derived(Comparing, _bench_mitigations, GOES_ON),
        "bench adversary": derived(Attacking, _bench_adversary, GOES_ON),
        "lora filter": derived(Filtering, _filter, again),
        "lab laws": derived(Lawful, _lab_laws, GOES_ON),
        "list": list_,
        "verify": verify,
        "version": version,
    }
    groups = {"bench": bench, "lora": adapters, "lab": lab}
    for name, command in commands.items():
        first = name.split()[0]
        home = groups.get(first, app)
        home.command(name.split()[-1], epilog=f"Example: mnemoscope {EXAMPLES[name]}")(command)
        if first in groups and len(home.registered_commands) == 1:
            app.add_typer(home, name=first)
    app.add_typer(lab, name="lab")


_add_all()
