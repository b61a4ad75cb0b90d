"""The guard: it changes what is suspicious and nothing else, and is gone afterwards."""

import copy
import json

import pytest
import torch

from mnemoscope.errors import InputError, RefusedError
from mnemoscope.guarding.calibration import Calibration, Threshold, fingerprint
from mnemoscope.guarding.live import guard
from mnemoscope.lab.planted import load_table
from mnemoscope.mitigations import parse
from mnemoscope.models import load_model
from mnemoscope.models.shipped import CALIBRATION
from mnemoscope.sampling.hooks import Intervention
from mnemoscope.sampling.loop import Branches, sample
from tests.sampling import pipelines

ALPHA = 0.2360
"""Of the tiny pipelines' first step, where they make four."""


def left(pipe):
    network = getattr(pipe, "unet", None) or pipe.transformer
    return dict(network._forward_hooks), "step" in vars(pipe.scheduler)


@pytest.mark.parametrize("name", pipelines.GUIDED)
def test_unsuspicious_images_are_the_pipelines_own(name):
    live = pipelines.GUIDED[name]()
    before = left(live.pipe)
    bare = live.run(4.0)
    with guard(live.pipe, threshold=1e9) as watched:
        assert torch.equal(live.run(4.0), bare)
    assert left(live.pipe) == before
    assert {record.action for record in watched.records} == {"none"}
    assert [record.image for record in watched.records] == list(range(len(bare)))
    assert all(record.suspicious is False for record in watched.records)


@pytest.mark.parametrize("name", pipelines.GUIDED)
def test_suspicious_images_are_guided_by_the_mitigation(name):
    live = pipelines.GUIDED[name]()
    # Without guidance from the first call to the last, the images are those of the prompt alone.
    with guard(live.pipe, threshold=0.0, mitigation="guidance_interval(strength=0.999)"):
        mitigated = live.run(4.0)
    torch.testing.assert_close(mitigated, live.run(1.0), atol=2e-4, rtol=2e-3)
    assert not torch.equal(mitigated, live.run(4.0))


def test_a_chain_of_guides_steers_and_one_that_acts_elsewhere_is_refused():
    live = pipelines.stable_diffusion()
    both = "guidance_interval:0.999+magnitude_aware:0"
    with guard(live.pipe, threshold=0.0, mitigation=both) as watched:
        mitigated = live.run(4.0)
    torch.testing.assert_close(mitigated, live.run(1.0), atol=2e-4, rtol=2e-3)
    assert {record.action for record in watched.records} == {str(parse(both))}
    with pytest.raises(InputError, match="acts on condition"):
        guard(live.pipe, threshold=0.0, mitigation="embedding_noise+guidance_interval")


@pytest.mark.parametrize(
    "asked", ["noise_adjustment(rounds=1)", "noise_optimization(rounds=2,target=0)"]
)
@pytest.mark.parametrize("name", ["sd", "sd v"])
def test_noise_is_moved_as_where_the_whole_path_is_ours(name, asked):
    live = pipelines.GUIDED[name]()
    model = load_model(live.pipe, device="cpu")
    scheduler = copy.deepcopy(live.pipe.scheduler)
    scheduler.set_timesteps(4)
    noise = pipelines.noise(2, *model.latent_shape)
    with guard(live.pipe, threshold=0.0, mitigation=asked) as watched:
        guarded = live.run(4.0, latents=noise)
    ours = sample(
        model.denoiser,
        scheduler,
        noise,
        Branches(
            model.encode_prompts(pipelines.PROMPTS), model.encode_blank(2), tuple(pipelines.PROMPTS)
        ),
        4.0,
        intervention=parse(asked),
    )
    # The first step of Adam is a sign, which rounding turns where a gradient is next to nothing.
    moved = float((guarded - live.run(4.0, latents=noise)).norm())
    assert moved > 0.1
    assert float((guarded - ours.latents).norm()) < 0.05 * moved
    # Two looks at the gap a round and one step from there; or two with gradients and a last look.
    looks = {"noise_adjustment": 2 + 1, "noise_optimization": 3 + 3 + 1 + 1}[asked.split("(")[0]]
    assert {record.network_calls for record in watched.records} == {2 * looks}
    assert {record.action for record in watched.records} == {str(parse(asked))}


def test_only_the_noise_of_suspicious_prompts_is_moved():
    live = pipelines.stable_diffusion()
    bare = live.run(4.0)
    with guard(live.pipe) as watched:
        live.run(4.0)
    between = sum(record.score for record in watched.records) / 2
    for asked in ({"mitigation": "noise_adjustment"}, {"action": "regenerate"}):
        with guard(live.pipe, threshold=between, **asked) as watched:
            guarded = live.run(4.0)
        bad = [record.suspicious for record in watched.records]
        assert sorted(bad) == [False, True]
        for row, record in enumerate(watched.records):
            assert torch.equal(guarded[row], bare[row]) is not record.suspicious
            assert (record.network_calls > 0) is record.suspicious


