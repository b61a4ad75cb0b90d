"""Interventions: the identity changes nothing, what was used is what is recorded, bad hooks."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from mnemoscope.core.gram import Gram
from mnemoscope.core.level import final_level, levels_of
from mnemoscope.core.predict import Prediction
from mnemoscope.core.record import Recorder
from mnemoscope.errors import InputError, ModelError
from mnemoscope.evidence.bank import Counted
from mnemoscope.models import load_model
from mnemoscope.sampling.attention import cross_attentions, watch
from mnemoscope.sampling.hooks import Intervention
from mnemoscope.sampling.loop import Branches, generators_of, initial_noise, sample
from tests.tiny import tiny_pipeline

PROMPTS = ("a cat", "a dog on the moon")
ENDS = (5, 14)
"""One token a letter, after the begin mark."""
STEPS, G = 4, 5.0


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def model(request):
    return load_model(tiny_pipeline(request.param), device="cpu")


@pytest.fixture(scope="module")
def eps_model():
    return load_model(tiny_pipeline(), device="cpu")


def run(model, intervention=None, *, denoiser=None, guidance=G, name="ddim", observers=(), **more):
    generators = generators_of([0, 1])
    return sample(
        denoiser or model.denoiser,
        model.make_scheduler(name, STEPS),
        initial_noise(generators, model.latent_shape),
        Branches(
            model.encode_prompts(PROMPTS),
            model.encode_blank().expand(2),
            PROMPTS,
            torch.tensor(ENDS),
            torch.tensor([0, 1]),
            lambda: model.words,
        ),
        guidance,
        generators,
        observers=observers,
        intervention=intervention,
        encode=model.encode_prompts,
        **more,
    )


class Named(Intervention):
    name: ClassVar[str] = "named"
    source: ClassVar[str] = "this test"


@dataclass(frozen=True)
class Nothing(Named):
    """Overrides nothing."""


@dataclass(frozen=True)
class Same(Named):
    """Overrides every hook but attention, and changes nothing."""

    def condition(self, start):
        return start.encode(start.prompts)

    def branches(self, start):
        return {}

    def noise(self, start):
        return 1 * start.noise

    def guide(self, step):
        uncond, cond = step.raw["uncond"], step.raw["cond"]
        return uncond + step.guidance * (cond - uncond)


@pytest.mark.parametrize("intervention", [Nothing(), Same()], ids=str)
@pytest.mark.parametrize("name", ["ddim", "euler-ancestral"])
def test_the_identity_is_bit_for_bit_plain_guidance(model, name, intervention):
    plain = run(model, name=name)
    assert torch.equal(run(model, intervention, name=name).latents, plain.latents)
    assert plain.ok.all()


@dataclass(frozen=True)
class Weighted(Named):
    """A guide that changes from call to call and from sample to sample."""

    def guide(self, step):
        scales = torch.tensor([1.0, 4.0]) + 2.0 * step.point.call
        uncond = step.prediction("uncond")
        # One sample is pulled in its clean estimate, by arithmetic of its own.
        pulled = Prediction(0.5 * uncond.x0, self._eps(step, 0.5 * uncond.x0))
        guided = step.guided(scales)
        return torch.cat([guided[:1], 0.7 * guided[1:] + 0.3 * step.raw_of(pulled)[1:]])

    def _eps(self, step, x0):
        return (step.x - step.point.level.alpha * x0) / step.point.level.sigma


class Watching:
    """What a scheduler's step is really given."""

    def __init__(self, monkeypatch, scheduler):
        self.given = []
        kind, whole = type(scheduler), type(scheduler).step

        def step(this, model_output, timestep, sample, *args, **more):
            self.given.append((model_output.clone(), sample.clone()))
            return whole(this, model_output, timestep, sample, *args, **more)

        # The loop asks for the parameters of a step by name.
        step.__wrapped__ = whole
        monkeypatch.setattr(kind, "step", step)


