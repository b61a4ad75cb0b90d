"""A chain: each part acts on what those before it made, and sees its own branches alone."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from mnemoscope.errors import InputError
from mnemoscope.models import load_model
from mnemoscope.sampling.chain import Chain
from mnemoscope.sampling.hooks import Intervention
from tests.sampling.test_hooks import Named, Nothing, run
from tests.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def model():
    return load_model(tiny_pipeline(), device="cpu")


@dataclass(frozen=True)
class Scaled(Named):
    by: float = 0.5

    def guide(self, step):
        return step.guided(step.guidance * self.by)


@dataclass(frozen=True)
class Turned(Named):
    def noise(self, start):
        return -start.noise

    def condition(self, start):
        return start.cond.take([1, 0])


@dataclass(frozen=True)
class Styled(Named):
    branches_asked: ClassVar[tuple[str, ...]] = ("style",)
    memory: ClassVar[int] = 1
    text: str = "fog"

    def branches(self, start):
        return {"style": start.encode([self.text] * len(start.prompts))}

    def guide(self, step):
        assert {"cond", "uncond", "style"} <= set(step.raw)
        assert all("style" in one.raw for one in (*step.history, step.first))
        assert len(step.history) == min(1, step.point.call)
        return step.guided() + 0.1 * (step.raw["style"] - step.raw["uncond"])


def test_parts_that_leave_the_guide_alone_change_nothing_there(model):
    chain = Chain((Nothing(), Turned(), Nothing()))
    assert torch.equal(run(model, chain).latents, run(model, Turned()).latents)
    assert not torch.equal(run(model, chain).latents, run(model).latents)
    assert torch.equal(run(model, Chain((Nothing(), Nothing()))).latents, run(model).latents)


def test_noise_and_condition_pass_through_all_parts(model):
    twice = Chain((Turned(), Turned()))
    assert torch.equal(run(model, twice).latents, run(model).latents)


def test_a_guide_acts_on_what_the_one_before_said(model):
    # Halved and halved again is a quarter of g; so is one part that quarters it.
    twice = run(model, Chain((Scaled(0.5), Scaled(0.5)))).latents
    torch.testing.assert_close(twice, run(model, Scaled(0.25)).latents, atol=1e-5, rtol=1e-5)
    assert float((twice - run(model, Scaled(0.5)).latents).abs().max()) > 1e-4


def test_branches_of_one_name_stay_apart(model):
    chain = Chain((Styled(text="fog"), Styled(text="paint")))
    assert chain.branches_asked == ("0:style", "1:style")
    assert chain.memory == 1
    seen = []
    got = run(model, chain, observers=[seen.append]).latents

    @dataclass(frozen=True)
    class Both(Named):
        branches_asked: ClassVar[tuple[str, ...]] = ("fog", "paint")

        def branches(self, start):
            rows = len(start.prompts)
            return {"fog": start.encode(["fog"] * rows), "paint": start.encode(["paint"] * rows)}

        def guide(self, step):
            uncond = step.raw["uncond"]
            return step.guided() + 0.1 * sum(step.raw[b] - uncond for b in self.branches_asked)

    assert set(seen[0].others) == {"0:style", "1:style"}
    torch.testing.assert_close(got, run(model, Both()).latents, atol=1e-5, rtol=1e-5)


def test_attention_passes_through_the_parts_that_act_on_it(model):
    @dataclass(frozen=True)
    class Hiding(Named):
        place: int = 1

        def attention(self, logits, at):
            rows = [row for row, name in enumerate(at.branches) if name == "cond"]
            changed = logits.clone()
            changed[rows, :, :, self.place] = -torch.inf
            return changed

    @dataclass(frozen=True)
    class HidingTwo(Named):
        def attention(self, logits, at):
            return Hiding(2).attention(Hiding(1).attention(logits, at), at)

    chain = Chain((Hiding(1), Nothing(), Hiding(2)))
    assert chain.attends
    assert not Chain((Nothing(), Turned())).attends
    assert torch.equal(run(model, chain).latents, run(model, HidingTwo()).latents)


def test_what_parts_ask_for_adds_up():
    @dataclass(frozen=True)
    class Asking(Named):
        together: ClassVar[bool] = True

        @property
        def calls_before(self):
            return 6

    chain = Chain((Asking(), Nothing(), Asking()))
    assert chain.calls_before == 12
    assert chain.together
    assert not Chain((Nothing(), Nothing())).together
    assert str(Chain((Nothing(), Scaled(0.5)))) == "named+named(by=0.5)"
    assert isinstance(chain, Intervention)
    assert hash(chain) == hash(Chain((Asking(), Nothing(), Asking())))


def test_one_part_is_no_chain():
    with pytest.raises(InputError, match="two or more"):
        Chain((Nothing(),))