@pytest.mark.parametrize(
    ("mitigation", "why"),
    [
        ("random_tokens", "reaches the network as embeddings"),
        ("guard", "no rows for further branches"),
        ("attention_rescaling", "for all prompts of a batch"),
    ],
)
def test_what_a_guard_cannot_do_is_refused_with_the_reason(mitigation, why):
    with pytest.raises(InputError, match=why):
        guard(pipelines.stable_diffusion().pipe, threshold=0.0, mitigation=mitigation)


def test_only_the_samples_of_suspicious_prompts_change():
    live = pipelines.stable_diffusion()
    bare = live.run(4.0, num_images_per_prompt=2)
    with guard(live.pipe) as watched:
        live.run(4.0, num_images_per_prompt=2)
    scores = [record.score for record in watched.records]
    assert [record.prompt for record in watched.records] == [0, 0, 1, 1]
    assert scores[0] == scores[1] != scores[2] == scores[3]
    between = (scores[0] + scores[2]) / 2
    with guard(
        live.pipe, threshold=between, mitigation="guidance_interval(strength=0.5)"
    ) as watched:
        guarded = live.run(4.0, num_images_per_prompt=2)
    bad = [record.suspicious for record in watched.records]
    assert sorted(bad) == [False, False, True, True]
    for row, suspicious in enumerate(bad):
        assert torch.equal(guarded[row], bare[row]) is not suspicious


def test_scores_are_the_detectors_own():
    """The RMS of the gap at the first call, recomputed from the network's outputs."""
    live = pipelines.stable_diffusion()
    heard = []
    handle = live.pipe.unet.register_forward_hook(lambda m, a, out: heard.append(out[0]))
    with guard(live.pipe, detector="gap_rms") as watched:
        live.run(4.0)
    handle.remove()
    uncond, cond = heard[0].chunk(2)
    expected = (cond - uncond).flatten(1).square().mean(dim=1).sqrt()
    assert [r.score for r in watched.records] == pytest.approx(expected.tolist(), rel=1e-5)


def test_refusing_ends_the_run_and_leaves_the_pipeline_whole():
    live = pipelines.stable_diffusion()
    bare, before = live.run(4.0), left(live.pipe)
    guarded = guard(live.pipe, threshold=0.0, action="refuse")
    with pytest.raises(RefusedError, match="2 of 2 prompts look memorized"), guarded:
        live.run(4.0)
    assert left(live.pipe) == before
    assert {record.action for record in guarded.records} == {"refuse"}
    assert torch.equal(live.run(4.0), bare)


def test_regenerating_starts_from_other_noise_and_keeps_the_lowest_score():
    live = pipelines.stable_diffusion()
    bare = live.run(4.0)
    with guard(live.pipe) as watched:
        live.run(4.0)
    first = [record.score for record in watched.records]
    with guard(live.pipe, threshold=0.0, action="regenerate", tries=3) as watched:
        other = live.run(4.0)
    assert not torch.equal(other, bare)
    assert all(r.score <= s for r, s in zip(watched.records, first, strict=True))
    assert {r.network_calls for r in watched.records} == {6}
    assert "none passed" in watched.records[0].reason


def test_regenerated_images_are_those_of_that_noise(monkeypatch):
    live = pipelines.stable_diffusion()
    start, fresh = pipelines.noise(2, 4, 8, 8), pipelines.noise(2, 4, 8, 8, seed=5)
    drawn = iter(fresh)
    with guard(live.pipe, threshold=0.0, action="regenerate", tries=1) as watched:
        monkeypatch.setattr("mnemoscope.guarding.live.torch.randn", lambda *a, **k: next(drawn))
        # Whatever the fresh noise scores, it is kept.
        monkeypatch.setattr("mnemoscope.guarding.live.scores_of", lambda *given: [0.0] * 2)
        other = live.run(4.0, latents=start)
    monkeypatch.undo()
    assert {record.score for record in watched.records} == {0.0}
    assert "passed" in watched.records[0].reason
    torch.testing.assert_close(other, live.run(4.0, latents=fresh), atol=1e-5, rtol=1e-4)


def test_records_are_kept_as_json_lines(tmp_path):
    live = pipelines.stable_diffusion()
    guarded = guard(live.pipe, threshold=1e9, log=tmp_path / "guard.jsonl")
    for _ in range(2):
        guarded(pipelines.PROMPTS, num_inference_steps=2, guidance_scale=4.0, output_type="latent")
    lines = [json.loads(line) for line in (tmp_path / "guard.jsonl").read_text().splitlines()]
    assert [line["run"] for line in lines] == [0, 0, 1, 1]
    assert all(line["threshold"] == 1e9 and line["suspicious"] is False for line in lines)


def test_without_a_second_branch_it_says_so():
    live = pipelines.stable_diffusion()
    with guard(live.pipe, threshold=0.0) as watched:
        live.run(1.0)
    assert all(r.score is None and "guidance is off" in r.reason for r in watched.records)
    distilled = pipelines.small(pipelines.tiny.tiny_flux())
    distilled.arguments["guidance_scale"] = 3.5
    distilled.scale = None
    with guard(distilled.pipe, threshold=0.0) as watched:
        distilled.run()
    assert all("guidance is an input" in record.reason for record in watched.records)


