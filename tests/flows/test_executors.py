"""Where the work is done makes no difference to what is found; what cannot be sent is refused."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks.faults import captioned
from mnemoscope.errors import InputError, ModelError
from mnemoscope.flows.audit import Audit, audit
from mnemoscope.flows.detect import Detection, detect
from mnemoscope.flows.options import Named
from mnemoscope.flows.study import Study, run
from mnemoscope.models import load_model
from mnemoscope.models.oracle import gaussian
from mnemoscope.reporting.audit import found_of
from mnemoscope.runs import processes
from mnemoscope.runs.folder import open_run
from mnemoscope.runs.verify import verify

PROMPTS = ["target 0", "target 1", "never seen", "target 2", "target 3"]
TABLES = ("samples", "gram", "convergence", "similarities", "severity", "scores", "prompts")


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


def study(listed, out, **changes):
    options = {
        "model": "oracle:memorizer", "prompts": listed, "seeds": 2, "steps": 3, "batch": 4,
        "guidance": (1.0, 7.5), "similarity": ("l2",), "device": "cpu", "out": out,
    }  # fmt: skip
    return run(Study(**(options | changes)))


def content(run, names):
    """Return what tables say, times aside; a text knows that NaN equals NaN."""
    tables = {name: run.table(name) for name in names}
    return {
        name: repr(rows.select([c for c in rows.column_names if c != "seconds"]).to_pylist())
        for name, rows in tables.items()
    }


def test_a_study_in_several_processes_is_the_same_study(listed, tmp_path):
    one = study(listed, tmp_path / "one")
    two = study(listed, tmp_path / "two", executor="local:2")
    assert content(two, TABLES) == content(one, TABLES)
    assert two.manifest.samples == one.manifest.samples == {"ok": 20}
    for name, values in one.constants.items():
        assert torch.equal(two.constants[name], values)


def test_a_detection_in_several_processes_is_the_same_detection(listed, tmp_path):
    options = {"detectors": ("gap_norm", "consensus_energy"), "seeds": 2, "steps": 3, "batch": 4}
    one = detect("oracle:memorizer", listed, out=tmp_path / "one", **options)
    two = detect("oracle:memorizer", listed, out=tmp_path / "two", executor="local:2", **options)
    assert content(open_run(tmp_path / "two"), ("scores", "prompts")) == content(
        open_run(tmp_path / "one"), ("scores", "prompts")
    )
    # Each worker that had a unit computed the half of the first call that prompts share.
    assert two.network_calls - one.network_calls in (0, 2)


def test_another_executor_goes_on_with_a_run(listed, tmp_path):
    first = study(listed, tmp_path / "run")
    (tmp_path / "run" / "commits" / "severity.json").unlink()
    again = study(listed, tmp_path / "run", executor="local", share=0.5)
    assert content(again, TABLES) == content(first, TABLES)


@pytest.mark.parametrize("executor", ["local", "local:2"])
def test_a_model_without_a_name_is_refused_before_anything_is_done(tmp_path, executor):
    model = gaussian(torch.zeros(3, 8, 8), 0.5)
    with pytest.raises(ModelError, match="made of a live object"):
        detect(model, PROMPTS, seeds=2, steps=3, executor=executor, out=tmp_path / "run")
    assert not open_run(tmp_path / "run").units("scores")


def test_other_weights_under_the_same_name_are_refused():
    named = Named.of(load_model("oracle:memorizer"))
    assert named.load().digest == named.digest
    with pytest.raises(ModelError, match="has other weights in a worker's process"):
        replace(named, digest="0" * 64).load()


@pytest.mark.parametrize("kind", [Study, Detection, partial(Audit, dataset="set")])
def test_an_executor_that_is_none_is_refused_with_the_options(kind):
    with pytest.raises(InputError, match="Did you mean 'local'"):
        kind(executor="locals")
    with pytest.raises(InputError, match="share"):
        kind(executor="local", share=-1.0)


def test_an_audit_by_workers_that_are_killed_is_the_same_audit(tmp_path, monkeypatch):
    killed, hand_out = [], processes.hand_out

    def struck(crew, count, writer, worker, units, done=None):
        def told(unit):
            # Once a stage: its worker has been given another unit, or is about to be.
            if writer.path not in killed:
                killed.append(writer.path)
                crew.held[0][0].kill()
            if done is not None:
                done(unit)

        hand_out(crew, count, writer, worker, units, told)

    monkeypatch.setattr(processes, "hand_out", struck)
    asked = Audit(
        model="oracle:memorizer", dataset=captioned(tmp_path / "set", others=12), device="cpu",
        out=tmp_path / "one", seeds=2, screening_seeds=2, steps=3, batch=8, similarity=("l2",),
    )  # fmt: skip
    one = audit(asked)
    two = audit(replace(asked, out=tmp_path / "two", executor="local:1"))
    # Half of a caption's samples first, then the rest.
    assert [path.name for path in killed] == ["screen", "confirm", "confirm-2"]
    assert content(two, ("items", "funnel", "audited", "statistics")) == content(
        one, ("items", "funnel", "audited", "statistics")
    )
    assert {row["prompt"] for row in found_of(two).given_back} >= {f"target {k}" for k in range(4)}
    names = ("samples", "similarities", "severity", "references")
    for look in ("confirm", "confirm-2"):
        assert content(open_run(tmp_path / "two" / look), names) == content(
            open_run(tmp_path / "one" / look), names
        )
        assert verify(tmp_path / "two" / look).ok
