"""The command line: exit status, messages, options made of the fields of a flow."""

import subprocess
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mnemoscope.cli import app, main
from mnemoscope.data.prompts import load_prompts
from mnemoscope.errors import InputError
from mnemoscope.flows.bench import Benchmark
from mnemoscope.flows.check import Checking
from mnemoscope.flows.detect import Detection, DetectionWorker
from mnemoscope.flows.explain import Explaining
from mnemoscope.flows.study import Study
from mnemoscope.models.oracle import MixtureDenoiser
from mnemoscope.runs.folder import open_run
from tests.tiny import tiny_folder

ROOT = Path(__file__).parents[1]


def python(*arguments):
    """Run Python in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
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
    assert "8 samples in" in done.stdout
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
        (("detect", "embedded", "--out", "scores.txt"), [".parquet, .csv, .jsonl"]),
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


@pytest.mark.parametrize(
    ("raising", "status"), [(KeyboardInterrupt(), 130), (RuntimeError("broken"), 3)]
)
def test_interruption_and_bad_samples_have_their_status(
    command, prompts, tmp_path, monkeypatch, raising, status
):
    whole, calls = MixtureDenoiser.__call__, 0

    def broken(self, x, timestep, condition):
        nonlocal calls
        calls += len(x) < 30
        if calls > 2 and int(timestep) < 600:
            raise raising
        return whole(self, x, timestep, condition)

    monkeypatch.setattr(MixtureDenoiser, "__call__", broken)
    done = command(*study(prompts, tmp_path / "run"))
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    held = open_run(tmp_path / "run").manifest
    assert held.status == ("interrupted" if status == 130 else "complete")
    if status == 3:
        assert "8 error" in done.stderr
        assert held.samples == {"error": 8}


COMMANDS = {
    "study": Study,
    "detect": Detection,
    "explain": Explaining,
    "check": Checking,
    "bench detectors": Benchmark,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_field_is_an_option_with_its_help(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    flat = " ".join(invoke(*name.split(), "--help").replace("│", " ").split())
    for f in fields(COMMANDS[name]):
        assert f.metadata["help"].split(",")[0].split(";")[0] in flat, f.name
        assert f.name == "model" or f"--{f.name.replace('_', '-')}" in flat, f.name


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
    lines = [line for line in invoke(*detection).splitlines() if "\tgap_norm\t" in line]
    assert len(lines) == 2
    assert all("\t2 calls\t" in line for line in lines)


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
    output = invoke("list", "detectors")
    assert "gap_norm:all (prompt)" in output
    assert "99 network calls a seed" in output
    assert "flipd (pair)" in output


def test_list_names_detectors_and_refuses_what_it_does_not_know():
    assert "detectors: anisotropy" in invoke("list")
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
    small = ("--seeds", 1, "--steps", 4, "--device", "cpu", "--detectors", "confidence")
    plain, steered = (
        invoke(
            "detect", tiny, "--prompts", tmp_path / "list.txt", *small,
            "--out", tmp_path / name, *more,
        )
        and open_run(tmp_path / name)
        for name, more in (("a", ()), ("b", ("--intervention", "guidance_interval(start=0.5)")))
    )  # fmt: skip
    assert steered.table("recipes")["intervention"].to_pylist() == [
        "guidance_interval(start=0.5,stop=1.0)"
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
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["prompt-cat"]
    invoke("explain", tiny, "--prompt", "one, two", "--prompt", "x" * 100, *small)
    assert (tmp_path / "out" / "prompt-00001" / "tokens.csv").exists()
    assert not (tmp_path / "out" / "prompt-00002").exists()


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


def test_explain_knows_the_prompts_of_a_list(tmp_path):
    (tmp_path / "list.jsonl").write_text('{"prompt": "a", "prompt_id": "cat"}\n')
    with pytest.raises(InputError, match="cat"):
        invoke("explain", "x", "--prompts", str(tmp_path / "list.jsonl"), "--ids", "cot")