def test_a_guard_calls_its_pipeline_and_is_gone_afterwards():
    live = pipelines.stable_diffusion()
    guarded = guard(live.pipe, threshold=1e9)
    before = left(live.pipe)
    guarded("a cat", num_inference_steps=2, output_type="latent")
    assert guarded.unet is live.pipe.unet
    assert left(live.pipe) == before
    with guarded, pytest.raises(InputError, match="attached to already"), guard(live.pipe):
        pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_behind_by_a_run_that_breaks(error):
    live = pipelines.stable_diffusion()
    before = left(live.pipe)

    def broken(*_):
        raise error("halfway")

    with pytest.raises(error), guard(live.pipe, threshold=0.0):
        live.pipe(
            "a cat",
            num_inference_steps=3,
            callback_on_step_end=broken,
        )
    assert left(live.pipe) == before


class Strange(Intervention):
    name = "strange"
    source = "test"

    def guide(self, step):
        return step.raw["cond"][:1]


def test_what_cannot_be_used_is_refused(tmp_path):
    live = pipelines.stable_diffusion()
    for options, message in (
        ({"action": "mitigate"}, "without calibration or threshold"),
        ({"threshold": 1.0, "action": "mitigat"}, "Did you mean 'mitigate'"),
        ({"threshold": float("nan")}, "finite number"),
        ({"threshold": 1.0, "detector": "gap_norm:all"}, "more than a pipeline's first step"),
        ({"threshold": 1.0, "tries": 0}, "at least 1"),
        ({"calibration": tmp_path / "none.json"}, "no calibration"),
    ):
        with pytest.raises(InputError, match=message):
            guard(live.pipe, **options)
    with pytest.raises(InputError, match="expected a pipeline"):
        guard(object(), threshold=1.0, calibration=None).__enter__()
    with (
        pytest.raises(InputError, match="returned torch"),
        guard(live.pipe, threshold=0.0, mitigation=Strange()),
    ):
        live.run(4.0)


def test_calibrations_are_of_one_model(tmp_path):
    live, other = pipelines.stable_diffusion(), pipelines.GUIDED["sdxl"]()
    levels = (Threshold(1, 0.5, 0.4, 0.6, 120), Threshold(4, 0.3, 0.2, 0.4, 120))
    made = Calibration(
        "gap_rms", 0.01, ALPHA, levels, {"name": "tiny", "fingerprint": fingerprint(live.pipe.unet)}
    )
    made.write(tmp_path / "calibration.json")
    read = Calibration.read(tmp_path / "calibration.json")
    assert read == made
    rule = guard(live.pipe, calibration=read).rule
    assert [rule.limit(n) for n in (1, 3, 4, 9)] == [0.5, 0.5, 0.3, 0.3]
    with guard(live.pipe, calibration=tmp_path / "calibration.json", action="record") as watched:
        live.run(4.0)
    assert {record.threshold for record in watched.records} == {0.5}
    with pytest.raises(InputError, match="calibrate this one"):
        guard(other.pipe, calibration=read)
    half = pipelines.stable_diffusion()
    assert fingerprint(half.pipe.unet.half()) == fingerprint(live.pipe.unet)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', "[" * 3000, '{"schema": 2}'])
def test_files_that_are_no_calibration_are_refused(text, tmp_path):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError, match="no calibration"):
        Calibration.read(tmp_path / "c.json")


def test_a_run_that_begins_at_another_level_is_not_scored(tmp_path):
    live = pipelines.stable_diffusion()
    told = {"name": "tiny", "fingerprint": fingerprint(live.pipe.unet)}
    known = Calibration("gap_rms", 0.01, ALPHA, (Threshold(1, 0.0, 0.0, 0.0, 99),), told)
    with guard(live.pipe, calibration=known, action="record") as watched:
        live.run(4.0)
        live.run(4.0, steps=2)
    assert [record.suspicious for record in watched.records] == [True, True, None, None]
    assert "as many --steps" in watched.records[2].reason


def test_the_model_inside_brings_its_calibration():
    pipe = load_model("embedded").pipeline
    pipe.set_progress_bar_config(disable=True)
    watched = guard(pipe)
    shipped = Calibration.read(CALIBRATION)
    assert watched.rule.thresholds == {level.seeds: level.value for level in shipped.thresholds}

    def enough(*_):
        raise KeyboardInterrupt

    captions = {row.id: row.caption for row in load_table()}
    for name in ("v6-describing-00", "c-describing-00"):
        with pytest.raises(KeyboardInterrupt):
            watched(
                captions[name],
                num_images_per_prompt=4,
                generator=torch.Generator().manual_seed(0),
                callback_on_step_end=enough,
            )
    # One is planted at the highest level, the other was never shown.
    assert [record.suspicious for record in watched.records] == [True] * 4 + [False] * 4
