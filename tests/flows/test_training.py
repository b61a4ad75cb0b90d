"""Audits of a training: what is found at which step, what it costs, and that training goes on."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer

import mnemoscope
from mnemoscope.errors import InputError, MemorizingError, RunError
from mnemoscope.flows import training
from mnemoscope.flows.training import FIGURE, RECORD, TrainingAudit
from mnemoscope.models.oracle import Oracle
from mnemoscope.reporting.figures import save_png
from mnemoscope.runs.folder import open_run
from tests.flows.test_audit import beliefs_of, latents, picture, world
from tests.test_readme import blocks_of
from tests.tiny import tiny_pipeline

SET = 30
PIPE = SimpleNamespace(components={})
"""What stands for a pipeline: what is made of it is an oracle."""


class Clock:
    """Time that goes by with network calls, a second each, and with training."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Timed:
    """A denoiser whose calls take time."""

    def __init__(self, inner, clock):
        self.inner, self.clock = inner, clock

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, x, *args):
        self.clock.now += len(x)
        return self.inner(x, *args)


def slow(clock, known):
    """Return an oracle that has memorized some captions, and takes its time."""
    targets = {f"caption {at}": latents(picture(at)) for at in known}
    model = Oracle("oracle:known", *beliefs_of(targets))
    model.denoiser = Timed(model.denoiser, clock)
    return model


@pytest.fixture
def clock(monkeypatch, tmp_path):
    world(tmp_path / "set", n=SET)
    clock = Clock()
    monkeypatch.setattr(training, "time", clock)
    monkeypatch.setattr(training, "seconds_a_row", lambda bank: 1.0)
    # Drawing takes longer than all else here, and is looked at once.
    monkeypatch.setattr(training, "save_png", lambda panels, png: None)
    return clock


@pytest.fixture
def known(monkeypatch, clock):
    """Return a list: which captions the model has memorized at the next checkpoint."""
    held = []
    monkeypatch.setattr(training, "load_model", lambda pipe: slow(clock, held))
    return held


def watch(tmp_path, **changes):
    options = {"captions": SET, "steps": 4, "seeds": 2, "budget": 0.5} | changes
    return TrainingAudit(tmp_path / "set", tmp_path / "out", **options)


def trained(watched, clock, known, step, captions, seconds=2000.0):
    clock.now += seconds
    known[:] = captions
    return watched.on_checkpoint(PIPE, step)


def test_the_last_step_before_anything_is_given_back_is_the_one_to_take(tmp_path, clock, known):
    told = []
    watched = watch(tmp_path, log=lambda numbers, step: told.append((step, numbers)))
    found = [
        trained(watched, clock, known, step, captions)
        for step, captions in ((100, []), (200, []), (300, [3, 4]), (400, range(10)))
    ]
    assert [one.safe for one in found] == [True, True, False, False]
    assert set(found[2].given_back) == {"caption 3", "caption 4"}
    assert watched.last_safe == 200
    assert watched.advice.startswith("take step 200: at step 300 2 of ")
    assert watched.advice.endswith("sampled from step 200 to 200 none does, so of all at most 0%")
    # All captions were sampled here, so the share is exact.
    assert found[3].sampled == SET
    assert found[3].share == pytest.approx(10 / SET)
    assert found[3].low <= 10 / SET <= found[3].high
    assert [step for step, _ in told] == [100, 200, 300, 400]
    assert told[3][1]["mnemoscope/share"] == found[3].share
    rows = [json.loads(line) for line in (tmp_path / "out" / RECORD).read_text().splitlines()]
    assert [row["step"] for row in rows] == [100, 200, 300, 400]


def test_a_checkpoint_that_is_safe_by_chance_after_one_that_is_not_is_not_taken(
    tmp_path, clock, known
):
    watched = watch(tmp_path)
    for step, captions in ((1, []), (2, [0]), (3, [])):
        trained(watched, clock, known, step, captions)
    assert [one.safe for one in watched.checkpoints] == [True, False, True]
    assert watched.last_safe == 1


def test_later_samples_vouch_for_an_earlier_step(tmp_path, clock, known):
    watched = watch(tmp_path, budget=0.05)
    for step in range(1, 6):
        trained(watched, clock, known, step, [], seconds=3500.0)
    sampled = [one.sampled for one in watched.checkpoints]
    assert all(8 <= count < training.VOUCHING for count in sampled)
    # Two looks are as many, and the last alone is not.
    enough = max(at for at in range(5) if sum(sampled[at:]) >= training.VOUCHING) + 1
    assert 1 < enough < 5
    assert watched.last_safe == enough
    told = f"take step {enough}: no image was given back up to step 5; of "
    assert watched.advice.startswith(told)
    assert f" sampled from step {enough} to 5 none does" in watched.advice
    trained(watched, clock, known, 6, range(SET), seconds=3500.0)
    assert watched.last_safe == enough
    # A first look alone is all there is.
    watched.checkpoints = [watched.checkpoints[0], watched.checkpoints[-1]]
    assert watched.last_safe == 1


