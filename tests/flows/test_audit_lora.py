"""Audits of an adapter, on oracles whose memories grow with its scale, and on a real file."""

from dataclasses import replace

import pytest

from mnemoscope.errors import InputError, ModelError
from mnemoscope.flows import audit as flow
from mnemoscope.flows.audit import Audit, audit
from mnemoscope.models.oracle import Oracle
from mnemoscope.reporting.audit import found_of, write
from mnemoscope.runs.folder import open_run
from tests.flows.test_audit import asked, beliefs_of, latents, picture, world

KNOWN = {0.0: 1, 0.5: 2, 1.0: 3, 1.2: 4}
"""How many captions, from the first on, a model has memorized at each scale."""


def oracle(scale):
    """Believe in the first captions alone, in as many as the scale says."""
    targets = {f"caption {at}": latents(picture(at)) for at in range(KNOWN[scale])}
    return Oracle(f"oracle:{scale:g}", *beliefs_of(targets))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    world(folder / "set", n=20)
    question = asked(folder / "set", folder / "run", lora="x.safetensors", scales=(0.5, 1.2))
    loaded = []

    def load(options):
        loaded.append(options.lora_scale)
        return oracle(options.lora_scale)

    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow, "loaded", load)
        run = audit(question, model=oracle(1.0), notify=said.append)
    return run, said, loaded


def test_each_scale_is_sampled_once_and_the_base_first(made):
    run, said, loaded = made
    assert loaded == [0.0, 0.5, 1.2]
    assert any("x 4 scales of the LoRA" in line for line in said)
    spent = {row["stage"]: row["network_calls"] for row in run.table("funnel").to_pylist()}
    # Twenty captions, two seeds, four steps, two branches, and the mean, at four scales.
    assert spent["confirm"] == 4 * (20 * 2 * 4 * 2 + 256)


def test_the_adapter_is_charged_with_what_the_base_does_not_do(made):
    found = found_of(made[0])
    assert {scale: row["value"] * 20 for scale, row in found.ladder.items()} == pytest.approx(KNOWN)
    assert found.share["value"] == pytest.approx(3 / 20)
    assert found.added["value"] == pytest.approx(2 / 20)
    # All captions were sampled, so that nothing is left open.
    assert found.added["low"] == found.added["high"] == pytest.approx(2 / 20)
    assert any("Without the adapter 5" in one for one in found.sentences)


def test_each_image_comes_back_from_its_scale_on(made):
    found = found_of(made[0])
    starts = {one.row["prompt"]: one.first for one in found.rungs}
    assert starts == {"caption 0": 0.0, "caption 1": 0.5, "caption 2": 1.0, "caption 3": 1.2}
    assert [(len(one.steps), one.gone) for one in found.rungs] == [(4, ())] * 4


def test_what_stops_at_a_larger_scale_says_where(made, tmp_path):
    found = found_of(made[0])
    name = next(row["prompt_id"] for row in found.captions if row["prompt"] == "caption 1")
    gone = [*found.states[name][:-1], found.states[name][-1] | {"state": "not memorized"}]
    changed = replace(found, states={**found.states, name: gone})
    rung = next(one for one in changed.rungs if one.row["prompt"] == "caption 1")
    assert (rung.first, rung.gone) == (0.5, (1.2,))
    assert {"from": 0.5, "not_at": [1.2]}.items() <= changed.told()["scales"][1].items()
    assert "0.5, not at 1.2</td>" in write(changed, tmp_path).read_text("utf-8")


def test_scales_are_sampled_from_the_same_noise(made):
    path = made[0].path
    folders = ("confirm", "scale-0", "scale-0.5", "scale-1.2")
    pictures = []
    for folder in folders:
        run = open_run(path / folder)
        names = {row["prompt_id"]: row["prompt"] for row in run.table("prompts").to_pylist()}
        rows = run.table("samples").to_pylist()
        pictures.append({(names[r["prompt_id"]], r["seed"]): r["image"] for r in rows})
    # No model has a belief about it, so the noise alone makes its pictures.
    for seed in (0, 1):
        assert len({held["caption 9", seed] for held in pictures}) == 1
    # What one remembers and another does not differs.
    assert len({held["caption 2", 0] for held in pictures}) == 2


def test_the_page_shows_the_ladder(made, tmp_path):
    page = write(found_of(made[0]), tmp_path).read_text("utf-8")
    assert "What the adapter added" in page
    assert page.count("<svg") == 1
    assert page.index("caption 0") < page.index("caption 3")
    # The policy of the page refuses attributes of style.
    assert "style=" not in page


def test_an_audit_without_an_adapter_says_nothing_of_one(tmp_path):
    model = world(tmp_path / "set", n=20)
    found = found_of(audit(asked(tmp_path / "set", tmp_path / "run"), model=model))
    assert found.added is None
    assert found.rungs == ()
    assert "adapter" not in write(found, tmp_path / "page").read_text("utf-8")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"scales": "0.5,1"}, "no adapter; name one by --lora"),
        ({"lora": "x.safetensors", "scales": "0.5,much"}, "scales '0.5,much' given"),
        ({"lora": "x.safetensors", "scales": "0.5,0.5"}, "repeats a value"),
        ({"lora": "x.safetensors", "scales": "-1"}, "expected numbers from 0"),
        ({"lora": "x.safetensors", "scales": "nan"}, "expected numbers from 0"),
    ],
)
def test_scales_that_mean_nothing_are_refused(changes, word):
    with pytest.raises(InputError, match=word):
        Audit.of_options({"model": "embedded:base", "dataset": "set"} | changes)


def test_a_file_that_is_no_adapter_is_refused(tmp_path):
    world(tmp_path / "set", n=20)
    question = Audit(model="embedded:base", dataset=tmp_path / "set", lora=str(tmp_path / "no.pt"))
    with pytest.raises(ModelError, match=r"no\.pt"):
        audit(question)
