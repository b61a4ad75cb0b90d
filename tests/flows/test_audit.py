"""Audits of oracles, whose memories are known: what is found, what is missed, what resumes."""

import json
import shutil
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mnemoscope.cli import main
from mnemoscope.errors import InputError, RunError
from mnemoscope.flows import audit as flow
from mnemoscope.flows import confirming
from mnemoscope.flows.audit import Audit, audit
from mnemoscope.models.oracle import MixtureDenoiser, Oracle
from mnemoscope.reporting.audit import found_of, write
from mnemoscope.runs.folder import Writer, open_run
from mnemoscope.runs.verify import verify

SIDE = 8


def picture(at):
    """Draw a picture of sixteen patches, unlike any other."""
    patches = np.random.default_rng(at).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return patches.repeat(2, axis=0).repeat(2, axis=1)


def latents(array):
    return 2 * torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255 - 1


def world(folder, n=60, known=3, first=0):
    """Make a folder of pictures with captions, the first of which a model has memorized.

    The caption "stray" gives back the picture of another caption, which itself does not.
    """
    folder.mkdir(parents=True)
    rows, targets = [], {}
    for at in range(n):
        Image.fromarray(picture(first + at)).save(folder / f"{at:03d}.png")
        rows.append({"file_name": f"{at:03d}.png", "text": f"caption {at}"})
        if at < known:
            targets[f"caption {at}"] = latents(picture(first + at))
    rows[n - 2]["text"] = "stray"
    targets["stray"] = latents(picture(first + n - 1))
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Oracle("oracle:known", *beliefs_of(targets))


def beliefs_of(targets):
    """Believe in each target under its caption, and in nothing in particular under any other."""
    shape = latents(picture(0)).shape
    means = torch.stack([*targets.values(), torch.zeros(shape)])
    spreads = torch.tensor([0.0] * len(targets) + [0.6])
    rows = torch.full((len(means), len(means)), -torch.inf).fill_diagonal_(0.0)
    beliefs = dict(zip(targets, rows, strict=False)) | {"": rows[-1]}
    return MixtureDenoiser(means, spreads), beliefs, [len(targets)]


def asked(dataset, out, **changes):
    values = {
        "model": "oracle:memorizer",
        "dataset": dataset,
        "out": out,
        "seeds": 2,
        "screening_seeds": 2,
        "steps": 4,
        "similarity": ("l2",),
    }
    return Audit(**(values | changes))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    model = world(folder / "set")
    said = []
    run = audit(asked(folder / "set", folder / "run"), model=model, notify=said.append)
    return folder, model, run, said


def test_what_is_memorized_is_found_with_its_picture(made):
    found = found_of(made[2])
    by_text = {row["prompt"]: row for row in found.given_back}
    assert set(by_text) == {"caption 0", "caption 1", "caption 2", "stray"}
    for at in range(3):
        assert by_text[f"caption {at}"]["state"] == "memorized"
        assert by_text[f"caption {at}"]["items"] == [f"{at:03d}.png"]
    assert by_text["stray"]["state"] == "copies another image"
    assert by_text["stray"]["items"] == ["059.png"]
    assert len(found.pictures) == 4
    assert found.title == "The model gives back 4 images of the data set, to 4 captions of 60"


def test_the_surest_come_first_and_of_equals_the_nearest(made):
    found = found_of(made[2])
    nearest = {row["prompt"]: row["similarity"] for row in found.given_back}
    assert all(0.7 < value <= 1 for value in nearest.values()), nearest
    assert all((row["similarity"] is None) == (not row["references"]) for row in found.captions)
    fewer = {"caption 1": {"share": 0.5, "similarity": 1.0}, "caption 2": {"similarity": 0.5}}
    rows = tuple(row | fewer.get(row["prompt"], {}) for row in found.captions)
    order = [row["prompt"] for row in replace(found, captions=rows).given_back]
    assert order[-2:] == ["caption 2", "caption 1"]


