"""The Python of the README and of the how-to pages, run as it stands on a tiny setting."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from mnemoscope import detectors, mitigations, similarity
from mnemoscope.cli import app
from mnemoscope.core.gram import NAMES, Gram
from mnemoscope.core.level import Level
from mnemoscope.core.record import Point
from mnemoscope.data.prompts import Prompt
from mnemoscope.data.references import Reference
from mnemoscope.evidence import Bank, gather
from mnemoscope.evidence.gather import sit
from mnemoscope.flows.detect import detect
from mnemoscope.mechanism.base import Analysis, Record, Samples
from mnemoscope.models import load_model
from mnemoscope.reporting.scores import RECOMMENDED
from mnemoscope.sampling.hooks import Step
from mnemoscope.sampling.recipe import Recipe
from tests.contracts.extension import installed

ROOT = Path(__file__).parents[1]

TINY = {"subset=12": "subset=2", "seeds=4": "seeds=2", "steps=50": "steps=4"}
"""What is made smaller; each has to occur, or the test would run something else than it says."""


def blocks_of(page):
    """Return the Python of a page, block by block."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert blocks, f"{page} shows no Python"
    return blocks


def python_of(page):
    """Return the first block of a page: a file of its own."""
    return blocks_of(page)[0]


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    source = python_of("README.md")
    for large, small in TINY.items():
        assert large in source
        source = source.replace(large, small)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(source, "README.md", "exec"), names)
    assert set(names["severity"]) >= {"prompt_id", "guidance", "share", "grade"}
    samples, calls, regressors = names["weights"].shape
    assert samples == len(names["keys"]["prompt_id"]) == 4
    assert calls == 4
    assert regressors == 2
    page = names["page"].read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html")


