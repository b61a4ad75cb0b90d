"""Architecture: the rooms of the package, the one way imports run, and what no module may do.

Nothing is imported here; every rule is checked on the syntax tree, function-level imports included.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
ROOT = "mnemoscope"

LAYERS = (
    ("errors", "options"),
    ("registry", "core"),
    ("data", "sampling"),
    ("models", "similarity", "runs"),
    ("mitigations",),
    ("evidence", "severity"),
    ("detectors", "mechanism", "ranking"),
    ("reporting", "lab", "guarding"),
    ("flows",),
    ("cli",),
    ("__main__",),
)
"""Rooms from the ground up; a room imports from layers below its own, and itself."""

EXTENSIONS = (
    "detectors",
    "evidence.pieces",
    "mechanism",
    "mitigations",
    "models.families",
    "similarity",
)
"""Packages of one file an extension: no file imports another, `base` aside."""

NETWORK = ("models", "evidence", "detectors", "mitigations", "guarding", "flows", "lab", "cli")
"""What loads or drives a network; analyses, grades, ranks and reports stand apart from it."""

APART = ("core", "runs", "severity", "mechanism", "ranking", "reporting")

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


def imports(source: str, module: str, is_package: bool = False) -> Iterator[tuple[str, int]]:
    """Yield what a source imports, absolute, with its line; type checkers' imports aside."""
    tree = ast.parse(source)
    unseen = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        match node:
            case ast.Import():
                yield from ((alias.name, node.lineno) for alias in node.names)
            case ast.ImportFrom(module=base, level=level):
                prefix = module.split(".")
                up = level - 1 if is_package else level
                package = prefix[: len(prefix) - up] if level else []
                origin = ".".join([*package, *([base] if base else [])])
                # `from package import module` names a module only where one of that name exists.
                inner = [f"{origin}.{alias.name}" for alias in node.names]
                yield from ((name, node.lineno) for name in inner if name in MODULES)
                if any(name not in MODULES for name in inner):
                    yield origin, node.lineno
            case _:
                continue


def room(module: str) -> str:
    """Return the room a module lies in; "" for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def floor(name: str) -> int:
    """Return the layer of a room."""
    return next(at for at, rooms in enumerate(LAYERS) if name in rooms)


def sibling(module: str, target: str) -> bool:
    """Return whether a file of an extension package imports another of that package."""
    for package in EXTENSIONS:
        inside = f"{ROOT}.{package}."
        if module.startswith(inside) and module != f"{inside}base":
            mine = module.startswith(f"{inside}base.")
            base = target == f"{inside}base" or target.startswith(f"{inside}base.")
            return not mine and not base and target.startswith(inside.removesuffix("."))
    return False


def direction(source: str, module: str, is_package: bool = False) -> list[str]:
    """List the imports of a source that run against the design."""
    faults: list[str] = []
    mine = room(module)
    for target, line in imports(source, module, is_package):
        if target.split(".")[0] == "matplotlib" and mine != "reporting":
            faults.append(f"{module}:{line} draws: only reporting imports matplotlib")
        if target.split(".")[0] != ROOT or not (theirs := room(target)):
            continue
        if mine == "":
            faults.append(f"{module}:{line} imports {target}: the package imports nothing at once")
        elif mine != theirs and floor(theirs) >= floor(mine):
            faults.append(f"{module}:{line} imports {target}: {theirs} does not lie below {mine}")
        elif not is_package and sibling(module, target):
            faults.append(f"{module}:{line} imports {target}: an extension of the same kind")
    return faults


def graph() -> dict[str, set[str]]:
    """Return what each module of ours imports of ours."""
    return {
        module: {
            name
            for name, _ in imports(
                path.read_text(encoding="utf-8"), module, path.name == "__init__.py"
            )
            if name in MODULES and name != ROOT
        }
        for module, path in MODULES.items()
    }


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """Return the modules of a circle of imports; empty where there is none."""
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> list[str]:
        if module in way:
            return way[way.index(module) :]
        if module in done:
            return []
        for target in sorted(edges.get(module, ())):
            if found := walk(target, [*way, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(edges) if (found := walk(module, []))), [])


def reach(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    """Return the modules of ours that importing one brings in, its parent packages aside."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo += edges.get(module, ())
    return seen