def test_the_record_holds_what_the_scheduler_was_given(model, monkeypatch):
    scheduler = model.make_scheduler("ddim", STEPS)
    given = Watching(monkeypatch, scheduler).given
    recorder = Recorder()
    done = run(model, Weighted(), observers=[recorder])
    tape = recorder.trajectory(done.latents)
    levels = levels_of(scheduler)
    assert len(given) == STEPS
    for call, (raw, x) in enumerate(given):
        told = Prediction.from_raw(model.kind, raw, x, levels.at(call))
        torch.testing.assert_close(tape.eps("g")[:, call], told.eps.flatten(1), atol=5e-5, rtol=0)
        torch.testing.assert_close(tape.x0("g")[:, call], told.x0.flatten(1), atol=5e-4, rtol=1e-5)
    plain = Recorder()
    run(model, observers=[plain])
    other = plain.trajectory()
    # The branches at the first call are those of the plain path, the guided prediction is not.
    assert torch.equal(tape.v_c[:, 0], other.v_c[:, 0])
    assert not torch.allclose(tape.v_g[:, 0], other.v_g[:, 0], atol=1e-3)


def test_norms_of_the_record_are_those_of_the_tape(model):
    recorder = Recorder()
    done = run(model, Weighted(), observers=[recorder])
    tape = recorder.trajectory(done.latents)
    final = final_level(model.make_scheduler("ddim", STEPS)).unit()
    gram = Gram.of(tape, final=final)
    alpha, sigma = (part[:, None] for part in tape.level)
    x, v = tape.x.double(), tape.v_g.double()
    for name, vector in (("eps_g", sigma * x + alpha * v), ("x0_g", alpha * x - sigma * v)):
        norms = vector.square().mean(dim=2).sqrt()
        torch.testing.assert_close(gram.rms(name), norms, rtol=1e-9, atol=1e-12)
    # No constant scale makes it: the weight of the gap differs between calls and samples.
    weight = gram.fit("eps_g", ["eps_u", "eps_c"]).weights[..., 1]
    assert len({round(float(w), 2) for w in weight.flatten()}) == weight.numel()


@dataclass(frozen=True)
class Third(Named):
    """Asks for two further branches and uses one."""

    branches_asked: ClassVar[tuple[str, ...]] = ("style", "fog")
    memory: ClassVar[int] = 0

    def branches(self, start):
        return {"style": start.encode(["paint"] * 2), "fog": start.encode(["fog"] * 2)}

    def guide(self, step):
        return step.guided() + 0.5 * (step.raw["fog"] - step.raw["uncond"])


def test_further_branches_are_evaluated_in_the_same_call_and_counted(model):
    network, seen = Counted(model.denoiser), []
    done = run(model, Third(), denoiser=network, observers=[seen.append])
    assert network.rows == 4 * 2 * STEPS
    assert [set(call.others) for call in seen] == [{"style", "fog"}] * STEPS
    assert not torch.equal(done.latents, run(model).latents)
    # The prediction under a further condition is that of the network under it.
    first = seen[0]
    level = levels_of(model.make_scheduler("ddim", STEPS)).at(0)
    with torch.no_grad():
        raw = model.denoiser(first.x, first.point.timestep, model.encode_prompts(["fog", "fog"]))
    told = Prediction.from_raw(model.kind, raw, first.x, level.unit())
    torch.testing.assert_close(first.others["fog"].eps, told.eps, atol=5e-6, rtol=0)


@pytest.mark.parametrize("memory", [0, 1, 2])
def test_a_guide_is_shown_as_many_calls_as_it_remembers(eps_model, memory):
    seen = []
    size = memory

    @dataclass(frozen=True)
    class Remembering(Named):
        memory: ClassVar[int] = size

        def guide(self, step):
            seen.append((step.point.call, [old.point.call for old in step.history], step.calls))
            return step.guided()

    run(eps_model, Remembering())
    wanted = [(call, list(range(max(0, call - memory), call)), STEPS) for call in range(STEPS)]
    assert seen == wanted


