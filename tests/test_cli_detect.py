"""The commands about detectors."""

import pytest
from typer.testing import CliRunner

from mnemoscope.cli import app
from mnemoscope.errors import InputError


@pytest.fixture
def arguments(tmp_path):
    (tmp_path / "list.txt").write_text("target 0\nsomething else\n")
    return [
        "detect", "oracle:memorizer", "--prompts", str(tmp_path / "list.txt"),
        "--detectors", "gap_norm,random", "--seeds", "2", "--steps", "5",
    ]  # fmt: skip


def invoke(*arguments):
    found = CliRunner().invoke(app, [*arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.output


def test_detect_prints_scores(arguments):
    lines = [line for line in invoke(*arguments).splitlines() if "\tgap_norm\t" in line]
    assert len(lines) == 2
    assert all("2 calls" in line for line in lines)


def test_detect_writes_them(arguments, tmp_path):
    invoke(*arguments, "--out", str(tmp_path / "scores.csv"))
    assert (tmp_path / "scores.csv").read_text().count("gap_norm") == 2


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
