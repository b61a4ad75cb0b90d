"""The Python of the README and of the how-to pages, run as it stands on a tiny setting."""

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from mnemoscope.core.gram import NAMES, Gram
from mnemoscope.core.level import Level
from mnemoscope.mechanism.base import Analysis, Record, Samples
from mnemoscope.similarity.base import Reference

ROOT = Path(__file__).parents[1]

TINY = {"subset=12": "subset=2", "seeds=4": "seeds=2", "steps=50": "steps=4"}
"""What is made smaller; each has to occur, or the test would run something else than it says."""


def python_of(text):
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1, "the page shows one block of Python"
    return blocks[0]


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    source = python_of((ROOT / "README.md").read_text(encoding="utf-8"))
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


def record_with_gaps(memorized, other):
    """Build a record of six prompts whose branches differ by a known amount at every call."""
    sizes = [memorized] * 3 + [other] * 3
    rest = torch.randn(len(NAMES), 16, dtype=torch.float64)
    products = []
    for size in sizes:
        vectors = rest.clone()
        vectors[NAMES.index("eps_c")] = vectors[NAMES.index("eps_u")] + size
        products.append((vectors @ vectors.T).expand(2, -1, -1))
    half = torch.full((2,), 0.5, dtype=torch.float64).sqrt()
    gram = Gram(
        Level(half, half),
        torch.stack(products),
        torch.full((6,), 7.5, dtype=torch.float64),
        16,
        Level(torch.tensor(1.0).double(), torch.tensor(0.0).double()),
    )
    names = [f"p{i}" for i in range(6)]
    return Record(
        samples={("path", 7.5): Samples.of(gram, names, [0] * 6)},
        groups={"memorized": frozenset(names[:3]), "control": frozenset(names[3:])},
    )


@pytest.mark.parametrize(("memorized", "other", "holds"), [(0.3, 0.1, True), (0.1, 0.3, False)])
def test_analysis_of_the_how_to_page_measures(memorized, other, holds):
    text = (ROOT / "docs" / "how-to" / "analysis.md").read_text(encoding="utf-8")
    names: dict = {"__name__": "how_to"}
    exec(compile(python_of(text), "analysis.md", "exec"), names)
    assert issubclass(names["Gap"], Analysis)
    finding = names["Gap"]().analyse(record_with_gaps(memorized, other))
    assert [check.holds for check in finding.checks] == [holds]
    curve = next(curve for curve in finding.curves if curve.group == "memorized")
    # A gap of the same size in each of the 16 coordinates has that root mean square.
    np.testing.assert_allclose(curve.median, memorized, rtol=1e-10)


def test_similarity_of_the_how_to_page_compares():
    text = (ROOT / "docs" / "how-to" / "similarity.md").read_text(encoding="utf-8")
    # Dataclasses look their module up by name.
    module = ModuleType("how_to_similarity")
    sys.modules[module.__name__] = module
    try:
        exec(compile(python_of(text), "similarity.md", "exec"), module.__dict__)
        measure = module.SIMILARITIES["colour"](None)
        black, white = torch.zeros(3, 4, 4), torch.ones(3, 4, 4)
        index = measure.index([Reference("black", black), Reference("white", white)])
        found = index.compare(torch.stack([black, white, (black + white) / 2]))
    finally:
        del sys.modules[module.__name__]
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


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