def test_the_budget_holds_over_the_training(tmp_path, clock, known):
    watched = watch(tmp_path, budget=0.05)
    for step in range(1, 9):
        trained(watched, clock, known, step, [0], seconds=1000.0)
        last = watched.checkpoints[-1]
        # No call costs more than was foreseen here, so it is never exceeded.
        assert last.spent <= 0.05 * last.trained
    looked = [one.calls for one in watched.checkpoints]
    assert last.trained == 8 * 1000
    # What does not reach is kept for later, and not lost.
    assert looked[0] == 0 < max(looked)
    assert last.spent > 0.02 * last.trained
    assert watched.checkpoints[0].safe is None


def test_calls_that_cost_more_than_foreseen_are_made_good(tmp_path, clock, known, monkeypatch):
    monkeypatch.setattr(training, "seconds_a_row", lambda bank: 0.1)
    watched = watch(tmp_path, budget=0.05)
    over = []
    for step in range(1, 11):
        trained(watched, clock, known, step, [], seconds=1500.0)
        last = watched.checkpoints[-1]
        over.append(last.spent / last.trained)
    assert max(over) > 0.05
    assert over[-1] <= 0.05


def test_a_checkpoint_that_is_passed_over_is_left_alone(tmp_path, clock, known, monkeypatch):
    loads = []
    monkeypatch.setattr(training, "load_model", lambda pipe: loads.append(pipe) or slow(clock, []))
    watched = watch(tmp_path, budget=0.05)
    for step in range(1, 13):
        trained(watched, clock, known, step, [], seconds=700.0)
    looked = [one for one in watched.checkpoints if one.calls]
    assert len(looked) > 1
    # Once to learn what a look costs, and once each time that there is enough for one.
    assert len(loads) == 1 + len(looked)


def sampled_at(folder, step):
    """Return the captions that a checkpoint sampled, in their order."""
    table = open_run(folder / f"step-{step:06d}").table("prompts")
    return [row["prompt"] for row in table.to_pylist()]


def test_the_nearest_are_looked_at_again_and_the_others_have_their_turn(tmp_path, clock, known):
    watched = watch(tmp_path, budget=0.05)
    for step in range(1, 7):
        trained(watched, clock, known, step, [], seconds=5000.0)
    looks = [sampled_at(tmp_path / "out", step) for step in range(1, 7)]
    assert [len(look) for look in looks] == [one.sampled for one in watched.checkpoints]
    assert all(8 <= len(look) < SET for look in looks)
    names = {prompt.prompt_id: prompt.text for prompt in watched.prompts}
    last, order = {}, [prompt.text for prompt in watched.prompts]
    for one, look in zip(watched.checkpoints, looks, strict=True):
        half = len(look) // 2 if last else 0
        assert look[:half] == sorted(last, key=lambda text: -last[text])[:half]
        # Those that were never looked at, then those that were so longest ago.
        turn = [t for t in [*(t for t in order if t not in last), *last] if t not in look[:half]]
        assert look[half:] == turn[: len(look) - half]
        for name, margin in one.margins.items():
            last.pop(names[name], None)
            last[names[name]] = margin
    assert len(last) == SET


def test_what_is_given_back_is_no_longer_looked_for(tmp_path, clock, known):
    watched = watch(tmp_path, budget=0.05)
    trained(watched, clock, known, 1, range(SET), seconds=5000.0)
    first = sampled_at(tmp_path / "out", 1)
    stray = {"stray"} & {*first}
    assert {*watched.checkpoints[0].given_back} == {*first} - stray
    trained(watched, clock, known, 2, range(SET), seconds=5000.0)
    assert not {*sampled_at(tmp_path / "out", 2)} & ({*first} - stray)


def test_of_a_first_look_that_is_not_safe_earlier_checkpoints_are_named(tmp_path, clock, known):
    watched = watch(tmp_path)
    trained(watched, clock, known, 100, [], seconds=1.0)
    trained(watched, clock, known, 200, [1])
    assert watched.last_safe is None
    assert watched.advice.endswith("was judged; audit an earlier one, or lift the budget")


def test_it_stops_a_training_where_that_is_asked_for(tmp_path, clock, known):
    watched = watch(tmp_path, stop=True)
    trained(watched, clock, known, 1, [])
    with pytest.raises(MemorizingError, match="take step 1"):
        trained(watched, clock, known, 2, [5])
    # What was found is on disk all the same.
    assert len((tmp_path / "out" / RECORD).read_text().splitlines()) == 2


def test_a_training_that_is_resumed_goes_on_in_its_folder(tmp_path, clock, known):
    first = watch(tmp_path)
    for step, captions in ((1, []), (2, []), (3, [1])):
        trained(first, clock, known, step, captions)
    again = watch(tmp_path)
    assert again.checkpoints == first.checkpoints
    assert again.last_safe == 2
    # Training went back to step 2, and does better this time.
    found = trained(again, clock, known, 3, [])
    assert [one.step for one in again.checkpoints] == [1, 2, 3]
    assert found.trained == first.checkpoints[-1].trained + 2000
    assert found.spent > first.checkpoints[-1].spent
    assert again.last_safe == 3


