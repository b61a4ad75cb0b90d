"""Architecture: the import direction of the package, and what no module may do.

Nothing is imported here; every rule is checked on the syntax tree, function-level imports included.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
ROOT = "mnemoscope"

PLUGINS = ("detectors", "mechanism", "mitigations", "similarity")
"""Packages of one file an extension: a file imports `core`, its own `base` and the leaves below."""

LEAVES = ("errors", "images", "stats")
"""Modules that know nothing of models, runs or files."""

MODEL_SIDE = (
    "models",
    "lab",
    "unit",
    "plan",
    "study",
    "executors",
    "check",
    "collect",
    "detect",
    "explain",
    "leaderboard",
)
"""What loads or drives a network; analyses and reports stand apart from it."""

UNSAFE_MODULES = (
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
)

MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SRC.rglob("*.py"))
}


def imports(source: str, module: str, is_package: bool) -> Iterator[tuple[str, int]]:
    """Yield every dotted name a source imports, absolute, with its line."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                yield from ((alias.name, node.lineno) for alias in node.names)
            case ast.ImportFrom(module=base, level=level):
                prefix = module.split(".")
                up = level - 1 if is_package else level
                package = prefix[: len(prefix) - up] if level else []
                origin = ".".join([*package, *([base] if base else [])])
                yield origin, node.lineno
                # `from package import module` names a module only where one of that name exists.
                for alias in node.names:
                    if f"{origin}.{alias.name}" in MODULES:
                        yield f"{origin}.{alias.name}", node.lineno
            case _:
                continue


def direction(source: str, module: str, is_package: bool = False) -> list[str]:
    """List the imports of a source that run against the design."""
    faults: list[str] = []
    parts = module.split(".")
    inside = parts[1] if len(parts) > 1 else ""
    for target, line in imports(source, module, is_package):
        head = target.split(".")
        if head[0] == "matplotlib" and inside != "report":
            faults.append(f"{module}:{line} draws: only report imports matplotlib")
        if head[0] != ROOT or len(head) == 1:
            continue
        where = head[1]
        if inside == "errors":
            faults.append(f"{module}:{line} imports {target}: errors imports nothing of ours")
        if inside in LEAVES and where not in LEAVES:
            faults.append(f"{module}:{line} imports {target}: a leaf stands on leaves only")
        if inside == "core" and where not in ("core", "errors"):
            faults.append(f"{module}:{line} imports {target}: core imports core and errors only")
        if inside in PLUGINS and not is_package and parts[-1] != "base":
            own = where == inside and (len(head) == 2 or head[2] == "base")
            if where not in ("core", *LEAVES) and not own:
                faults.append(f"{module}:{line} imports {target}: not core, its own base or a leaf")
        if inside in ("mechanism", "report") and where in MODEL_SIDE:
            faults.append(f"{module}:{line} imports {target}: analyses never load a model")
        if inside in ("models", "similarity") and where in ("report", "mechanism", "study"):
            faults.append(f"{module}:{line} imports {target}: stands above it")
        if where == "cli" and inside != "__main__":
            faults.append(f"{module}:{line} imports {target}: the command line stands on top")
    return faults


def conduct(source: str, module: str) -> list[str]:
    """List what no module of the package may do."""
    faults: list[str] = []
    tree = ast.parse(source)
    opening = (ast.get_docstring(tree) or "").split("\n")[0]
    if not opening.endswith("."):
        faults.append(f"{module}:1 does not open with a one-line definition")
    for target, line in imports(source, module, is_package=False):
        if target.split(".")[0] in UNSAFE_MODULES:
            faults.append(f"{module}:{line} imports {target}: it can run code from a file")
        if target == "__future__":
            faults.append(f"{module}:{line} postpones annotations: shapes are checked at run time")
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")):
                faults.append(f"{module}:{node.lineno} calls torch.load: weights are safetensors")
            case ast.Call(func=ast.Name(id="print")) if module != f"{ROOT}.cli":
                faults.append(f"{module}:{node.lineno} prints: only the command line does")
            case ast.Call(func=ast.Name(id="eval" | "exec")):
                faults.append(f"{module}:{node.lineno} evaluates text")
            case ast.keyword(
                arg="trust_remote_code" | "allow_pickle", value=ast.Constant(value=True)
            ):
                faults.append(f"{module}:{node.value.lineno} trusts code from outside")
            case ast.keyword(arg="use_safetensors", value=ast.Constant(value=False)):
                faults.append(f"{module}:{node.value.lineno} accepts pickled weights")
            case ast.ExceptHandler(type=None | ast.Name(id="BaseException")):
                faults.append(f"{module}:{node.lineno} catches everything")
            case _:
                continue
    return faults


