"""The command line: exit status, messages, options made of the fields of a flow."""

import os
import shlex
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mnemoscope.cli import ARGUMENTS, EXAMPLES, app, main
from mnemoscope.data.prompts import load_prompts, named
from mnemoscope.errors import InputError
from mnemoscope.flows.adversary import Attacking
from mnemoscope.flows.audit import Audit
from mnemoscope.flows.bench import Benchmark
from mnemoscope.flows.check import Checking
from mnemoscope.flows.comparison import Comparing
from mnemoscope.flows.detect import Detection, DetectionWorker
from mnemoscope.flows.explain import Explaining
from mnemoscope.flows.forget import Forgetting
from mnemoscope.flows.lora import Filtering
from mnemoscope.flows.study import Study
from mnemoscope.models import load_model
from mnemoscope.models.oracle import MixtureDenoiser
from mnemoscope.reporting.verdict import verdict_of
from mnemoscope.runs.folder import open_run
from tests.flows.test_bench import known_and_strangers
from tests.tiny import tiny_folder

ROOT = Path(__file__).parents[1]

ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    "COLUMNS": "200",
    "OMP_NUM_THREADS": "1",
}


def python(*arguments):
    """Run Python in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line as a process would, but in this one, which has everything imported."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        given = ["mnemoscope", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", given)
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        return subprocess.CompletedProcess(given, status, *capsys.readouterr())

    return run


def invoke(*arguments):
    """Run a command in this process and return what it prints."""
    found = CliRunner().invoke(app, [*map(str, arguments)])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.output


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "prompts.txt"
    path.write_text("target 0\nsomething else\n")
    return path


def study(prompts, out, *more):
    return (
        "study", "oracle:memorizer", "--prompts", prompts, "--out", out,
        "--seeds", 2, "--steps", 3, *more,
    )  # fmt: skip


def test_study_leaves_a_run_and_prints_its_price_first(prompts, tmp_path):
    done = python("-m", "mnemoscope", *study(prompts, tmp_path / "run", "--guidance", "1, 7.5"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("2 prompts x 2 seeds x 2 guidance scales, ")
    assert "8 samples in" in done.stderr
    assert open_run(tmp_path / "run").manifest.status == "complete"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("study", "oracle:memoriser"), ["--prompts"]),
        (("check", "oracle:memoriser"), ["Did you mean 'oracle:memorizer'"]),
        (("check", "oracle:memorizer", "--scheduler", "dim"), ["Did you mean 'ddim'"]),
        (("check", "oracle:memorizer", "--steps", "0"), ["steps 0"]),
        (("study", "--guidance", "strong"), ["guidance 'strong'", "1,7.5"]),
        (("study", "--seeds", "many"), ["--seeds", "integer"]),
        (("study", "--sedes", "3"), ["--sedes", "--seeds"]),
        (("studdy",), ["studdy", "study"]),
        (("study", "--prompts", "absent.txt"), ["absent.txt"]),
        (("study", "--intervention", "guidance_intervall"), ["Did you mean 'guidance_interval'"]),
        (("detect", "embedded", "--out", "scores.xlsx"), [".parquet, .csv, .jsonl"]),
        (("report", "absent"), ["no run folder"]),
    ],
)
def test_wrong_input_is_told_and_exits_with_2(command, arguments, words):
    done = command(*arguments)
    assert done.returncode == 2, done.stderr
    assert not done.stdout
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_wrong_input_ends_a_process_with_2():
    done = python("-m", "mnemoscope", "report", "absent")
    assert done.returncode == 2
    assert not done.stdout
    assert done.stderr.startswith("mnemoscope: ")
    assert "Traceback" not in done.stderr


def test_other_study_is_refused(command, prompts, tmp_path):
    assert command(*study(prompts, tmp_path)).returncode == 0
    done = command(*study(prompts, tmp_path, "--seed", 1))
    assert done.returncode == 2
    assert "seed: 0 there, 1 here" in done.stderr


SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")

INTERRUPTED = """
import os, signal, sys, time
from mnemoscope import cli
from mnemoscope.models import oracle

