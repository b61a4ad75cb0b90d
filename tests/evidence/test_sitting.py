"""Sittings: the path of the unmodified pipeline, whatever the batches; failures stay apart."""

import pytest
import torch

from mnemoscope.data.prompts import Prompt
from mnemoscope.evidence import Bank
from mnemoscope.evidence.gather import sit
from mnemoscope.evidence.pieces.end_attention import EndAttention
from mnemoscope.evidence.pieces.path import PathRecord
from mnemoscope.evidence.pieces.whole_path import WholePath
from mnemoscope.models import load_model
from mnemoscope.sampling.hooks import Intervention
from mnemoscope.sampling.loop import generators_of
from mnemoscope.sampling.recipe import Recipe
from tests.tiny import tiny_pipeline

PROMPTS = [Prompt("p0", "a picture"), Prompt("p1", "another one"), Prompt("p2", "a third")]
STEPS, SEEDS = 4, 2


@pytest.fixture(scope="module")
def model():
    return load_model(tiny_pipeline(), device="cpu")


def bank_of(model, batch=None, **options):
    return Bank(model, Recipe(**{"scheduler": "ddim", "steps": STEPS} | options), SEEDS, batch)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "ddpm"])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_final_latents_are_those_of_the_unmodified_pipeline(model, scheduler, guidance):
    bank = bank_of(model, batch=6, scheduler=scheduler, guidance=guidance, seed=3)
    sitting = sit(bank, PROMPTS, range(3), [WholePath()])
    seeds = [bank.recipe.sample_seed(PROMPTS[p].prompt_id, p, s) for p, s in sitting.keys]
    texts = [PROMPTS[p].text for p, _ in sitting.keys]
    host = model.host_latents(texts, bank.scheduler, STEPS, guidance, generators_of(seeds))
    assert torch.equal(sitting.final, host)
    assert torch.equal(sitting.tape.x_0, host.flatten(1))


@pytest.mark.parametrize("batch", [1, 4, 5])
def test_batches_may_cut_through_prompts(model, batch):
    whole = sit(bank_of(model, 6), PROMPTS, range(3), [WholePath(), EndAttention()])
    cut = sit(bank_of(model, batch), PROMPTS, range(3), [WholePath(), EndAttention()])
    torch.testing.assert_close(cut.final, whole.final, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(cut.tape.v_g, whole.tape.v_g, atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(cut.looked.ends, whole.looked.ends, atol=5e-6, rtol=0)
    assert cut.keys == whole.keys == [(p, s) for p in range(3) for s in range(SEEDS)]


def test_a_sample_is_named_by_its_prompt_and_not_by_its_place(model):
    whole = sit(bank_of(model), PROMPTS, range(3), [WholePath()])
    last = sit(bank_of(model), PROMPTS[2:], [7], [WholePath()])
    torch.testing.assert_close(last.final, whole.final[4:], atol=2e-5, rtol=1e-5)
    fresh = bank_of(model, noise="fresh")
    first, moved = (sit(fresh, PROMPTS[:1], [at], [WholePath()]) for at in (0, 7))
    assert not torch.allclose(first.final, moved.final, atol=1e-2)


def test_a_path_is_as_long_as_asked(model):
    bank = bank_of(model)
    short = sit(bank, PROMPTS, range(3), [PathRecord(1), PathRecord(2)])
    assert short.tape.calls == 2
    assert short.final.isnan().all()
    assert bank.network.rows == 2 * 2 * 3 * SEEDS
    none = sit(bank, PROMPTS, range(3), [])
    assert none.tape is None
    assert none.outcomes == ()


def failing(model, how):
    """Let the network fail for the samples of one prompt, from the second call on."""
    victim = model.encode_prompts(["another one"]).embedding[0]
    inner = model.denoiser

    class Failing:
        kind = inner.kind
        joint, order, network = inner.joint, inner.order, inner.network

        def __call__(self, x, timestep, condition):
            out = inner(x, timestep, condition)
            hit = (condition.embedding == victim).flatten(1).all(dim=1)
            if not bool(hit.any()) or int(timestep) > 600:
                return out
            if how == "raise":
                raise RuntimeError("a fuse blew")
            out = out.clone()
            out[hit] = float(how)
            return out

    return Failing()


@pytest.mark.parametrize("how", ["nan", "inf", "raise"])
@pytest.mark.parametrize("batch", [1, 4, 6])
def test_what_fails_is_marked_and_disturbs_no_other(model, how, batch):
    whole = sit(bank_of(model, 6), PROMPTS, range(3), [WholePath()])
    bank = bank_of(model, batch)
    bank.network.inner = failing(model, how)
    broken = sit(bank, PROMPTS, range(3), [WholePath()])
    status = "error" if how == "raise" else "nonfinite"
    assert [outcome.status for outcome in broken.outcomes] == ["ok"] * 2 + [status] * 2 + ["ok"] * 2
    told = broken.outcomes[2].reason
    assert ("a fuse blew" in told) if how == "raise" else ("at call 1" in told)
    torch.testing.assert_close(
        broken.final[broken.ok], whole.final[broken.ok], atol=2e-5, rtol=1e-5
    )
    if how == "raise":
        assert broken.tape.x[~broken.ok].isnan().all()
        assert broken.final[~broken.ok].isnan().all()


def test_all_that_fails_leaves_no_tape(model):
    bank = bank_of(model)
    bank.network.inner = failing(model, "raise")
    broken = sit(bank, PROMPTS[1:2], [0], [WholePath()])
    assert broken.tape is None
    assert not broken.ok.any()


def test_an_intervention_is_told_prompts_and_encodes_its_own(model):
    seen = []

    class Replacing(Intervention):
        name = "replacing"
        source = "this test"

        def condition(self, start):
            seen.append(start.prompts)
            return start.encode(["a third"] * len(start.prompts))

    steered = sit(bank_of(model, 4, intervention=Replacing()), PROMPTS, range(3), [WholePath()])
    texts = [prompt.text for prompt in PROMPTS]
    assert [text for batch in seen for text in batch] == [t for t in texts for _ in range(SEEDS)]
    plain = sit(bank_of(model, 4), PROMPTS, range(3), [WholePath()])
    torch.testing.assert_close(steered.final[4:], plain.final[4:], atol=2e-5, rtol=1e-5)
    assert not torch.allclose(steered.final[:4], plain.final[:4], atol=1e-3)


def test_attention_is_watched_where_an_intervention_acts_on_it(model):
    class Blind(Intervention):
        name = "blind"
        source = "this test"

        def attention(self, logits, at):
            hidden = logits.clone()
            for row, end in enumerate(at.end.tolist()):
                hidden[row, :, :, end] = -torch.inf
            return hidden

    bank = bank_of(model, intervention=Blind())
    sitting = sit(bank, PROMPTS, range(3), [WholePath(), EndAttention()])
    assert sitting.ok.all()
    assert float(sitting.looked.ends.abs().max()) == 0