def reach(start: str) -> set[str]:
    """Return the modules of ours that importing one brings in, its parent packages aside."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        module = todo.pop()
        # The package itself imports its public names on first use only.
        if module in seen or module not in MODULES or module == ROOT:
            continue
        seen.add(module)
        path = MODULES[module]
        source = path.read_text(encoding="utf-8")
        todo += [name for name, _ in imports(source, module, path.name == "__init__.py")]
    return seen


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    path = MODULES[module]
    faults = direction(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("module", MODULES)
def test_conduct(module):
    faults = conduct(MODULES[module].read_text(encoding="utf-8"), module)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("package", ["core", "mechanism", "report"])
def test_analyses_reach_no_model_even_through_others(package):
    inside = [name for name in MODULES if name.startswith(f"{ROOT}.{package}")]
    assert inside, f"{package} has no module"
    sides = tuple(f"{ROOT}.{side}" for side in MODEL_SIDE)
    for module in inside:
        reached = {name for name in reach(module) if name.startswith(sides)}
        assert not reached, f"{module} reaches {sorted(reached)}"


@pytest.mark.parametrize(
    ("module", "source", "word"),
    [
        ("mnemoscope.core.gram", "import mnemoscope.runs.folder", "core imports"),
        ("mnemoscope.core.gram", "from ..runs import Run", "core imports"),
        ("mnemoscope.errors", "from mnemoscope.core import gram", "nothing of ours"),
        (
            "mnemoscope.mechanism.loss",
            "from mnemoscope.mechanism.alignment import x",
            "its own base",
        ),
        ("mnemoscope.mechanism.loss", "from .alignment import x", "its own base"),
        (
            "mnemoscope.mechanism.loss",
            "def f():\n    import mnemoscope.models.base",
            "load a model",
        ),
        ("mnemoscope.reporting.page", "from mnemoscope.models import base", "load a model"),
        ("mnemoscope.similarity.pixels", "import matplotlib.pyplot as plt", "matplotlib"),
        (
            "mnemoscope.flows.study",
            "from mnemoscope import cli\nfrom mnemoscope.cli import main",
            "on top",
        ),
    ],
)
def test_direction_notices(module, source, word):
    assert any(word in fault for fault in direction(source, module))


@pytest.mark.parametrize(
    "source",
    [
        "x = 1",
        '"""Opens without a full stop"""',
        '"""Doc."""\nimport pickle',
        '"""Doc."""\nfrom __future__ import annotations',
        '"""Doc."""\nimport torch\ntorch.load("x")',
        '"""Doc."""\nprint(1)',
        '"""Doc."""\neval("1")',
        '"""Doc."""\nf(trust_remote_code=True)',
        '"""Doc."""\nf(use_safetensors=False)',
        '"""Doc."""\ntry:\n    f()\nexcept:\n    pass',
    ],
)
def test_conduct_notices(source):
    assert conduct(source, "mnemoscope.core.gram")


def test_innocent_source_passes():
    source = '"""A definition."""\nfrom mnemoscope.core.gram import Gram\nmodel.eval()\n'
    assert not conduct(source, "mnemoscope.mechanism.loss")
    assert not direction(source, "mnemoscope.mechanism.loss")
