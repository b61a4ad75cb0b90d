"""The command line: exit status, messages, options made of the study's fields."""

import subprocess
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest

from mnemoscope.data.prompts import load_prompts
from mnemoscope.runs.folder import open_run
from mnemoscope.flows.study import Study

ROOT = Path(__file__).parents[1]


def command(*arguments, code=None):
    start = ["-c", code] if code else ["-m", "mnemoscope"]
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
    )


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
    done = command(*study(prompts, tmp_path / "run", "--guidance", "1, 7.5"))
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
        (("report", "absent"), ["no run folder"]),
    ],
)
def test_wrong_input_is_told_and_exits_with_2(arguments, words):
    done = command(*arguments)
    assert done.returncode == 2, done.stderr
    assert not done.stdout
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_other_study_is_refused(prompts, tmp_path):
    assert command(*study(prompts, tmp_path)).returncode == 0
    done = command(*study(prompts, tmp_path, "--seed", 1))
    assert done.returncode == 2
    assert "seed: 0 there, 1 here" in done.stderr


@pytest.mark.parametrize(
    ("raising", "status"), [("KeyboardInterrupt", 130), ("RuntimeError('broken')", 3)]
)
def test_interruption_and_bad_samples_have_their_status(prompts, tmp_path, raising, status):
    code = (
        "from mnemoscope.models import oracle\n"
        "whole, calls = oracle.MixtureDenoiser.__call__, 0\n"
        "def broken(self, x, timestep, condition):\n"
        "    global calls\n"
        "    calls += len(x) < 30\n"
        f"    if calls > 2 and int(timestep) < 600: raise {raising}\n"
        "    return whole(self, x, timestep, condition)\n"
        "oracle.MixtureDenoiser.__call__ = broken\n"
        "from mnemoscope.cli import main\n"
        "main()\n"
    )
    done = command(*study(prompts, tmp_path / "run"), code=code)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    held = open_run(tmp_path / "run").manifest
    assert held.status == ("interrupted" if status == 130 else "complete")
    if status == 3:
        assert "8 error" in done.stderr
        assert held.samples == {"error": 8}


def test_every_field_of_a_study_is_an_option_with_its_help():
    text = command("study", "--help").stdout
    flat = " ".join(text.replace("│", " ").split())
    for f in fields(Study):
        assert f.metadata["help"].split(",")[0] in flat, f.name
        assert f.name == "model" or f"--{f.name}" in flat


def test_list_and_version_say_what_there_is():
    text = command("list").stdout
    for word in ("oracle:memorizer", "ddim", "tiled_l2", "decomposition"):
        assert word in text
    assert command("version").stdout.strip() == "0.1.0"


def test_check_of_an_oracle():
    done = command("check", "oracle:memorizer", "--steps", "5")
    assert done.returncode == 0, done.stderr
    assert "5 calls" in done.stdout


def test_importing_the_package_imports_no_torch():
    code = "import sys, mnemoscope; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert command(code=code).returncode == 0


def test_public_names_stand_for_themselves():
    code = (
        "import mnemoscope.reporting, mnemoscope\n"
        "from mnemoscope import Study, load_model, open_run, report, run\n"
        "assert all(map(callable, (Study, load_model, open_run, report, run)))\n"
        "try:\n"
        "    mnemoscope.nothing\n"
        "except AttributeError:\n"
        "    print('fine')\n"
    )
    done = command(code=code)
    assert done.stdout == "fine\n", done.stderr


def test_lab_prompts_writes_a_prompt_file_with_more_controls(tmp_path):
    done = command("lab", "prompts", "--controls", 3, "--out", tmp_path / "prompts")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    prompts = load_prompts(path)
    assert Counter(p.group for p in prompts) == {"planted": 168, "control": 51}
    many = command("lab", "prompts", "--controls", 9999, "--out", tmp_path / "many")
    assert many.returncode == 2
    assert "9999 further controls asked for" in many.stderr
    assert not (tmp_path / "many").exists()
