"""Reading a run: groups are measured, probes are placed, null is NaN."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from mnemoscope import mechanism
from mnemoscope.core.gram import Gram
from mnemoscope.errors import InputError, NeedsError
from mnemoscope.mechanism.base import Record, Samples
from mnemoscope.mitigations.guidance_interval import GuidanceInterval
from mnemoscope.sampling.recipe import Recipe
from tests.mechanism.synthetic import record
from tests.views import view

PLAIN = {g: Recipe(guidance=g) for g in (1.0, 7.5)}
STRENGTHS = {"a": 0.8, "b": 0.0, "c": 0.0, "d": 0.0}


class FakeRun:
    """The tables a run of the synthetic world would hold."""

    def __init__(self, source: Record) -> None:
        self.source = source
        self.manifest = SimpleNamespace(options={"similarity": ["l2", "tiled_l2"]})
        self.exact = None if source.exact is None else (source.exact.w0, source.exact.wT)
        self.ways = list(PLAIN.values())
        self.others: dict[str, Samples] = {}

    @property
    def recipes(self) -> dict[str, dict[str, Any]]:
        return {recipe.key: recipe.row for recipe in self.ways}

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        rows = view(name, [self._keyed(row) for row in getattr(self, f"_{name}")()])
        return rows if columns is None else rows.select(list(columns))

    def _keyed(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"recipe": PLAIN[row["guidance"]].key} | row if "guidance" in row else row

    def gram(
        self, law: str = "path", guidance: float | None = None, recipe: str | None = None
    ) -> tuple[Gram, Mapping[str, Any]]:
        assert (recipe is None) == (law != "path")
        if recipe in self.others:
            found = self.others[recipe]
            return found.gram, {"prompt_id": found.prompts, "seed": found.seeds}
        found = self.source.samples.get((law, guidance))
        if found is None:
            raise NeedsError(f"the run holds no law {law!r}")
        return found.gram, {"prompt_id": found.prompts, "seed": found.seeds}

    def _prompts(self) -> list[dict[str, Any]]:
        return [
            {
                "prompt_id": prompt,
                "prompt": prompt,
                "group": "control" if prompt == "c" else None,
                "tokens": 3,
                "truncated": False,
                "references": [] if prompt == "d" else [prompt],
                "other": None if prompt == "d" else {"a": "b", "b": "c", "c": "a"}[prompt],
            }
            for prompt in STRENGTHS
        ]

    def _samples(self) -> list[dict[str, Any]]:
        return [
            {
                "prompt_id": prompt,
                "seed": seed,
                "guidance": g,
                "status": "ok",
                "network_calls": 100,
                "seconds": 0.1,
            }
            for g in self.source.guidances
            for prompt in STRENGTHS
            for seed in range(2)
        ]

    def _severity(self) -> list[dict[str, Any]]:
        # At g = 1 nothing is above threshold; the other measure disagrees and must not be read.
        return [
            {
                "prompt_id": prompt,
                "guidance": g,
                "measure": measure,
                "mean": None if prompt == "d" else value,
                "share": None
                if prompt == "d"
                else float((prompt == "a") == (measure == "l2")) * (g > 1),
                "n": 2,
            }
            for measure in ("l2", "tiled_l2")
            for g, values in self.source.severity.items()
            for prompt, value in values.items()
        ]

    def _similarities(self) -> list[dict[str, Any]]:
        return [
            {
                "prompt_id": prompt,
                "seed": seed,
                "guidance": g,
                "measure": measure,
                "reference_id": prompt if relation == "own" else "another",
                "relation": relation,
                "value": value + 100 * (measure != "l2"),
            }
            for measure in ("l2", "tiled_l2")
            for relation, rated in (
                ("own", self.source.rated),
                ("other", self.source.rated_other),
                ("nearest", self.source.rated_other),
            )
            for g, values in rated.items()
            for (prompt, seed), value in values.items()
            if prompt != "d"
        ]

    def _convergence(self) -> list[dict[str, Any]]:
        rows = []
        for g, spread in self.source.convergence.items():
            alpha = np.sqrt(1 - spread.sigma**2)
            for i, prompt in enumerate(spread.prompts):
                for j, call in enumerate(spread.calls):
                    row = {"prompt_id": prompt, "guidance": g, "call": int(call), "seeds": 2}
                    row |= {"alpha": alpha[j], "sigma": spread.sigma[j]}
                    row |= {name: float(table[i, j]) for name, table in spread.values.items()}
                    rows.append(row)
        return rows


@pytest.fixture(scope="module")
def source() -> Record:
    return record(STRENGTHS, {}, seeds=2)


def test_groups_follow_what_was_measured(source: Record) -> None:
    read = mechanism.read(FakeRun(source))
    assert read.groups == {
        "memorized": frozenset("a"),
        "not memorized": frozenset("b"),
        "control": frozenset("c"),
        "other": frozenset("d"),
    }
    assert read.others == frozenset("bc")


@pytest.mark.parametrize(
    ("changed", "groups"),
    [
        # Too few unrelated images: nothing is called memorized, and nothing not memorized.
        ({"share": None, "grade": None}, {"a": "other", "b": "other", "c": "other"}),
        ({"share": None, "grade": "none"}, {"a": "not memorized", "c": "control", "d": "other"}),
    ],
)
def test_what_was_not_judged_is_not_called_not_memorized(
    source: Record, changed: dict[str, Any], groups: dict[str, str]
) -> None:
    run = FakeRun(source)
    rows = [row | changed for row in run._severity()]
    run._severity = lambda: rows
    read = mechanism.read(run)
    for prompt, group in groups.items():
        assert prompt in read.groups[group]


def test_what_chose_a_group_does_not_measure_it(source: Record) -> None:
    run = FakeRun(source)
    # By its even seed "b" is memorized, by its odd one it is not; by both it is on the edge.
    seeds = {"a": [0, 1], "b": [0], "c": [1]}
    rows = [
        row | {"own_seeds": seeds.get(row["prompt_id"]) if row["guidance"] > 1 else []}
        for row in run._severity()
    ]
    run._severity = lambda: rows
    read = mechanism.read(run)
    assert read.decided is not None
    assert read.decided["memorized"] == frozenset("ab")
    assert read.decided["control"] == frozenset("c")
    apart = read.apart
    assert apart.memorized == frozenset("ab")
    assert set(apart.take().seeds.tolist()) == {1}
    assert set(read.half(0).take().seeds.tolist()) == {0}
    for prompt in "abc":
        own, other = source.rated[7.5][prompt, 1], source.rated_other[7.5][prompt, 1]
        assert apart.severity[7.5][prompt] == pytest.approx(own)
        assert apart.swapped.severity[7.5][prompt] == pytest.approx(other)
    assert read.swaps == {"a": "b", "b": "c", "c": "a"}
    assert read.tokens["a"] == 3
    # One odd seed has no variance, so that of both stays.
    for name, table in source.convergence[7.5].values.items():
        np.testing.assert_array_equal(apart.convergence[7.5].values[name], table)


def test_the_variance_that_is_judged_is_of_seeds_that_did_not_choose_the_groups() -> None:
    source = record(STRENGTHS, {}, seeds=4)
    run = FakeRun(source)
    rows = [row | {"own_seeds": [0, 1, 2, 3]} for row in run._severity()]
    run._severity = lambda: rows
    read = mechanism.read(run)
    for name in ("x_variance", "x0_g_variance"):
        odd = source.convergence[7.5].values[f"{name}_odd"]
        np.testing.assert_array_equal(read.apart.convergence[7.5].values[name], odd)
        whole = source.convergence[7.5].values[name]
        np.testing.assert_array_equal(read.convergence[7.5].values[name], whole)
        assert not np.allclose(odd, whole)


def test_a_template_counts_by_its_masked_share(source: Record) -> None:
    run = FakeRun(source)
    masked = [row | {"measure": "masked_l2", "share": 1.0} for row in run._severity()[:2]]
    rows = [*run._severity(), *(row | {"prompt_id": "b", "guidance": 7.5} for row in masked[:1])]
    run._severity = lambda: rows
    assert mechanism.read(run).groups["memorized"] == frozenset("ab")


def test_everything_a_run_holds_arrives(source: Record) -> None:
    read = mechanism.read(FakeRun(source))
    assert set(read.samples) == set(source.samples)
    assert read.guidances == (1.0, 7.5)
    assert read.guidance == 7.5
    assert read.measure == "l2"
    assert set(read.severity[7.5]) == set("abc")
    for law in ("forward", "noise"):
        # The probe's own levels tell which calls of the path it stands for.
        np.testing.assert_array_equal(read.samples[law, None].calls, np.arange(0, 50, 5))
        assert read.take(law).guidance == 7.5
    for name, table in source.convergence[7.5].values.items():
        np.testing.assert_array_equal(read.convergence[7.5].values[name], table)
    assert not read.stochastic
    assert all(finding.panels for finding in mechanism.analyse(read).values())


def test_a_sampler_that_forgets_the_noise_is_told_from_its_exact_path(source: Record) -> None:
    run = FakeRun(source)
    run.exact = (run.exact[0], run.exact[1] ** 2)
    read = mechanism.read(run)
    assert read.stochastic
    np.testing.assert_array_equal(read.exact.wT, run.exact[1])


def test_a_run_without_probes_or_exact_path_is_read(source: Record) -> None:
    bare = Record({("path", 7.5): source.samples["path", 7.5]}, {}, source.severity, "l2", {}, None)
    read = mechanism.read(FakeRun(bare))
    assert list(read.samples) == [("path", 7.5)]
    assert read.exact is None
    assert not read.convergence


@pytest.fixture(scope="module")
def other() -> Record:
    return record({"a": 0.1, "b": 0.7, "c": 0.0, "d": 0.0}, {}, seeds=2)


class Mixed(FakeRun):
    """A run in which the same prompts were also sampled in another way at guidance 7.5."""

    def __init__(self, source: Record, other: Record, **changed: Any) -> None:
        super().__init__(source)
        self.other = Recipe(guidance=7.5, **changed)
        self.second = FakeRun(other)
        self.ways.append(self.other)
        self.others[self.other.key] = other.samples["path", 7.5]

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        rows = super().table(name)
        if "recipe" in rows.column_names:
            there = self.second.table(name)
            there = there.filter(pc.equal(there["guidance"], 7.5))
            key = pa.array([self.other.key] * there.num_rows, pa.string())
            at = there.column_names.index("recipe")
            rows = pa.concat_tables(
                [rows, there.set_column(at, "recipe", key)], promote_options="permissive"
            )
        return rows if columns is None else rows.select(list(columns))


@pytest.mark.parametrize(
    "changed",
    [{"scheduler": "ddpm"}, {"noise": "shared"}, {"intervention": GuidanceInterval()}, {"seed": 1}],
    ids=lambda changed: next(iter(changed)),
)
def test_recipes_at_one_guidance_are_read_apart(
    source: Record, other: Record, changed: dict[str, Any]
) -> None:
    run = Mixed(source, other, **changed)
    with pytest.raises(InputError, match=f"{next(iter(changed))}.*apart"):
        mechanism.read(run)
    with pytest.raises(InputError, match="recipe"):
        mechanism.read(run, recipe="g7.5-00000000")
    plain, alone = mechanism.read(run, recipe=PLAIN[1.0].key), mechanism.read(FakeRun(source))
    assert plain.guidances == (1.0, 7.5)
    assert plain.groups == alone.groups
    assert plain.severity == alone.severity
    assert_same_samples(plain, alone)
    assert set(plain.samples) == set(source.samples)
    steered = mechanism.read(run, recipe=run.other.key)
    assert steered.guidances == (7.5,)
    assert steered.severity == {7.5: mechanism.read(FakeRun(other)).severity[7.5]}
    wanted = other.samples["path", 7.5].gram.products
    np.testing.assert_array_equal(steered.take().gram.products, wanted)
    for name, table in other.convergence[7.5].values.items():
        np.testing.assert_array_equal(steered.convergence[7.5].values[name], table)
    # Probes were made once, at the first recipe, and so was the exact path.
    assert set(steered.samples) == {("path", 7.5)}
    assert (steered.exact is None) == ("scheduler" in changed)


def assert_same_samples(one: Record, other: Record) -> None:
    assert set(one.samples) == set(other.samples)
    for key, samples in one.samples.items():
        np.testing.assert_array_equal(samples.gram.products, other.samples[key].gram.products)