def test_the_guards_page_runs(capsys):
    exec(compile(python_of("docs/how-to/guard.md"), "guard.md", "exec"), {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["0", "1"]


def record_with_gaps(memorized, other):
    """Build a record of twelve prompts whose noise estimates differ by a known amount."""
    sizes = [memorized] * 6 + [other] * 6
    rest = torch.randn(len(NAMES), 16, dtype=torch.float64)
    half = torch.full((2,), 0.5, dtype=torch.float64).sqrt()
    products = []
    for size in sizes:
        vectors = rest.clone()
        # The gap of noise estimates is alpha times that of v.
        vectors[NAMES.index("v_c")] = vectors[NAMES.index("v_u")] + size / half[0]
        products.append((vectors @ vectors.T).expand(2, -1, -1))
    final = Level(torch.tensor(1.0).double(), torch.tensor(0.0).double())
    gram = Gram(Level(half, half), torch.stack(products), 16, final)
    names = [f"p{i:02}" for i in range(12)]
    return Record(
        samples={("path", 7.5): Samples.of(gram, names, [0] * 12, guidance=7.5)},
        groups={"memorized": frozenset(names[:6]), "control": frozenset(names[6:])},
    )


@pytest.mark.parametrize(("memorized", "other", "holds"), [(0.3, 0.1, True), (0.1, 0.3, False)])
def test_analysis_of_the_how_to_page_measures(memorized, other, holds):
    names: dict = {"__name__": "how_to"}
    exec(compile(python_of("docs/how-to/analysis.md"), "analysis.md", "exec"), names)
    assert issubclass(names["Gap"], Analysis)
    finding = names["Gap"]().analyse(record_with_gaps(memorized, other))
    assert [check.holds for check in finding.checks] == [holds]
    curve = next(curve for curve in finding.curves if curve.group == "memorized")
    # A gap of the same size in each of the 16 coordinates has that root mean square.
    np.testing.assert_allclose(curve.median, memorized, rtol=1e-10)


def added(tmp_path, kind, page):
    """Install the file of a how-to page, as a distribution of its own would."""
    source = python_of(f"docs/how-to/{page}.md")
    return installed(tmp_path, f"how_to_{page}", source, f"mnemoscope.{kind}")


@pytest.fixture
def forgotten():
    """Let registries look anew, before and after."""

    def clear():
        for room in (detectors, mitigations, similarity):
            for value in vars(room).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()

    clear()
    yield
    clear()


@pytest.mark.usefixtures("forgotten")
def test_similarity_of_the_how_to_page_compares(tmp_path):
    with added(tmp_path, "similarity", "similarity"):
        measure = similarity.get_similarity("colour")
        black, white = torch.zeros(3, 4, 4), torch.ones(3, 4, 4)
        index = measure.index([Reference("black", black), Reference("white", white)])
        found = index.compare(torch.stack([black, white, (black + white) / 2]))
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.usefixtures("forgotten")
def test_detector_of_the_how_to_page_scores(tmp_path):
    model = load_model("oracle:memorizer")
    with added(tmp_path, "detectors", "detector"):
        names = ["early_cosine", "gap_norm"]
        found = detect(model, ["target 0", "target 1"], detectors=names, seeds=3, steps=4)
    scores = found.of("early_cosine")
    # Other seeds are pulled to the same picture.
    assert (scores > 0.5).all()
    assert (scores <= 1).all()


def test_piece_of_the_how_to_page_is_gathered():
    names: dict = {"__name__": "how_to"}
    exec(compile(blocks_of("docs/how-to/detector.md")[1], "detector.md", "exec"), names)
    piece = names["StateProducts"]()
    model = load_model("oracle:memorizer")
    bank = Bank(model, Recipe(scheduler="ddim", steps=4), 2)
    sitting = sit(bank, [Prompt("a", "target 0")], [0], [piece])
    x = sitting.tape.x.double()
    wanted = torch.stack([(x[s, :-1] * x[s, 1:]).sum(dim=1) / model.d for s in range(2)])
    torch.testing.assert_close(gather(sitting, [piece])[piece][0], wanted)


@pytest.mark.usefixtures("forgotten")
def test_intervention_of_the_how_to_page_steers(tmp_path):
    with added(tmp_path, "mitigations", "intervention"):
        one = mitigations.parse("damped(strength=2)")
    assert str(one) == "damped(strength=2.0)"
    level = Level(torch.tensor(0.6).double(), torch.tensor(0.8).double())
    x, u, c = torch.randn(3, 2, 4, 3, 3)
    step = Step(Point(0, torch.tensor(5), level), 4, x, "eps", {"cond": c, "uncond": u}, 7.5)
    used = one.guide(step)
    for row in range(2):
        pull = float((c[row] - u[row]).norm() / u[row].norm())
        scale = 1 + 6.5 * float(torch.exp(torch.tensor(-2 * pull)))
        torch.testing.assert_close(used[row], u[row] + scale * (c[row] - u[row]))


def test_the_recommended_detector_is_named_where_one_is_chosen():
    text = (ROOT / "docs/detectors.md").read_text(encoding="utf-8")
    assert f"Without `--detectors` it is `{RECOMMENDED}` alone" in text


PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]


def commands_of(page):
    """Return the commands in the code blocks of a page, as they are given."""
    # A line that ends with a backslash goes on.
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in fenced if language in ("", "sh", "console")]
    blocks += re.findall(r"^    (?!  )mnemoscope .*$", text, flags=re.MULTILINE)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    # Without what comes after a comment sign or in a pipe.
    return [
        re.split(r"\s+#\s|\s[|]\s", line)[0].removeprefix("mnemoscope ")
        for line in lines
        if line.startswith("mnemoscope ")
    ]


def test_every_command_of_the_docs_can_be_given():
    commands = {(page, line) for page in PAGES for line in commands_of(page)}
    assert len(commands) > 20
    for page, line in sorted(commands):
        home, given = typer.main.get_command(app), shlex.split(line)
        while hasattr(home, "commands"):
            assert given[0] in home.commands, (page, line)
            home, given = home.commands[given[0]], given[1:]
        home.make_context(page, given)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_relative_links_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("http")]
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


def test_commands_of_the_readme_are_targets():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", text))
    assert {"demo", "test"} <= named <= targets
