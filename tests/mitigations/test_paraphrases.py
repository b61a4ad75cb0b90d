"""PRSS: ramp and guide by the authors' formula, the choice of a wording sample by sample."""

import json

import pytest
import torch

from mnemoscope.core.predict import Prediction
from mnemoscope.errors import InputError
from mnemoscope.mitigations.paraphrase_guidance import ParaphraseGuidance, wordings
from tests.mitigations.steps import G, drawn, start_of, step_of


def pulling(x, condition, rows):
    """Pull by the first letter: a by 0.01, b by 0.02 and so on; the empty prompt not at all."""
    first = (condition.embedding[:, 0, 0] * 100).round()
    pull = torch.where(first == 32, 0.0, (first - 96) / 100)
    return Prediction(x, pull[:, None, None, None] * torch.ones_like(x))


def test_the_ramp_is_that_of_the_authors():
    method = ParaphraseGuidance(floor=3.0, ceiling=5.0)
    pulls = torch.tensor([3.0, 4.0, 5.0, 9.0])
    zero = (7.5 * 3 - 5) / 6.5
    wanted = [min(7.5 * (m - zero) / (5 - zero), 7.5) for m in pulls.tolist()]
    torch.testing.assert_close(method.ramp(pulls, 7.5), torch.tensor(wanted))
    assert wanted[0] == pytest.approx(1)
    assert wanted[2] == pytest.approx(7.5)
    twice = ParaphraseGuidance(floor=3.0, ceiling=5.0, strength=2.0).ramp(pulls / 2, 7.5)
    torch.testing.assert_close(twice, torch.tensor(wanted))


def test_the_prompt_is_the_anchor_where_the_wording_still_pulls():
    anchor = drawn(400, 2, 4, 8, 8)
    step = step_of(branches={"anchor": anchor})
    cond, uncond = step.raw["cond"], step.raw["uncond"]
    pull = (cond - uncond).square().flatten(1).mean(1).sqrt()
    # The ramp of the first sample is halfway; the second is below its floor.
    method = ParaphraseGuidance(limit=1e-6, floor=0.5 * float(pull[0]), ceiling=2 * float(pull[0]))
    scale = float(method.ramp(pull, G)[0])
    assert 1 < scale < G
    wanted = anchor + scale * (cond - anchor) + (G - scale) * (cond - uncond)
    torch.testing.assert_close(method.guide(step)[0], wanted[0], atol=1e-4, rtol=1e-4)
    high = ParaphraseGuidance(limit=1e-6, floor=2 * float(pull.max()), ceiling=1e3)
    assert torch.equal(high.guide(step), step.guided())
    calm = ParaphraseGuidance(limit=1e3, floor=1e-6, ceiling=1e3)
    assert torch.equal(calm.guide(step), step.guided())


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "wordings.jsonl"
    rows = [
        {"prompt": "zebra", "paraphrases": ["yak", "cow", "bee", "ant"]},
        {"prompt": "horse", "paraphrases": ["goat", "fox"]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return str(path)


def test_the_first_wording_that_will_do_or_the_least(listed):
    method = ParaphraseGuidance(paraphrases=listed, limit=0.025)
    asked = []

    def predict(x, condition, rows):
        asked.append(rows.tolist())
        return pulling(x, condition, rows)

    prompts = ("zebra", "horse", "bear", "zoo")
    start = start_of(prompts, predict)
    chosen = method.condition(start).embedding
    # bee (0.02) is the first under the limit, and ant is not asked; fox (0.06) the least of two;
    # bear is calm enough itself; of zoo no wording is known.
    wanted = start.encode(("bee", "fox", "bear", "zoo")).embedding
    torch.testing.assert_close(chosen, wanted)
    assert asked == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1], [0, 1], [0]]
    assert len(asked) <= method.calls_before
    torch.testing.assert_close(
        method.branches(start)["anchor"].embedding, start.encode(prompts).embedding
    )


def test_files_that_say_nothing_are_refused(tmp_path, listed):
    assert wordings(listed)["horse"] == ("goat", "fox")
    with pytest.raises(InputError, match="cannot be read"):
        ParaphraseGuidance(paraphrases=str(tmp_path / "none.jsonl"))
    for line in ("[1]", '{"prompt": "a"}', "{", '{"prompt": 3, "paraphrases": []}'):
        path = tmp_path / f"{len(line)}.jsonl"
        path.write_text(line)
        with pytest.raises(InputError, match=f"{path.name}:1"):
            ParaphraseGuidance(paraphrases=str(path))
    with pytest.raises(InputError, match="floor < ceiling"):
        ParaphraseGuidance(floor=2.0, ceiling=1.0)