def test_what_comes_back_now_and_then_is_told_apart(made, tmp_path):
    found = found_of(made[2])
    assert found.now_and_then == ()
    seldom = {"caption 1": {"share": 0.25, "samples": 4, "state": "not memorized"}}
    rows = tuple(row | seldom.get(row["prompt"], {}) for row in found.captions)
    fewer = replace(found, captions=rows)
    assert [row["prompt"] for row in fewer.now_and_then] == ["caption 1"]
    assert "caption 1" not in {row["prompt"] for row in fewer.given_back}
    assert "1 more caption gives one back in fewer of their samples." in fewer.sentences
    assert [row["prompt"] for row in fewer.told()["now_and_then"]] == ["caption 1"]
    page = page_of(fewer, tmp_path)
    assert page.index("What is given back") < page.index("What comes back now and then")
    assert "1 of 4 samples copy its image" in page[page.index("What comes back now and then") :]
    assert "What comes back now and then" not in page_of(found, tmp_path)


def test_the_interval_counts_what_was_dropped(made):
    found = found_of(made[2])
    assert found.share["value"] == pytest.approx(4 / 60)
    assert found.share["low"] == pytest.approx(4 / 60)
    # About 40 captions were dropped and 20 of them drawn.
    assert 4 / 60 < found.share["high"] < 0.2
    assert found.recall["value"] == 1
    assert found.recall["low"] == pytest.approx(4 / 60 / found.share["high"])


def test_a_funnel_that_is_too_narrow_says_so(made):
    found = found_of(made[2])
    # Of the first twenty, the last round, four give an image back, and no more may be taken of 60.
    assert (found.last["n"], found.last["value"]) == (20, 4 / 20)
    assert found.narrow
    assert any("--finalists" in one for one in found.sentences)
    for last in (found.last | {"value": 1 / 20}, found.last | {"value": None}, None):
        fewer = replace(found, last=last)
        assert not fewer.narrow
        assert not any("--finalists" in one for one in fewer.sentences)


def test_a_funnel_widens_while_it_finds(tmp_path):
    model = world(tmp_path / "set", n=420, known=28)
    said = []
    run = audit(asked(tmp_path / "set", tmp_path / "run"), model=model, notify=said.append)
    found = found_of(run)
    # Of the first twenty all give an image back, and the others follow.
    assert "confirm: 20 of 20 give an image back; 20 more, at most 320 network calls" in said
    texts = {row["prompt"] for row in found.given_back}
    assert texts >= {f"caption {at}" for at in range(28)}
    assert not found.narrow
    folders = sorted(path.name for path in run.path.glob("confirm*"))
    # Half of the samples settle what copies; of what does not the other half is taken as well.
    studies = [f"confirm-{number}" for number in range(2, 7)]
    assert folders == ["confirm", *studies, "confirm-drawn", "confirm-drawn-2"]
    settled = {(row["state"], row["samples"]) for row in run.table("audited").to_pylist()}
    assert {("memorized", 1), ("not memorized", 2)} <= settled
    assert not {("memorized", 2), ("not memorized", 1)} & settled
    # What counts as a copy does not depend on who was sampled along.
    nulls = [open_run(run.path / name).table("null").to_pylist() for name in folders]
    assert len({row["threshold"] for some in nulls for row in some if row["measure"] == "l2"}) == 1
    sampled = [row["prompt_id"] for row in run.table("audited").to_pylist()]
    assert len(sampled) == len(set(sampled))
    assert all(verify(run.path / name).ok for name in folders)


def test_a_closer_look_is_taken_at_the_most_suspicious_fifth(tmp_path):
    model = world(tmp_path / "set", n=120, known=3)
    question = asked(tmp_path / "set", tmp_path / "run", detectors=("prompt_length",))
    found = found_of(audit(question, model=model))
    scored = open_run(tmp_path / "run" / "closer").table("scores").to_pylist()
    # The length of a caption tells nothing, so which fifth it is is chance; what stands in it is
    # denoised best where it is known, and so comes first.
    names = {row["prompt_id"]: row["score"] for row in scored}
    assert len(names) <= 24
    tail = {row["prompt_id"]: row["tail"] for row in found.captions}
    known = [row["prompt_id"] for row in found.captions if row["state"] == "memorized"]
    inside = [name for name in known if name in names]
    best = sorted(names, key=lambda name: -names[name])[: len(inside)]
    assert set(best) == set(inside)
    assert all(tail[name] <= len(inside) / 120 + 1e-9 for name in inside)
    rows = {row["stage"]: row for row in found.funnel}
    assert rows["screen"]["kept"] == rows["closer"]["items"] == 24
    assert rows["closer"]["network_calls"] == 24 * 4
    assert sum(row["network_calls"] for row in scored) == len(names) * 4