def test_noise_and_condition_are_what_the_hooks_make_of_them(model):
    @dataclass(frozen=True)
    class Turned(Named):
        def noise(self, start):
            assert start.prompts == PROMPTS
            return -start.noise

        def condition(self, start):
            return start.cond.take([1, 0])

    recorder, plain = Recorder(), Recorder()
    run(model, Turned(), observers=[recorder])
    run(model, observers=[plain])
    turned, usual = recorder.trajectory(), plain.trajectory()
    assert torch.equal(turned.x[:, 0], -usual.x[:, 0])
    noise = initial_noise(generators_of([0, 1]), model.latent_shape)
    timestep = model.make_scheduler("ddim", STEPS).timesteps[0]
    with torch.no_grad():
        raw = model.denoiser(-noise, timestep, model.encode_prompts(PROMPTS[::-1]))
    level = levels_of(model.make_scheduler("ddim", STEPS)).at(0).unit()
    told = Prediction.from_raw(model.kind, raw, -noise, level)
    torch.testing.assert_close(turned.eps("c")[:, 0], told.eps.flatten(1), atol=5e-6, rtol=0)


def broken(hook, made, asked=()):
    """Build an intervention with one hook that goes wrong."""
    names = asked

    @dataclass(frozen=True)
    class Broken(Named):
        branches_asked: ClassVar[tuple[str, ...]] = names

    def bad(self, *given):
        return made(*given)

    setattr(Broken, hook, bad)
    return Broken()


def raising(*given):
    raise ValueError("of my own")


def mismatched(*given):
    return torch.zeros(2, 3) @ torch.zeros(2, 3)


