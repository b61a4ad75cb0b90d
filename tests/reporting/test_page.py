"""The page: what it says is the run's, text stays text, nothing is fetched, bytes repeat."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from mnemoscope.core.stats import wilson
from mnemoscope.data.images import decode, decode_masked, thumbnail
from mnemoscope.errors import RunError
from mnemoscope.mechanism.base import Record
from mnemoscope.reporting import argument, compare, figures, report
from mnemoscope.reporting import page as pages
from mnemoscope.reporting.details import Details
from mnemoscope.reporting.explorer import explorer
from mnemoscope.reporting.export import csv
from mnemoscope.reporting.quantities import quantities
from mnemoscope.reporting.scores import scores_of, told
from mnemoscope.reporting.text import visible
from mnemoscope.reporting.verdict import verdict
from mnemoscope.runs.folder import Run
from mnemoscope.runs.tables import TABLES
from tests.reporting import world


class Reader(HTMLParser):
    """Collect the elements, attributes and texts of a page as a browser's parser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: dict[str, list[str]] = {}
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._open: dict[str, str | None] = {}
        self._last = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._last = tag
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "script":
            self._open = dict(attrs)

    def handle_data(self, data: str) -> None:
        self.text.setdefault(self._last, []).append(data)
        if self._last == "script" and data.strip():
            self.scripts.append((self._open, data))

    @classmethod
    def of(cls, path: Path) -> "Reader":
        reader = cls()
        reader.feed(path.read_text("utf-8"))
        return reader


@pytest.fixture(scope="module")
def seen(page: Path) -> Reader:
    return Reader.of(page)


@pytest.fixture(scope="module")
def data(seen: Reader) -> dict:
    return json.loads(next(text for tag, text in seen.scripts if tag.get("id") == "data"))


@pytest.fixture(scope="module", params=["folder", "single file"])
def details(request: pytest.FixtureRequest, page: Path, single: Path) -> list[dict]:
    """Return the details of all prompts, from either form."""
    if request.param == "folder":
        readers = [Reader.of(page.parent / "data" / f"{place}.html") for place in range(16)]
        held = [json.loads(reader.scripts[0][1]) for reader in readers]
        assert [one["place"] for one in held] == list(range(16))
        return [one["detail"] for one in held]
    scripts = Reader.of(single).scripts
    return [
        json.loads(next(text for tag, text in scripts if tag.get("id") == f"detail-{place}"))
        for place in range(16)
    ]


def test_headline_counts_prompts_with_their_interval(page: Path) -> None:
    text = page.read_text("utf-8")
    # 6 of 12 planted prompts copy, none of 4 controls does: known from how the run was made.
    assert "<h1>6 of 12 prompts reproduce a training image</h1>" in text
    for count, n in ((6, 12), (0, 4)):
        share = wilson(count, n)
        ends = f"{100 * share.low:.0f}\u00a0% to {100 * share.high:.0f}\u00a0%"
        assert f"{count} of {n} ({100 * count / n:.0f}\u00a0%, 95\u00a0% interval {ends})" in text
    assert "0.850, fitted on 12,000 pairs of unrelated images" in text


def test_texts_arrive_as_they_are(data: dict, details: list[dict]) -> None:
    sent = {entry["id"]: entry["text"] for entry in data["prompts"]}
    assert sent == {name: visible(text, 400) for name, text in world.texts().items()}
    assert {detail["text"] for detail in details} == set(map(visible, world.texts().values()))


def test_no_text_becomes_markup(page: Path, single: Path, seen: Reader) -> None:
    # The page's own: blocks of data and one script. A prompt that broke out would add to these.
    for path, blocks in ((page, 1), (single, 17), (page.parent / "data" / "0.html", 1)):
        reader = Reader.of(path)
        kinds = [tag.get("type") for tag, _ in reader.scripts]
        assert kinds == ["application/json"] * blocks + [None]
        assert reader.tags.count("script") == blocks + 1
        assert "link" not in reader.tags
        assert not [name for _, name, _ in reader.attributes if name.startswith("on")]
        assert not [name for _, name, _ in reader.attributes if name == "style"]
    prompts = [text for text in seen.text["bdi"] if "script" in text or "{{" in text]
    assert all(text.strip() in map(visible, world.HOSTILE) for text in prompts)


