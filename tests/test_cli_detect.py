"""The commands about detectors."""

import pytest
from typer.testing import CliRunner

from mnemoscope.cli import app
from mnemoscope.errors import InputError
from tests.tiny import tiny_folder


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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("model")))


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
    invoke("explain", tiny, "--prompt", "one", "--prompt", "x" * 100, *small)
    assert (tmp_path / "out" / "prompt-00001" / "tokens.csv").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "--prompt TEXT"),
        (["--prompt", " "], "blank"),
        (["--prompt", "a", "--ids", "b"], "one or the other"),
        (["--ids", "nobody"], "--prompts FILE"),
    ],
)
def test_explain_says_what_it_needs(given, told):
    with pytest.raises(InputError, match=told):
        invoke("explain", "oracle:memorizer", *given)


def test_explain_knows_the_prompts_of_a_list(tmp_path):
    (tmp_path / "list.jsonl").write_text('{"prompt": "a", "prompt_id": "cat"}\n')
    with pytest.raises(InputError, match="cat"):
        invoke("explain", "x", "--prompts", str(tmp_path / "list.jsonl"), "--ids", "cot")