whole = oracle.MixtureDenoiser.__call__
def slow(self, x, timestep, condition):
    if int(timestep) < 600:
        print("sampling", file=sys.stderr, flush=True)
        time.sleep(0.5)
    return whole(self, x, timestep, condition)
oracle.MixtureDenoiser.__call__ = slow

# Whoever runs the tests in the background has them ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
folder, prompts, *names = sys.argv[1:]
for name in names:
    # A fork has all that is imported: one start of Python suffices for every signal.
    if not (child := os.fork()):
        said = os.open(f"{folder}/{name}.txt", os.O_CREAT | os.O_WRONLY)
        os.dup2(said, 1), os.dup2(said, 2)
        sys.argv = ["mnemoscope", "study", "oracle:memorizer", "--prompts", prompts, "--seeds", "2",
                    "--steps", "3", "--out", f"{folder}/{name}"]
        try:
            cli.main()
        except SystemExit as end:
            os._exit(end.code or 0)
    while not os.path.exists(said := f"{folder}/{name}.txt") or "sampling" not in open(said).read():
        time.sleep(0.01)
    os.kill(child, getattr(signal, name))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has neither fork nor SIGHUP")
def test_a_signal_interrupts_and_the_same_command_continues(prompts, tmp_path):
    done = python("-c", INTERRUPTED, tmp_path, prompts, *SIGNALS)
    assert done.stdout.split() == ["130", "143", "129"], done.stderr
    for name in SIGNALS:
        said = (tmp_path / f"{name}.txt").read_text()
        assert "mnemoscope: interrupted; the same command continues." in said
        assert "Traceback" not in said
        assert open_run(tmp_path / name).manifest.status == "interrupted"


def test_bad_samples_have_their_status(command, prompts, tmp_path, monkeypatch):
    whole = MixtureDenoiser.__call__

    def broken(self, x, timestep, condition):
        if int(timestep) < 600 and len(x) < 30:
            raise RuntimeError("broken")
        return whole(self, x, timestep, condition)

    monkeypatch.setattr(MixtureDenoiser, "__call__", broken)
    done = command(*study(prompts, tmp_path / "run"))
    assert done.returncode == 3
    assert "8 error" in done.stderr
    held = open_run(tmp_path / "run").manifest
    assert held.status == "complete"
    assert held.samples == {"error": 8}