@pytest.mark.parametrize("form", ["page", "single", "both"])
def test_nothing_is_fetched(form: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(form)
    for tag, name, value in Reader.of(path).attributes:
        if name in ("src", "srcset", "poster", "data", "action", "xlink:href"):
            assert value.startswith("data:image/webp;base64,"), (tag, name)
        if name == "href" and not value.startswith(("#", "data:")):
            assert (path.parent / value).is_file(), value
            assert value.startswith("tables/")
    style = re.search(r"<style>(.*?)</style>", path.read_text("utf-8"), re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


@pytest.mark.parametrize("form", ["page", "single", "both"])
def test_policy_lets_in_only_what_the_page_holds(form: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(form)
    reader = Reader.of(path)
    policy = next(
        v for t, n, v in reader.attributes if (t, n) == ("meta", "content") and "src" in v
    )
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    style = re.search(r"<style>(.*?)</style>", path.read_text("utf-8"), re.DOTALL)
    assert style is not None
    script = next(code for tag, code in reader.scripts if not tag)
    for rule, code in (("style-src", style[1]), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == ("data: 'self' file:" if form == "page" else "data:")
    assert "innerHTML" not in script
    assert len(script.encode()) < 150_000


def test_a_detail_may_do_nothing_but_post(page: Path) -> None:
    reader = Reader.of(page.parent / "data" / "0.html")
    policy = next(
        v for t, n, v in reader.attributes if (t, n) == ("meta", "content") and "src" in v
    )
    digest = base64.b64encode(hashlib.sha256(reader.scripts[-1][1].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


@pytest.fixture
def unprinted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures for print, which cost most of the time and have their own test."""
    monkeypatch.setattr(figures, "save", lambda *_: None)


def test_figures_for_print_are_beside_the_page(page: Path) -> None:
    made = {path.name for path in (page.parent / "figures").iterdir()}
    assert {"0-overview.png", "1-loss.png", "8-deviation.png", "figures.pdf"} <= made
    assert all(name.endswith(".png") for name in made - {"figures.pdf"})


@pytest.mark.usefixtures("unprinted")
def test_same_run_same_bytes(whole_run: Run, page: Path, single: Path, tmp_path: Path) -> None:
    again = report(whole_run, tmp_path / "again")
    files = [path.relative_to(page.parent) for path in page.parent.rglob("*") if path.is_file()]
    assert len([name for name in files if name.parts[0] == "data"]) == 16
    for name in files:
        if name.parts[0] != "figures":
            assert (again.parent / name).read_bytes() == (page.parent / name).read_bytes(), name
    same = report(whole_run, tmp_path / "single", single_file=True)
    assert same.read_bytes() == single.read_bytes()
    assert [path.name for path in same.parent.iterdir()] == ["report.html"]


def test_pictures_are_those_of_the_tables(whole_run: Run, data: dict, details: list[dict]) -> None:
    stored = {
        (row["prompt_id"], row["seed"], row["guidance"]): row["image"]
        for row in whole_run.table("samples").to_pylist()
    }
    for entry, detail in zip(data["prompts"], details, strict=True):
        for scale, here in detail["at"].items():
            for sample in here["samples"]:
                image = stored[entry["id"], sample["seed"], float(scale)]
                if image is None:
                    assert sample["why"] == "nonfinite"
                else:
                    assert base64.b64decode(sample["image"]) == image


def test_curves_are_the_least_squares_of_the_record(
    whole_run: Run, data: dict, details: list[dict]
) -> None:
    gram, keys = whole_run.gram("path", 7.5)
    names = [entry["id"] for entry in data["prompts"]]
    place = names.index("m5")
    mine = keys["prompt_id"] == "m5"
    shown = details[place]["at"]["7.5"]["curves"]
    products = {
        pair: gram.inner(*pair)[mine].numpy()
        for pair in (("x", "target"), ("x", "x_T"), ("target", "x_T"), ("target", "target"),
                     ("x_T", "x_T"))
    }  # fmt: skip
    for seed in range(world.SEEDS):
        for call in (7, 30):
            at = {pair: values[seed, call] for pair, values in products.items()}
            normal = [
                [at["target", "target"], at["target", "x_T"]],
                [at["target", "x_T"], at["x_T", "x_T"]],
            ]
            w0, wT = np.linalg.solve(normal, [at["x", "target"], at["x", "x_T"]])
            assert shown["w0"][seed][call] == pytest.approx(w0, rel=1e-3)
            assert shown["wT"][seed][call] == pytest.approx(wT, rel=1e-3)
    # The score D1 of the list is the sum the analysis of the deviation correlates.
    column = [column["label"] for column in data["columns"]].index("D1")
    states = gram.states()
    weights = states.fit("x", ["target", "x_T"]).weights[mine, :, 0].mean(0)
    d1 = float((weights - states.level.alpha).sum())
    assert data["prompts"][place]["at"]["7.5"]["v"][column] == pytest.approx(d1, rel=1e-4)


def test_scores_tell_what_they_tell(whole_run: Run, data: dict, details: list[dict]) -> None:
    table = whole_run.table("scores")
    scores = scores_of(table)
    assert scores.detectors[:2] == ("consensus_whitened", "gap_norm")
    rows = [row for row in table.to_pylist() if row["guidance"] == 7.5]
    for place, name in enumerate(scores.detectors):
        mine = {row["prompt_id"]: row["score"] for row in rows if row["detector"] == name}
        known = [score for score in mine.values() if score is not None]
        for entry, detail in zip(data["prompts"], details, strict=True):
            score, rank = detail["at"]["7.5"]["scores"][place]
            if mine[entry["id"]] is None:
                assert (score, rank) == (None, visible(world.HOSTILE[1]))
                continue
            assert score == pytest.approx(mine[entry["id"]], rel=1e-4)
            assert rank == 1 + sum(other > mine[entry["id"]] for other in known)
        assert data["detectors"][place]["n"]["7.5"] == len(known)
        # Only few are columns of the list, which would grow wide.
        labels = [column["label"] for column in data["columns"]]
        assert (name in labels) == (place < 2)
    tables = {name: whole_run.table(name).to_pylist() for name in ("prompts", "severity", "null")}
    found = verdict(tables["prompts"], tables["severity"], tables["null"], [], [], "l2")
    held = {row.detector: row for row in told(scores, found)}
    mine = {row["prompt_id"]: row["score"] for row in rows if row["detector"] == "gap_norm"}
    pairs = [
        (mine[a] > mine[b]) + 0.5 * (mine[a] == mine[b])
        for a in mine
        for b in mine
        if a[0] == "m" and b[0] != "m"
    ]
    assert held["gap_norm"].auc.value == pytest.approx(np.mean(pairs))
    assert (held["gap_norm"].memorized, held["gap_norm"].others) == (6, 10)
    assert (held["length"].memorized, held["length"].others) == (6, 9)


def test_overview_lists_the_detectors_of_the_study(page: Path) -> None:
    text = page.read_text("utf-8")
    assert "6 memorized prompts, 10 others" in text
    assert "We recommend <code>consensus_whitened</code>" in text
    csv = (page.parent / "tables" / "scores.csv").read_text("utf-8").splitlines()
    assert len(csv) == 1 + 16 * 2 * 4


@pytest.mark.usefixtures("unprinted")
def test_not_judged_is_not_not_memorized(tmp_path: Path) -> None:
    tables = world.rows()
    tables["severity"] = [
        row | {"share": None, "threshold": None, "grade": None} for row in tables["severity"]
    ]
    tables["null"] = [
        {"measure": "l2", "n": 6, "method": "withheld", "reason": "6 unrelated pairs are too few"}
    ]
    run = world.write(tmp_path / "few", tables)
    text = report(run, single_file=True).read_text("utf-8")
    assert "<h1>16 prompts are not judged</h1>" in text
    assert "6 unrelated pairs are too few. A threshold takes 19 unrelated pairs, which 7 " in text
    words = re.sub(r'<script.*?</script>|<dl class="glossary">.*?</dl>', "", text, flags=re.DOTALL)
    assert not re.search(r"not memorized \(n", words)
    assert "not judged (n" in words
    assert "0 of" not in words.split("</header>")[0]
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert {entry["at"]["7.5"]["state"] for entry in data["prompts"]} == {"unjudged"}
    both = compare(run, run, tmp_path / "compare").read_text("utf-8")
    assert "<h1>No prompt is judged in both runs</h1>" in both
    assert "12 prompts are not judged in both: in A, 6 unrelated pairs are too few." in both
    assert not re.search(r"not reproduced in A|0 of ", both)


def test_a_detection_has_no_report(tmp_path: Path) -> None:
    run = world.write(tmp_path / "run", {}, flow="detection", options={"model": "embedded"})
    with pytest.raises(RunError, match="holds a detection"):
        report(run)


def test_order_is_by_severity(data: dict) -> None:
    shares = [entry["at"]["7.5"]["share"] for entry in data["prompts"]]
    assert shares == sorted(shares, reverse=True)
    assert data["prompts"][0]["id"] == "m5"


@pytest.mark.usefixtures("unprinted")
def test_what_the_run_lacks_is_said(tmp_path: Path) -> None:
    tables = world.rows()
    kept = {name: tables[name] for name in ("recipes", "prompts", "references", "samples", "gram")}
    # Without severity nothing is memorized, and without spread nothing can collapse.
    bare = world.write(tmp_path / "bare", kept)
    text = report(bare).read_text("utf-8")
    assert "Nothing can be said about reproduction" in text
    assert "Left out: the run holds no null distribution" in text
    assert "was not measured" in text
    # Similarities without a threshold are another thing than no similarities.
    unjudged = [
        row | {"share": None, "threshold": None, "grade": None} for row in tables["severity"]
    ]
    few = world.write(tmp_path / "few", kept | {"severity": unjudged, "recipes": tables["recipes"]})
    assert "to judge them by, so it cannot say" in report(few).read_text("utf-8")
    empty = world.write(tmp_path / "empty", {})
    assert "Left out: the run holds no prompts." in report(empty).read_text("utf-8")


def test_prompts_that_copy_another_image_are_counted_apart(whole_run: Run) -> None:
    names = ("prompts", "severity", "null", "convergence")
    tables = {name: whole_run.table(name).to_pylist() for name in names}
    plain = verdict(*(tables[name] for name in names), [], "l2")
    assert "copy another" not in plain.sentences[0] + plain.title
    elsewhere = {"c0", "p1"}
    for row in tables["severity"]:
        if row["prompt_id"] in elsewhere and row["guidance"] == 7.5 and row["measure"] == "l2":
            row["grade"] = "retrieved verbatim"
    told = verdict(*(tables[name] for name in names), [], "l2")
    assert told.title == f"{plain.title}; 2 more copy another"
    assert told.sentences[0] == plain.sentences[0] + (
        " In 2 more prompts (1 of them a control) at least half of the samples copy another "
        "training image."
    )
    assert [(tally.label, tally.count) for tally in told.elsewhere] == [
        ("prompts with a training image", 1),
        ("controls", 1),
    ]


@pytest.mark.usefixtures("unprinted")
def test_pictures_beyond_the_budget_are_counted(
    whole_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "BUDGET", 20_000)
    path = report(whole_run, tmp_path, single_file=True)
    text = path.read_text("utf-8")
    assert re.search(r"[1-9]\d* pictures are left out", text)
    held = set(re.findall(r'"image":"([A-Za-z0-9+/=]+)"', text))
    held |= set(re.findall(r"base64,([A-Za-z0-9+/=]+)", text.split('"cards":')[1].split("}")[0]))
    assert 0 < sum(len(base64.b64decode(one)) for one in held) <= 20_000


def test_redacted_pages_hold_no_picture(whole_run: Run, tmp_path: Path) -> None:
    stored = [row["image"] for row in whole_run.table("samples").to_pylist() if row["image"]]
    stored += [row["image"] for row in whole_run.table("references").to_pylist()]
    path = report(whole_run, tmp_path, single_file=True, redact_images=True)
    text = path.read_text("utf-8")
    assert not re.search(r"image/webp;base64,\w", text)
    assert not [one for one in stored if base64.b64encode(one).decode() in text]
    for image in stored:
        assert hashlib.sha256(image).hexdigest()[:16] in text


def test_a_mask_does_not_hide_part_of_a_training_image() -> None:
    pixels = torch.rand(3, 16, 16)
    mask = torch.zeros(16, 16)
    made = world.rows()
    tables = {name: [] for name in TABLES} | {
        name: made[name][:1] for name in ("prompts", "references", "samples")
    }
    tables["references"][0] |= {"image": thumbnail(pixels, mask), "masked": True}
    tables["samples"][0]["guidance"] = 1.0
    empty = quantities(Record({}, {}))
    nothing = scores_of(TABLES["scores"].schema.empty_table().append_column("guidance", [[]]))
    shown = explorer(
        tables["prompts"], tables["samples"], [], nothing, empty,
        verdict(tables["prompts"], [], [], [], [], "l2"), {},
    )  # fmt: skip
    detail = Details.of(shown, tables, {}, empty, redact=False).of_prompt(0, None)
    image = base64.b64decode(detail["own"][0]["image"])
    assert decode_masked(image)[1] is None
    assert torch.equal(decode(image), decode(thumbnail(pixels)))


@pytest.mark.usefixtures("unprinted")
def test_copies_of_another_image_are_counted_and_shown(tmp_path: Path) -> None:
    tables = world.rows()
    key = world.recipe_of(7.5)
    tables["null"].append(tables["null"][0] | {"measure": "l2:nearest", "relation": "nearest"})
    tables["similarities"] += [
        row | {"relation": "nearest", "reference_id": "ref-m5", "value": 0.92}
        for row in tables["similarities"]
        if row["prompt_id"] in ("p2", "c0") and row["recipe"] == key
    ]
    text = report(world.write(tmp_path / "run", tables), single_file=True).read_text("utf-8")
    tallies = re.findall(r'<li class="(\w+)"><strong>(.*?)</strong>', text)
    assert tallies == [
        ("memorized", "6 of 12"), ("another", "1 of 12"), ("plain", "5 of 12"),
        ("another", "1 of 4"), ("control", "3 of 4"),
    ]  # fmt: skip
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    place = next(at for at, one in enumerate(data["prompts"]) if one["id"] == "p2")
    here = data["prompts"][place]["at"]["7.5"]
    assert (here["state"], here["another"], here["n"]) == ("another", 4, 4)
    detail = json.loads(re.search(rf'id="detail-{place}">(.*?)</script>', text)[1])
    nearest = detail["at"]["7.5"]["nearest"]
    assert (nearest["name"], nearest["similarity"], nearest["copied"]) == ("ref-m5", 0.92, 4)
    # The copied image stands on the card, beside the verdict, and in the prompt's own page.
    shown = base64.b64encode(world.picture(5)).decode()
    assert shown == nearest["image"]
    example = text.split('<figure class="example another">')[1].split("</figure>")[0]
    assert example.index(shown) < example.index('class="four"')


@pytest.mark.usefixtures("unprinted")
def test_no_sentence_says_nan(tmp_path: Path) -> None:
    tables = world.rows()
    # Two prompts are too few for any median or correlation.
    few = {"m0", "p0"}
    tables = {
        name: [row for row in rows if row.get("prompt_id", "m0") in few]
        for name, rows in tables.items()
    }
    page = report(world.write(tmp_path / "few", tables), single_file=True)
    words = re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", page.read_text("utf-8"), flags=re.S)
    assert not re.findall(r".{40}\bnan\b.{40}", words)
    assert "not measured" in words


def test_csv_cannot_be_a_formula() -> None:
    rows = world.rows()["prompts"][:1]
    rows[0] |= {"prompt": '=HYPERLINK("x")', "references": ["a", "b"]}
    text = csv(TABLES["prompts"].of_rows(rows))
    assert '"\'=HYPERLINK(""x"")"' in text
    assert '"[""a"", ""b""]"' in text


def test_terms_lead_to_the_glossary(page: Path, seen: Reader) -> None:
    ids = {value for _, name, value in seen.attributes if name == "id"}
    links = {v[1:] for t, n, v in seen.attributes if (t, n) == ("a", "href") and v[:3] == "#g-"}
    assert len(links) >= 4
    assert links <= ids
    said = argument.linked("<b>severity</b> and severity")
    assert said == '&lt;b&gt;<a class="term" href="#g-severity">severity</a>&lt;/b&gt; and severity'