BROKEN = {
    "condition raises": ("condition", raising, "ValueError: of my own"),
    "condition of no sort": ("condition", lambda start: torch.zeros(2, 3), "Tensor"),
    "condition of other rows": ("condition", lambda start: start.cond.take([0]), "1 rows"),
    "branches raises": ("branches", raising, "ValueError: of my own"),
    "branches of other names": ("branches", lambda start: {"else": start.cond}, "else"),
    "branches of no sort": ("branches", lambda start: [start.cond], "list"),
    "branches of other rows": ("branches", lambda start: {"more": start.cond.take([0])}, "1 rows"),
    "noise raises": ("noise", raising, "ValueError: of my own"),
    "noise of another shape": ("noise", lambda start: start.noise[:, :1], "(2, 1, 8, 8)"),
    "noise of another type": ("noise", lambda start: start.noise.double(), "float64"),
    "guide raises": ("guide", raising, "ValueError: of my own"),
    "guide with a slip": ("guide", mismatched, "RuntimeError"),
    "guide of another shape": ("guide", lambda s: s.guided()[:1], "(1, 4, 8, 8)"),
    "guide of another type": ("guide", lambda s: s.guided().half(), "float16"),
    "guide of no sort": ("guide", lambda s: None, "NoneType"),
    "guide misses a branch": ("guide", lambda s: s.raw["else"], "KeyError: 'else'"),
    "attention raises": ("attention", raising, "ValueError: of my own"),
    "attention with a slip": ("attention", mismatched, "RuntimeError"),
    "attention of another shape": ("attention", lambda a, at: a[:, :1], "expected torch.float32"),
    "attention of another type": ("attention", lambda a, at: a.double(), "float64"),
    "attention of no sort": ("attention", lambda a, at: 3, "int"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_hook_that_goes_wrong_is_named_and_leaves_the_network_as_it_was(eps_model, what):
    hook, made, word = BROKEN[what]
    asked = ("more",) if hook == "branches" else ()
    layers = [layer for _, layer in cross_attentions(eps_model.denoiser.network)]
    before = [layer.processor for layer in layers]
    with pytest.raises(InputError) as told:
        run(eps_model, broken(hook, made, asked))
    assert "named" in str(told.value)
    assert f"`{hook}`" in str(told.value)
    assert word in str(told.value)
    assert [layer.processor for layer in layers] == before


def test_memory_that_runs_out_in_a_hook_is_not_its_fault(eps_model):
    def full(step):
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError, match="out of memory") as told:
        run(eps_model, broken("guide", full))
    assert not isinstance(told.value, InputError)


def test_prompts_cannot_be_encoded_where_nobody_says_how(eps_model):
    noise = initial_noise(generators_of([0]), eps_model.latent_shape)
    rows = Branches(eps_model.encode_prompts(["a"]), eps_model.encode_blank(), ("a",))
    scheduler = eps_model.make_scheduler("ddim", 2)
    with pytest.raises(InputError, match="`encode`"):
        sample(eps_model.denoiser, scheduler, noise, rows, 2.0, intervention=Same())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_guide_that_is_not_finite_marks_its_sample_alone(model, value):
    @dataclass(frozen=True)
    class Bursting(Named):
        def guide(self, step):
            used = step.guided()
            if step.point.call == 2:
                used[1, 0, 0, 0] = value
            return used

    done = run(model, Bursting())
    assert done.nonfinite.tolist() == [-1, 2]
    assert torch.equal(done.latents[0], run(model).latents[0])


# Before the first call


def test_the_network_is_asked_as_it_is_called_and_counted(model):
    seen = []

    @dataclass(frozen=True)
    class Asking(Named):
        def noise(self, start):
            seen.append((start, start.gap(start.noise)))
            start.gap(start.noise[:1], start.cond.take([0]), torch.tensor([1]))
            return start.noise

    kept = []
    done = run(model, Asking(), observers=[kept.append])
    start, gap = seen[0]
    first = kept[0]
    torch.testing.assert_close(gap, first.cond.eps - first.uncond.eps, atol=2e-5, rtol=1e-4)
    assert done.before.tolist() == [2, 4]
    assert start.seeds == (0, 1)
    assert len(start.points) == STEPS
    assert torch.equal(done.latents, run(model).latents)


def test_a_gradient_through_the_network_counts_three_calls(model):
    found = {}

    @dataclass(frozen=True)
    class Descending(Named):
        def condition(self, start):
            with torch.enable_grad():
                embedding = start.cond.embedding.clone().requires_grad_()
                gap = start.gap(start.noise, start.cond.embedded(embedding))
                (found["gradient"],) = torch.autograd.grad(gap.square().sum(), embedding)
            found["start"] = start
            return start.cond

    done = run(model, Descending())
    assert done.before.tolist() == [4, 4]
    start, gradient = found["start"], found["gradient"]
    toward = torch.randn(gradient.shape, generator=generators_of([3])[0])
    h = 1e-2

    def loss(step):
        moved = start.cond.embedded(start.cond.embedding + step * toward)
        return float(start.gap(start.noise, moved).double().square().sum())

    slope = (loss(h) - loss(-h)) / (2 * h)
    assert float((gradient * toward).sum()) == pytest.approx(slope, rel=2e-2)


def test_the_first_call_and_the_groups_reach_every_guide(eps_model):
    seen = []

    @dataclass(frozen=True)
    class Keeping(Named):
        def guide(self, step):
            seen.append((step.first.point.call, step.share, step.groups.tolist()))
            return step.guided()

    run(eps_model, Keeping())
    assert seen == [(0, call / STEPS, [0, 1]) for call in range(STEPS)]


def test_words_are_those_of_the_tokenizer_and_none_is_special(eps_model):
    words = eps_model.words
    assert {"a", "z", "!"} <= set(words)
    assert not any("<|" in word or not word.strip() for word in words)
    assert load_model("oracle:mixture").words == ()


# Attention


@dataclass(frozen=True)
class Looking(Named):
    """Leaves attention as it is."""

    def attention(self, logits, at):
        return 1 * logits


@dataclass(frozen=True)
class Blind(Named):
    """Hides the end token of the prompts' rows."""

    def attention(self, logits, at):
        hidden = logits.clone()
        rows = [row for row, name in enumerate(at.branches) if name == "cond"]
        hidden[rows, :, :, at.end[rows]] = -torch.inf
        return hidden


def test_attention_left_as_it_is_gives_the_same_picture(model):
    # The layers compute softmax(logits)·V themselves, in another order than the fused kernel.
    torch.testing.assert_close(
        run(model, Looking()).latents, run(model).latents, atol=1e-5, rtol=1e-5
    )


def test_hiding_the_end_token_changes_the_picture(model):
    assert float((run(model, Blind()).latents - run(model).latents).abs().max()) > 1e-4


def test_it_is_told_which_rows_layers_and_tokens_it_sees(eps_model):
    seen = []

    @dataclass(frozen=True)
    class Noting(Third):
        def attention(self, logits, at):
            seen.append((at.layer, at.down, at.call, at.branches, at.end.tolist(), logits.shape))
            return logits

    run(eps_model, Noting())
    layers = [name for name, _ in cross_attentions(eps_model.denoiser.network)]
    assert {name for name, *_ in seen} == set(layers)
    assert len(seen) == STEPS * len(layers)
    for name, down, _, branches, end, shape in seen:
        assert down == name.startswith("down_blocks")
        assert branches == ("uncond",) * 2 + ("cond",) * 2 + ("style",) * 2 + ("fog",) * 2
        # The empty prompt ends right after the begin mark.
        assert end[:4] == [1, 1, *ENDS]
        assert shape[0] == 8
        assert shape[3] == eps_model.window
    assert sorted({call for _, _, call, *_ in seen}) == list(range(STEPS))


def test_end_positions_are_those_of_the_end_tokens(eps_model):
    tokenizer = eps_model.pipeline.tokenizer
    rows = tokenizer(list(PROMPTS), padding="max_length", max_length=77).input_ids
    assert [row.index(tokenizer.eos_token_id) for row in rows] == list(ENDS)
    blank = tokenizer([""], padding="max_length", max_length=77).input_ids[0]
    assert blank.index(tokenizer.eos_token_id) == 1


def test_a_watch_sees_the_attention_that_was_used(eps_model):
    with watch(eps_model.denoiser.network) as seen:
        seen.end = torch.tensor(ENDS)
        run(eps_model, Blind(), seen=seen)
    assert len(seen.tokens) == STEPS
    for row, end in enumerate(ENDS):
        assert float(seen.tokens[-1][row, :, end].abs().max()) == 0
        torch.testing.assert_close(seen.tokens[-1][row].sum(dim=1), torch.ones(4))
    assert float(seen.maps.abs().max()) == 0


def test_attention_needs_to_know_where_prompts_end(eps_model):
    noise = initial_noise(generators_of([0]), eps_model.latent_shape)
    rows = Branches(eps_model.encode_prompts(["a"]), eps_model.encode_blank(), ("a",))
    scheduler = eps_model.make_scheduler("ddim", 2)
    with pytest.raises(InputError, match=r"Branches\.end"):
        sample(eps_model.denoiser, scheduler, noise, rows, 2.0, intervention=Looking())


def test_a_network_without_cross_attention_is_refused():
    oracle = load_model("oracle:mixture")
    noise = initial_noise(generators_of([0]), oracle.latent_shape)
    rows = Branches(oracle.encode_prompts(["a"]), oracle.encode_blank(), ("a",), torch.tensor([1]))
    with pytest.raises(ModelError, match="named acts on cross-attention"):
        sample(
            oracle.denoiser,
            oracle.make_scheduler("ddim", 2),
            noise,
            rows,
            2.0,
            intervention=Looking(),
        )


# What an intervention is


def test_it_prints_as_the_command_line_takes_it():
    @dataclass(frozen=True)
    class Set(Named):
        start: float = 0.5
        mode: str = "soft"

    assert str(Nothing()) == "named"
    assert str(Set(start=0.25)) == "named(start=0.25,mode=soft)"
    assert Set(mode="hard").settings == {"start": 0.5, "mode": "hard"}
    assert hash(Set()) == hash(Set())
    assert not Set().attends
    assert Looking().attends


def test_a_step_says_the_same_in_clean_estimates_and_in_raw_outputs(model):
    kept = []

    @dataclass(frozen=True)
    class Keeping(Named):
        def guide(self, step):
            kept.append(step)
            return step.guided()

    run(model, Keeping())
    for step in kept:
        said = step.prediction("cond")
        alpha, sigma = (part.to(step.x) for part in step.point.level)
        torch.testing.assert_close(alpha * said.x0 + sigma * said.eps, step.x, atol=1e-5, rtol=0)
        torch.testing.assert_close(step.raw_of(said), step.raw["cond"], atol=1e-5, rtol=0)
        whole = step.guided(torch.tensor([1.0, 2.0]))
        torch.testing.assert_close(whole[0], step.raw["cond"][0], atol=1e-6, rtol=0)
        torch.testing.assert_close(whole[1], step.guided(2.0)[1])