COMMANDS = {
    "study": Study,
    "detect": Detection,
    "explain": Explaining,
    "audit": Audit,
    "check": Checking,
    "forget": Forgetting,
    "bench detectors": Benchmark,
    "bench mitigations": Comparing,
    "bench adversary": Attacking,
    "lora filter": Filtering,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_field_is_an_option_with_its_help(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    flat = " ".join(invoke(*name.split(), "--help").replace("│", " ").split())
    for f in fields(COMMANDS[name]):
        assert f.metadata["help"].split(",")[0].split(";")[0] in flat, f.name
        assert f.name in ARGUMENTS or f"--{f.name.replace('_', '-')}" in flat, f.name


def test_help_names_the_main_command_first_and_shows_an_example_for_each():
    kinds = [*typer.main.get_command(app).commands]
    assert kinds[0] == "study"
    assert set(EXAMPLES) == {name for name in kinds if name not in ("bench", "lora", "lab")} | {
        "bench detectors",
        "bench mitigations",
        "bench adversary",
        "lora filter",
        "lab laws",
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_can_be_given(name):
    home = typer.main.get_command(app)
    given = shlex.split(EXAMPLES[name])
    assert " ".join(given[: len(name.split())]) == name
    for word in name.split():
        home, given = home.commands[word], given[1:]
    # Parsing refuses what the command does not take.
    context = home.make_context(name, given)
    if name in COMMANDS:
        kind = COMMANDS[name]
        kind.of_options({f.name: context.params[f.name] for f in fields(kind)})
    assert EXAMPLES[name] in home.epilog


def test_list_and_version_say_what_there_is(command):
    text = command("list").stdout
    for word in ("oracle:memorizer", "ddim", "tiled_l2", "decomposition", "guidance_interval"):
        assert word in text
    assert command("version").stdout.strip() == "0.1.0"


def test_check_of_an_oracle(command):
    done = command("check", "oracle:memorizer", "--steps", "5")
    assert done.returncode == 0, done.stderr
    assert "5 calls" in done.stdout


def test_importing_the_package_imports_no_torch():
    code = "import sys, mnemoscope; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert python("-c", code).returncode == 0


def test_public_names_stand_for_themselves():
    code = (
        "import mnemoscope.reporting, mnemoscope\n"
        "for name in mnemoscope.__all__:\n"
        "    assert callable(getattr(mnemoscope, name)), name\n"
        "try:\n"
        "    mnemoscope.nothing\n"
        "except AttributeError:\n"
        "    print('fine')\n"
    )
    done = python("-c", code)
    assert done.stdout == "fine\n", done.stderr


def test_lab_prompts_writes_a_prompt_file_with_more_controls(command, tmp_path):
    done = command("lab", "prompts", "--controls", 3, "--out", tmp_path / "prompts")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    prompts = load_prompts(path)
    assert Counter(p.group for p in prompts) == {"planted": 168, "control": 51}
    many = command("lab", "prompts", "--controls", 9999, "--out", tmp_path / "many")
    assert many.returncode == 2
    assert "9999 further controls asked for" in many.stderr
    assert not (tmp_path / "many").exists()


@pytest.fixture
def detection(prompts):
    return (
        "detect", "oracle:memorizer", "--prompts", prompts,
        "--detectors", "gap_norm,random", "--seeds", 2, "--steps", 5,
    )  # fmt: skip


def test_detect_prints_scores(detection):
    # Only an error would be told: what goes to standard error is not for a pipe.
    found = CliRunner().invoke(app, [*map(str, detection)])
    head, *rows = [line.split("\t") for line in found.stdout.splitlines()]
    assert head[:2] == ["detector", "score"]
    scores = [float(row[1]) for row in rows if row[0] == "gap_norm"]
    assert scores == sorted(scores, reverse=True)
    at = head.index("prompt")
    assert [row[at] for row in rows if row[0] == "gap_norm"] == ["target 0", "something else"]
    assert len(rows) == 4
    assert "mnemoscope explain oracle:memorizer --prompts" in found.stderr


def on_a_terminal(*arguments, columns=100):
    """Run a command on a terminal of its own and return what it shows."""
    asked = [sys.executable, "-m", "mnemoscope", *map(str, arguments)]
    code = f"import pty, sys; sys.exit(pty.spawn({asked!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        check=True,
        env=ENVIRONMENT | {"COLUMNS": str(columns)},
    )
    return done.stdout.replace("\r\n", "\n")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_detect_shows_a_person_a_table(tmp_path):
    hostile = "a [bold]cat[/bold] \u202emoc"
    shown = on_a_terminal(
        "detect", "oracle:memorizer", "--prompt", "target 0", "--prompt", hostile, "--steps", 3
    )
    assert "consensus_whitened: larger is more memorized" in shown
    rows = [line.split() for line in shown.splitlines() if line.strip()[:1].isdigit()]
    assert "a [bold]cat[/bold] ⟨U+202E⟩moc" in shown
    assert "\u202e" not in shown
    assert "\t" not in shown
    lines = [line for line in shown.splitlines() if "target 0" in line or "[bold]" in line]
    # The memorized one stands above.
    assert "target 0" in lines[0]
    assert rows


def test_detect_judges_by_ordinary_prompts(tmp_path):
    (tmp_path / "ordinary.txt").write_text("".join(f"never seen {at}\n" for at in range(19)))
    small = ("--seeds", 2, "--steps", 3, "--detectors", "gap_norm")
    oracle = ("detect", "oracle:memorizer", *small)
    invoke(*oracle, "--prompts", tmp_path / "ordinary.txt", "--out", tmp_path / "known")
    held = ("--ordinary", tmp_path / "known", "--false-positives", 0.05)
    asked = ("--prompt", "target 0", "--prompt", "never seen 99")
    found = CliRunner().invoke(app, [*map(str, (*oracle, *asked, *held))])
    head, *rows = [line.split("\t") for line in found.stdout.splitlines()]
    told = {row[head.index("prompt")]: row for row in rows}
    above, flagged = head.index("above"), head.index("flagged")
    assert told["target 0"][above] == "1"
    assert told["target 0"][flagged] == "yes"
    assert told["never seen 99"][flagged] == "no"
    with pytest.raises(InputError, match="has scores of 2 seeds, and 3 are"):
        invoke(*oracle, "--seeds", 3, *asked, *held)


def test_study_ends_with_its_verdict(tmp_path):
    (tmp_path / "list.txt").write_text("target 0\n")
    found = CliRunner().invoke(app, [*map(str, study(tmp_path / "list.txt", tmp_path / "run"))])
    said = verdict_of(open_run(tmp_path / "run"))
    assert found.stdout.splitlines()[:4] == [said.title, *said.sentences]
    assert "does not hold" not in found.stdout
    assert f"mnemoscope report {tmp_path / 'run'}" in found.stderr
    assert "`mnemoscope detect`" in said.sentences[0]


def test_detect_writes_a_file_and_leaves_nothing_beside_it(detection, tmp_path):
    invoke(*detection, "--out", tmp_path / "scores.csv")
    assert (tmp_path / "scores.csv").read_text().count("gap_norm") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


def test_detect_leaves_a_run_folder_where_one_is_given(detection, tmp_path):
    output = invoke(*detection, "--out", tmp_path / "run", "--noise", "fresh")
    assert f"4 scores in {tmp_path / 'run'}" in output
    run = open_run(tmp_path / "run")
    assert run.manifest.flow == "detection"
    assert run.table("recipes")["noise"].to_pylist() == ["fresh"]
    assert run.manifest.given["noise"] == "fresh"


def test_an_interrupted_file_goes_on(detection, tmp_path, monkeypatch):
    whole = DetectionWorker.gather
    invoke(*detection, "--batch", 2, "--out", tmp_path / "plain.jsonl")

    def interrupted(self, unit):
        if unit.start == 1:
            raise KeyboardInterrupt
        return whole(self, unit)

    monkeypatch.setattr(DetectionWorker, "gather", interrupted)
    out = tmp_path / "scores.jsonl"
    CliRunner().invoke(app, [*map(str, detection), "--batch", "2", "--out", str(out)])
    assert not out.exists()
    assert open_run(tmp_path / ".scores.jsonl.run").table("scores").num_rows == 2
    monkeypatch.setattr(DetectionWorker, "gather", whole)
    invoke(*detection, "--batch", 2, "--out", out)
    assert len(out.read_text().splitlines()) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.jsonl", "scores.jsonl"]


def test_a_model_without_prompts_of_its_own_asks_for_them():
    with pytest.raises(InputError, match="--prompts"):
        invoke("detect", "oracle:memorizer")


def test_list_detectors_says_needs_and_price():
    head, *rows = [line.split("\t") for line in invoke("list", "detectors").splitlines()]
    told = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert told["gap_norm:all"]["kind"] == "prompt"
    assert told["gap_norm:all"]["calls"] == "99"
    assert told["flipd"]["kind"] == "pair"
    assert all(row["takes"] and row["source"] and row["computes"] for row in told.values())


def test_list_names_detectors_and_refuses_what_it_does_not_know():
    assert "detectors\tanisotropy\n" in invoke("list")
    with pytest.raises(InputError, match="detectors"):
        invoke("list", "detector")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("model")))