def test_what_stands_out_before_any_call_is_told_and_sampled(tmp_path):
    model = world(tmp_path / "set", n=60)
    folder = tmp_path / "set"
    # A picture that is a little lighter under another caption, one that is mirrored and darker, and
    # a caption in other marks.
    lighter = np.minimum(picture(40).astype(int) + 2, 255).astype(np.uint8)
    Image.fromarray(lighter).save(folder / "again.png")
    Image.fromarray(picture(42)[:, ::-1] // 2).save(folder / "turned.png")
    with (folder / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "again.png", "text": "anew"}')
        file.write('\n{"file_name": "turned.png", "text": "in a mirror"}')
        file.write('\n{"file_name": "050.png", "text": "CAPTION 51!"}\n')
    said = []
    found = found_of(audit(asked(folder, tmp_path / "run"), model=model, notify=said.append))
    told = {one.reason: one for one in found.stood_out}
    assert told["have the words of another"].captions == 2
    assert told["have a picture that repeats"].captions == 2
    alike = told["have a picture that is all but the same as another"]
    rows = {row["item"]: row for row in found.suspects if "alike" in row["reasons"]}
    assert {at: row["twin"] for at, row in rows.items()} == {40: 60, 60: 40}
    assert alike.captions == alike.sampled == 2
    assert all(row["image"] and row["twin_image"] for row in rows.values())
    tinted = {row["item"]: row for row in found.suspects if "recoloured" in row["reasons"]}
    assert {at: row["twin"] for at, row in tinted.items()} == {42: 61, 61: 42}
    assert all(row["image"] and row["twin_image"] for row in tinted.values())
    assert any(line.startswith("suspects before any call: ") for line in said)
    page = page_of(found, tmp_path / "page")
    assert "item 61 recoloured or mirrored" in page
    assert "What stood out before any call" in page
    assert "all but the same as item 60" in page


class Colours(torch.nn.Module):
    """Describes which colours a picture has, wherever they stand, by waves of random length."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.waves = torch.nn.Parameter(12 * torch.randn(3, 256, generator=generator))
        self.phases = torch.nn.Parameter(6.3 * torch.rand(256, generator=generator))
        levels = torch.linspace(0, 1, 9)
        every = torch.cartesian_prod(levels, levels, levels)
        self.usual = torch.nn.Parameter(torch.cos(every @ self.waves + self.phases).mean(0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        some = torch.nn.functional.adaptive_avg_pool2d(images, 32).permute(0, 2, 3, 1)
        waves = torch.cos((some * std + mean) @ self.waves + self.phases)
        return waves.mean((1, 2)) - self.usual


# The published network is TorchScript, which torch calls deprecated.
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_an_embedding_finds_what_prints_do_not(tmp_path):
    model = world(tmp_path / "set", n=60)
    folder, network = tmp_path / "set", tmp_path / "colours.pt"
    torch.jit.script(Colours()).save(network)
    Image.fromarray(picture(42)[:, 2:]).save(folder / "cropped.png")
    with (folder / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "cropped.png", "text": "a part"}')
        file.write('\n{"file_name": "gone.png", "text": "nothing"}\n')
    plain = found_of(audit(asked(folder, tmp_path / "plain"), model=model))
    assert not [row for row in plain.suspects if "edited" in row["reasons"]]
    wanted = asked(
        folder, tmp_path / "run", embedding="sscd:official_320", sscd=network, finalists=0.5
    )
    said = []
    whole = audit(wanted, model=model, notify=said.append)
    assert said[1] == "embedding: every picture once by sscd:official_320, no network call"
    found = found_of(whole)
    rows = {row["item"]: row for row in found.suspects if "edited" in row["reasons"]}
    assert {at: row["twin"] for at, row in rows.items()} == {42: 60, 60: 42}
    assert {row["prompt"] for row in found.captions} >= {"caption 42", "a part"}
    assert "item 60 cropped or retouched" in page_of(found, tmp_path / "page")
    items = whole.table("items").to_pylist()
    assert [row["descriptor"] is None for row in items] == [False] * 61 + [True]
    again = audit(wanted, model=model)
    assert again.table("suspects").equals(whole.table("suspects"))
    torch.jit.script(torch.nn.Sequential(Colours(), torch.nn.Identity())).save(network)
    with pytest.raises(RunError):
        audit(wanted, model=model)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_samples_are_held_against_the_whole_set_by_the_embedding_as_well(tmp_path, monkeypatch):
    folder, network = tmp_path / "set", tmp_path / "colours.pt"
    world(folder, n=120)
    torch.jit.script(Colours()).save(network)
    # The picture of another caption comes back, but mirrored and upside down.
    targets = {"stray": latents(picture(119)[::-1, ::-1])}
    model = Oracle("oracle:known", *beliefs_of(targets))
    measure = {"similarity": ("sscd:official_320",), "sscd": network, "guidance": 1.0}
    # Of the set few are known as a study knows them, and the others are searched.
    monkeypatch.setattr(confirming, "OTHERS", 20)
    monkeypatch.setattr(confirming, "COMPARED", 2)
    states = []
    for name, embedding in (("plain", "none"), ("embedded", "sscd:official_320")):
        run = audit(asked(folder, tmp_path / name, embedding=embedding, **measure), model=model)
        found = {row["prompt"]: row for row in found_of(run).captions}
        states.append((found["stray"]["state"], found["stray"]["items"]))
    assert states == [("not memorized", []), ("copies another image", ["119.png"])]


def test_an_embedding_without_descriptors_is_refused(tmp_path):
    model = world(tmp_path / "set")
    with pytest.raises(InputError, match="'l2' given, which has no descriptors"):
        audit(asked(tmp_path / "set", tmp_path / "run", embedding="l2"), model=model)
    assert not (tmp_path / "run").exists()


def test_the_price_is_said_before_anything_is_done(made):
    _, _, run, said = made
    assert said[0] == "60 items, 60 different captions"
    # One call a seed and caption and one at its image, and the unconditional ones once.
    assert said[1] == "screen: 60 captions x 2 seeds, 182 network calls"
    rows = {row["stage"]: row for row in run.table("funnel").to_pylist()}
    assert rows["screen"]["network_calls"] == 182
    told = int(said[2].split("seeds, at most ")[1].split()[0].replace(",", ""))
    # A reference mean beside both samples of each.
    assert told == 40 * 2 * 2 * 4 + 256
    # The one whose picture lies most alone may have been among the suspicious anyway.
    beside = rows["confirm"]["items"] - 40
    assert beside in (0, 1)
    # Of two samples the first settles each of the four that are copied.
    assert rows["confirm"]["network_calls"] == told + beside * 2 * 2 * 4 - 4 * 2 * 4


def test_the_nearest_of_the_whole_set_is_known_to_the_run(made):
    run = open_run(made[2].path / "confirm")
    held = {row["reference_id"] for row in run.table("references").to_pylist()}
    near = {row["reference_id"] for row in run.table("similarities").to_pylist()}
    assert near <= held
    assert found_of(made[2]).sure["value"] == 1


def rows_of(run):
    names = ("items", "funnel", "audited", "statistics")
    return {name: run.table(name).to_pylist() for name in names}


class Killed(Exception):
    """Stands for a process that ends here."""


@pytest.mark.parametrize("after", [1, 5, 14])
def test_an_audit_goes_on_where_it_was_stopped(after, made, tmp_path, monkeypatch):
    folder, model, whole, _ = made
    question = asked(folder / "set", tmp_path / "run")
    append, count = Writer.append, 0

    def failing(self, unit, parts):
        nonlocal count
        count += 1
        if count > after:
            raise Killed
        append(self, unit, parts)

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "append", failing)
        with pytest.raises(Killed):
            audit(question, model=model)
    assert rows_of(audit(question, model=model)) == rows_of(whole)


def test_a_data_set_that_changed_is_refused(made, tmp_path):
    model = world(tmp_path / "set", n=30)
    question = asked(tmp_path / "set", tmp_path / "run")
    audit(question, model=model)
    with (tmp_path / "set" / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "003.png", "text": "one more"}')
    with pytest.raises(RunError, match="prompts or training images"):
        audit(question, model=model)


def test_broken_and_repeated_items_are_counted(tmp_path):
    model = world(tmp_path / "set", n=30)
    folder = tmp_path / "set"
    (folder / "007.png").write_bytes(b"no picture")
    with (folder / "metadata.jsonl").open("a") as file:
        for at in (20, 21, 22):
            file.write(json.dumps({"file_name": f"{at:03d}.png", "text": "caption 20"}) + "\n")
        file.write('\n{"file_name": "003.png"}\n{"file_name": "absent.png", "text": "lost"}')
    text = (folder / "metadata.jsonl").read_text().replace("}{", "}\n{")
    (folder / "metadata.jsonl").write_text(text)
    said = []
    run = audit(asked(folder, tmp_path / "run"), model=model, notify=said.append)
    assert said[0] == "35 items, 31 different captions; items without one are only looked for: 1"
    reasons = {row["name"]: row["reason"] for row in run.table("items").to_pylist()}
    assert "PNG" in reasons["007.png"]
    assert "absent.png" in reasons["absent.png"]
    repeated = [row for row in run.table("audited").to_pylist() if row["prompt"] == "caption 20"]
    # The caption stands with three further pictures, and one of these with its own as well.
    assert [row["repeats"] for row in repeated] == [4]
    assert found_of(run).share["value"] == pytest.approx(4 / 31)


def test_a_set_without_captions_or_pictures_is_refused(tmp_path):
    model = world(tmp_path / "set", n=8)
    rows = [{"file_name": f"{at:03d}.png"} for at in range(8)]
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match="no captions"):
        audit(asked(tmp_path / "set", tmp_path / "run"), model=model)
    rows = [{"file_name": "absent.png", "text": f"caption {at}"} for at in range(8)]
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match="no picture"):
        audit(asked(tmp_path / "set", tmp_path / "run"), model=model)


def test_ordinary_prompts_are_counted_apart(tmp_path):
    model = world(tmp_path / "set", n=30)
    (tmp_path / "ordinary.txt").write_text("nothing known\ncaption 1\nsomething else\n")
    question = asked(tmp_path / "set", tmp_path / "run", ordinary=tmp_path / "ordinary.txt")
    found = found_of(audit(question, model=model))
    assert [row["state"] for row in found.ordinary] == [
        "not memorized", "copies another image", "not memorized",
    ]  # fmt: skip
    assert found.ordinarily["value"] == pytest.approx(1 / 3)
    assert found.share["value"] == pytest.approx(4 / 30)


def test_a_budget_is_kept_and_one_too_small_refused(tmp_path):
    model = world(tmp_path / "set")
    question = asked(tmp_path / "set", tmp_path / "run", budget=900)
    run = audit(question, model=model)
    found = found_of(run)
    assert found.calls <= 900
    # One caption in full takes 16 calls; what the budget leaves over is no more than repeats took.
    assert len(found.captions) >= 10
    with pytest.raises(InputError, match="give at least 502"):
        audit(replace(question, budget=500, out=tmp_path / "other"), model=model)


def test_a_wanted_precision_decides_how_many_are_drawn(tmp_path):
    model = world(tmp_path / "set", n=90)
    found = found_of(audit(asked(tmp_path / "set", tmp_path / "run", precision=0.06), model=model))
    assert found.share["high"] - found.share["low"] <= 0.06
    assert len(found.captions) < 90


@pytest.mark.parametrize(("limit", "status"), [("1%", 4), ("0.5", 0), (None, 0)])
def test_the_exit_status_tells_whether_too_much_is_given_back(
    limit, status, made, monkeypatch, capsys
):
    folder, _, run, _ = made
    monkeypatch.setattr(flow, "audit", lambda asked, **_: run)
    more = [] if limit is None else ["--fail-above", limit]
    given = ["mnemoscope", "audit", "oracle:memorizer", str(folder / "set"), *more]
    monkeypatch.setattr("sys.argv", given)
    try:
        main()
        ended = 0
    except SystemExit as end:
        ended = end.code or 0
    assert ended == status
    out, err = capsys.readouterr()
    assert out.startswith("The model gives back 4 images")
    if limit is not None:
        assert ("exceeded" if status else "held") in err


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"dataset": None}, "no data set"),
        ({"fail_above": "much"}, "0.1%"),
        ({"fail_above": "200%"}, "0.1%"),
        ({"finalists": 0.0}, "finalists"),
        ({"budget": 0}, "budget"),
        ({"precision": 2.0}, "precision"),
    ],
)
def test_what_means_nothing_is_refused(changes, word):
    with pytest.raises(InputError, match=word):
        Audit(**{"model": "oracle:memorizer", "dataset": "set"} | changes)


def test_another_kind_of_run_is_no_audit(made):
    with pytest.raises(RunError, match="audit"):
        found_of(open_run(made[2].path / "screen"))


def test_a_set_that_was_trained_on_is_told_from_one_held_out(tmp_path):
    model = world(tmp_path / "set", n=30, known=28)
    world(tmp_path / "other", n=30, first=500)
    question = asked(tmp_path / "set", tmp_path / "run", held_out=tmp_path / "other", steps=2)
    found = found_of(audit(question, model=model))
    assert found.inferred["value"] == pytest.approx(0.002)
    assert any("the set as a whole was trained on: p = 0.002" in one for one in found.sentences)
    rows = {row["stage"]: row for row in found.funnel}
    assert rows["members"]["items"] == 60


def page_of(found, out, **options):
    return write(found, out, **options).read_text(encoding="utf-8")


def test_the_page_answers_first_and_shows_both_pictures(made, tmp_path):
    found = found_of(made[2])
    page = page_of(found, tmp_path)
    assert page.index(found.title) < page.index("network calls")
    suspects = sum(len(one.pictured) for one in found.stood_out)
    assert page.count("data:image/webp") == 2 * len(found.given_back) + suspects == 8 + suspects
    assert "another caption’s image" in page
    assert "script-src" not in page
    assert "<script" not in page


def test_a_page_without_pictures_names_them(made, tmp_path):
    found = found_of(made[2])
    page = page_of(found, tmp_path, redact_images=True)
    assert "data:image" not in page
    assert all(name in page for name in found.pictures)


def test_a_hostile_caption_is_only_text(made, tmp_path):
    found = found_of(made[2])
    hostile = {"prompt": "<script>alert(1)</script>\u202e", "items": ['"><img src=x>']}
    page = page_of(replace(found, captions=({**found.given_back[0], **hostile},)), tmp_path)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "⟨U+202E⟩" in page


def test_report_writes_the_page_of_an_audit(made, tmp_path, monkeypatch, capsys):
    given = ["mnemoscope", "report", str(made[2].path), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", given)
    with suppress(SystemExit):
        main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "index.html")


def test_verify_reads_every_stage(made, tmp_path, monkeypatch, capsys):
    def verified():
        monkeypatch.setattr("sys.argv", ["mnemoscope", "verify", str(tmp_path / "run")])
        try:
            main()
        except SystemExit as end:
            return end.code or 0, capsys.readouterr().out
        return 0, capsys.readouterr().out

    shutil.copytree(made[2].path, tmp_path / "run")
    status, out = verified()
    assert status == 0
    assert out.count("units and") == 6
    part = next((tmp_path / "run" / "confirm-drawn" / "samples").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-1])
    status, out = verified()
    assert status == 3
    assert part.name in out
    shutil.rmtree(tmp_path / "run" / "screen")
    assert "missing: screen" in verified()[1]


def test_the_embedded_model_brings_a_data_set(tmp_path, monkeypatch):
    asked_for = []

    def write_dataset(folder, further):
        asked_for.append((folder, further))
        world(folder, n=8)
        return folder

    monkeypatch.setattr("mnemoscope.lab.dataset.write_dataset", write_dataset)
    question = Audit(
        model="embedded", out=tmp_path / "run", seeds=2, screening_seeds=2, steps=2,
        similarity=("l2",),
    )  # fmt: skip
    model = world(tmp_path / "other", n=8)
    found = found_of(audit(question, model=model))
    assert found.listed == 8
    assert asked_for == [(tmp_path / "run-data", flow.FURTHER)]
    assert "mnemoscope audit embedded --" in page_of(found, tmp_path / "page")