def test_a_folder_of_another_training_or_a_damaged_one_is_refused(tmp_path, clock, known):
    trained(watch(tmp_path), clock, known, 1, [])
    with pytest.raises(RunError, match="another data set or other options"):
        watch(tmp_path, seeds=3)
    (tmp_path / "out" / RECORD).write_text('{"audit": ')
    with pytest.raises(RunError, match="move it away"):
        watch(tmp_path)


def test_the_loss_on_what_is_held_out_is_measured(tmp_path, clock, known, monkeypatch):
    monkeypatch.setattr(training, "save_png", save_png)
    world(tmp_path / "held", n=SET, first=500)
    watched = watch(tmp_path, held_out=tmp_path / "held")
    losses = [
        trained(watched, clock, known, step, captions).quality["held_out_loss"]
        for step, captions in ((1, []), (2, range(SET)))
    ]
    # One who believes in other pictures under these captions denoises them worse.
    assert 0 < losses[0] < losses[1]
    panels = training._panels(watched.checkpoints)
    assert [panel.title for panel in panels] == ["Memorization", "Loss on held-out pictures"]
    assert [list(panel.series[0].x) for panel in panels] == [[1, 2]] * 2
    # All captions but one, which the world's model gives another picture.
    assert panels[0].series[0].y[1] == pytest.approx((SET - 1) / SET)
    assert (tmp_path / "out" / FIGURE).stat().st_size > 5000


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"budget": 0.0}, "budget"),
        ({"budget": 5.0}, "budget"),
        ({"captions": 2}, "captions"),
        ({"seeds": 0}, "seeds"),
        ({"stepps": 3}, "Did you mean 'steps'"),
        ({"judge": "nobody"}, "judge"),
    ],
)
def test_what_means_nothing_is_refused(tmp_path, clock, changes, word):
    with pytest.raises(InputError, match=word):
        watch(tmp_path, **changes)


def test_training_does_not_notice(tmp_path, monkeypatch):
    world(tmp_path / "set", n=12)
    pipe = tiny_pipeline()
    pipe.unet.requires_grad_(False)
    pipe.unet.add_adapter(LoraConfig(target_modules=["to_q", "conv1"], init_lora_weights=False))
    pipe.unet.train()
    trainable = [p for p in pipe.unet.parameters() if p.requires_grad]
    before_it = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    places = [weight.data_ptr() for weight in pipe.unet.parameters()]
    layers = [each for each in pipe.unet.modules() if isinstance(each, BaseTunerLayer)]
    folded = []
    load = training.load_model
    monkeypatch.setattr(
        training, "load_model", lambda pipe: folded.extend(x.merged for x in layers) or load(pipe)
    )
    modes = {name: module.training for name, module in pipe.unet.named_modules()}
    watched = TrainingAudit(tmp_path / "set", tmp_path / "out", captions=12, budget=1.0, steps=2)
    watched._since -= 1e4
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = watched.on_checkpoint(pipe, 7)
    assert found.sampled == 12
    assert torch.equal(before, torch.get_rng_state())
    assert {name: module.training for name, module in pipe.unet.named_modules()} == modes
    left = [p for p in pipe.unet.parameters() if p.requires_grad]
    assert [p.data_ptr() for p in left] == [p.data_ptr() for p in trainable]
    assert [weight.data_ptr() for weight in pipe.unet.parameters()] == places
    state = pipe.unet.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in before_it.items())
    # While pictures are sampled, the adapter lies in the weights.
    assert layers
    assert folded == [True] * len(layers)
    assert not any(layer.merged for layer in layers)
    assert not pipe.vae.training


def test_a_script_is_followed_wherever_accelerate_saves(tmp_path, clock, known):
    accelerator, told = Accelerator(cpu=True), []
    accelerator.log = lambda numbers, step: told.append(step)
    network = accelerator.prepare(torch.nn.Linear(2, 2))
    watched = watch(tmp_path)
    made = []
    watched.follow(accelerator, lambda: made.append(network) or PIPE)
    clock.now += 2000
    accelerator.save_state(str(tmp_path / "checkpoint-500"))
    assert [one.step for one in watched.checkpoints] == [500] == told
    assert made == [network]


def test_the_python_of_the_how_to_page_runs(tmp_path, clock, known, monkeypatch, capsys):
    for name, first in (("pictures", 0), ("other-pictures", 500)):
        world(tmp_path / name, n=SET, first=first)
    known[:] = range(SET)

    def train(batch):
        clock.now += 100

    monkeypatch.chdir(tmp_path)
    names = {"loader": range(500), "train": train, "pipe": PIPE}
    exec(compile(blocks_of("docs/how-to/lora.md")[0], "lora.md", "exec"), names)
    assert [one.step for one in names["watch"].checkpoints] == [500]
    assert "give a training image back" in capsys.readouterr().out


def test_it_is_a_public_name():
    assert mnemoscope.TrainingAudit is TrainingAudit