def test_detect_says_what_exceeds_the_window(tiny, tmp_path):
    (tmp_path / "list.txt").write_text("x" * 200 + "\nshort\n")
    small = ("--seeds", 1, "--steps", 2, "--device", "cpu", "--detectors", "gap_norm")
    output = invoke("detect", tiny, "--prompts", tmp_path / "list.txt", *small)
    assert "1 prompts exceed the model's window" in output


def test_an_intervention_steers_from_the_command_line(tiny, tmp_path):
    (tmp_path / "list.txt").write_text("a cat\n")
    small = ("--seeds", 1, "--steps", 4, "--device", "cpu", "--detectors", "dsm:0")
    plain, steered = (
        invoke(
            "detect", tiny, "--prompts", tmp_path / "list.txt", *small,
            "--out", tmp_path / name, *more,
        )
        and open_run(tmp_path / name)
        for name, more in (("a", ()), ("b", ("--intervention", "guidance_interval(strength=0.5)")))
    )  # fmt: skip
    assert steered.table("recipes")["intervention"].to_pylist() == [
        "guidance_interval(strength=0.5,stop=1.0)"
    ]
    assert plain.table("scores")["score"] != steered.table("scores")["score"]


def test_explain_writes_a_page_for_each_prompt_named(tiny, tmp_path):
    (tmp_path / "list.jsonl").write_text(
        '{"prompt": "a <b>cat</b>", "prompt_id": "cat"}\n{"prompt": "a dog", "prompt_id": "dog"}\n'
    )
    small = ["--seeds", "1", "--steps", "2", "--device", "cpu", "--out", str(tmp_path / "out")]
    chosen = ["--prompts", str(tmp_path / "list.jsonl"), "--ids", "cat"]
    output = invoke("explain", tiny, *chosen, *small)
    page = tmp_path / "out" / "prompt-cat" / "explanation.html"
    assert str(page) in output
    assert "a &lt;b&gt;cat&lt;/b&gt;" in page.read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "out").glob("prompt-*")] == ["prompt-cat"]
    # Another prompt joins the folder, and the control is there once.
    invoke("explain", tiny, "--prompt", "one, two", *small)
    assert (tmp_path / "out" / f"prompt-{named(['one, two'])[0].prompt_id}" / "tokens.csv").exists()
    assert open_run(tmp_path / "out").table("prompts").num_rows == 3


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "--prompt TEXT"),
        (["--prompt", " "], "blank"),
        (["--prompt", "a", "--ids", "b"], "one or the other"),
        (["--ids", "nobody"], "--prompts"),
    ],
)
def test_explain_says_what_it_needs(given, told):
    with pytest.raises(InputError, match=told):
        invoke("explain", "oracle:memorizer", *given)