def conduct(source: str, module: str) -> list[str]:
    """List what no module of the package may do."""
    faults: list[str] = []
    tree = ast.parse(source)
    opening = (ast.get_docstring(tree) or "").split("\n")[0]
    if not opening.endswith("."):
        faults.append(f"{module}:1 does not open with a one-line definition")
    for target, line in imports(source, module):
        if target.split(".")[0] in UNSAFE_MODULES:
            faults.append(f"{module}:{line} imports {target}: it can run code from a file")
        if target == "__future__":
            faults.append(f"{module}:{line} postpones annotations: shapes are checked at run time")
        if target.split(".")[0] == "fcntl":
            faults.append(f"{module}:{line} imports {target}: Windows has no such module")
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


def test_every_module_lies_in_a_room():
    rooms = {room(module) for module in MODULES} - {""}
    assert rooms == {name for layer in LAYERS for name in layer}


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_down(module):
    path = MODULES[module]
    faults = direction(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
    assert not faults, "\n".join(faults)


def test_no_modules_import_each_other_in_a_circle():
    assert circle(graph()) == []


@pytest.mark.parametrize("module", MODULES)
def test_conduct(module):
    faults = conduct(MODULES[module].read_text(encoding="utf-8"), module)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", APART)
def test_what_reads_runs_reaches_no_network_even_through_others(name):
    edges = graph()
    inside = [module for module in MODULES if room(module) == name]
    assert inside, f"{name} has no module"
    for module in inside:
        reached = {other for other in reach(module, edges) if room(other) in NETWORK}
        assert not reached, f"{module} reaches {sorted(reached)}"


@pytest.mark.parametrize(
    ("module", "source", "word"),
    [
        ("mnemoscope.core.gram", "import mnemoscope.runs.folder", "runs does not lie below core"),
        ("mnemoscope.core.gram", "from ..runs import Run", "runs does not lie below core"),
        ("mnemoscope.core.gram", "from mnemoscope import runs", "runs does not lie below core"),
        ("mnemoscope.errors", "from mnemoscope.core import gram", "core does not lie below"),
        ("mnemoscope.data.prompts", "import mnemoscope.sampling.loop", "does not lie below data"),
        ("mnemoscope.models.load", "from mnemoscope.lab import x", "lab does not lie below models"),
        ("mnemoscope.detectors.x", "from mnemoscope.detectors.dsm import y", "same kind"),
        ("mnemoscope.mechanism.loss", "from mnemoscope.mechanism.alignment import x", "same kind"),
        ("mnemoscope.mechanism.loss", "from .alignment import x", "same kind"),
        ("mnemoscope.evidence.pieces.text", "from .maps import Maps", "same kind"),
        ("mnemoscope.reporting.page", "from mnemoscope.flows import study", "does not lie below"),
        ("mnemoscope.similarity.pixels", "import matplotlib.pyplot as plt", "matplotlib"),
        ("mnemoscope.flows.study", "from mnemoscope import cli", "cli does not lie below flows"),
        ("mnemoscope.flows.study", "import mnemoscope.cli", "cli does not lie below flows"),
        ("mnemoscope", "from mnemoscope.flows.study import run", "nothing at once"),
    ],
)
def test_direction_notices(module, source, word):
    assert any(word in fault for fault in direction(source, module))


def test_a_network_within_reach_is_noticed():
    source = "def f():\n    import mnemoscope.models.base\n"
    module = "mnemoscope.mechanism.loss"
    edges = {module: {name for name, _ in imports(source, module)}}
    assert {room(name) for name in reach(module, edges)} & set(NETWORK) == {"models"}


def test_circles_are_noticed():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_what_only_a_type_checker_imports_does_not_count():
    source = "if TYPE_CHECKING:\n    from mnemoscope.cli import main\nimport torch\n"
    assert list(imports(source, "mnemoscope.core.gram")) == [("torch", 3)]


@pytest.mark.parametrize(
    "source",
    [
        "x = 1",
        '"""Opens without a full stop"""',
        '"""Doc."""\nimport pickle',
        '"""Doc."""\nimport fcntl',
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