def test_explain_refuses_a_file_as_folder_before_anything_is_loaded(prompts):
    with pytest.raises(InputError, match="is a file"):
        invoke("explain", "oracle:memorizer", "--prompt", "a", "--out", prompts)


def test_explain_knows_the_prompts_of_a_list(tmp_path):
    (tmp_path / "list.jsonl").write_text('{"prompt": "a", "prompt_id": "cat"}\n')
    with pytest.raises(InputError, match="cat"):
        invoke("explain", "x", "--prompts", str(tmp_path / "list.jsonl"), "--ids", "cot")


def test_bench_prints_a_ranking(tmp_path):
    # The lists of the benchmark's own tests, and as little as ranks.
    prompts = known_and_strangers(load_model("oracle:memorizer"), tmp_path)
    small = ("--seeds", 2, "--steps", 4, "--detectors", "gap_norm,random")
    asked = ("bench", "detectors", "oracle:memorizer", "--prompts", prompts, *small)
    found = CliRunner().invoke(app, [*map(str, asked), "--out", str(tmp_path / "out")])
    head, *rows = [line.split("\t") for line in found.stdout.splitlines()]
    told = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert list(told) == ["gap_norm", "random"]
    assert told["gap_norm"]["auc"] == "1"
    assert str(tmp_path / "out" / "leaderboard.md") in found.stderr
    assert f"mnemoscope report {tmp_path / 'out' / 'study'}" in found.stderr
