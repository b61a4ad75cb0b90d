"""The pages in a real browser: everything by click and by key, and hostile text stays text."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from mnemoscope.core.explanation import Explanation, Token, Word
from mnemoscope.reporting import explanation, report
from mnemoscope.reporting.text import visible
from mnemoscope.runs.folder import Run, open_run
from tests.reporting import world
from tests.reporting.browser import Window

OLD_RUNS = sorted((Path(__file__).parents[1] / "runs").glob("schema-*"))
TEXTS = {visible(text, 400) for text in world.texts().values()}


@pytest.fixture
def window(chromium: Browser, tmp_path: Path) -> Iterator[Window]:
    """Give a window of desktop size."""
    opened = Window(chromium, tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def web(window: Window) -> Iterator[Window]:
    """Give a window, and see afterwards that nothing went wrong in it."""
    yield window
    assert window.complaints == []
    local = ("file:", "data:", "about:", "blob:")
    assert [url for url in window.requests if not url.startswith(local)] == []


def press(web: Window, *keys: str) -> None:
    for key in keys:
        web.page.keyboard.press(key)


def listed(web: Window) -> list[str]:
    return web.texts("#list .prompt")


@pytest.mark.parametrize("form", ["page", "single"])
def test_every_part_loads_and_hostile_prompts_stay_text(
    web: Window, form: str, request: pytest.FixtureRequest
) -> None:
    web.open(request.getfixturevalue(form))
    assert web.run("return document.title") == (
        "6 of 12 prompts reproduce a training image · embedded · mnemoscope"
    )
    assert web.until("return document.querySelector('#count').textContent") == (
        "16 of 16 prompts, similarity by l2, threshold 0.85, g = 7.5"
    )
    assert set(listed(web)) == TEXTS
    # Lazy pictures load when they come into view, and none is broken.
    web.run("document.querySelector('#list').scrollIntoView()")
    assert web.until(
        "const i = [...document.querySelectorAll('#list img')];"
        "return i.length === 16 && i.slice(0, 4).every(e => e.complete && e.naturalWidth === 192)"
    )
    for place in range(16):
        web.run(f"location.hash = '#p/{place}/7.5'")
        shown = web.until(
            "return location.hash === arguments[0] && document.querySelectorAll('.curve').length"
            " === 5 && document.querySelector('#prompt-title').textContent",
            f"#p/{place}/7.5",
        )
        assert shown in {visible(text) for text in world.texts().values()}


def test_the_policy_refuses_another_script(window: Window, page: Path, tmp_path: Path) -> None:
    # The list of complaints is only worth something if a page that breaks the policy fills it.
    broken = tmp_path / "broken.html"
    text = page.read_text("utf-8")
    broken.write_text(text.replace("</main>", "<script>document.title = 'x'</script></main>"))
    window.open(broken)
    assert any("Content Security Policy" in line for line in window.complaints)
    assert window.run("return document.title") != "x"


def test_search_filter_and_sort_by_click_and_key(web: Window, page: Path) -> None:
    web.open(page)
    first = listed(web)
    web.page.fill("#search", "Picture c1")
    assert listed(web) == ["a picture of c1"]
    web.page.click("#clear")
    web.until("return document.querySelectorAll('#list .card').length === 16")
    web.choose("#group", "control")
    assert len(listed(web)) == 4
    web.page.click("#clear")
    web.until("return document.querySelectorAll('#list .card').length === 16")
    web.choose("#score", "0")
    web.page.fill("#low", "0.5")
    assert len(listed(web)) == 6
    web.page.click("#clear")
    web.until("return document.querySelectorAll('#list .card').length === 16")
    web.choose("#order", "up")
    web.until("return document.querySelector('#order').value === 'up'")
    assert sorted(listed(web)[-6:]) == sorted(first[:6]), (listed(web), first)
    web.page.click("input[value=table]")
    assert len(web.texts("#list tbody tr")) == 16
    head = "#list thead th:nth-child(6)"
    way = f"return document.querySelector('{head}').getAttribute('aria-sort')"
    web.page.click(f"{head} button")
    assert web.run(way) == "descending"
    values = [float(text) for text in web.texts("#list tbody td:nth-child(6)")]
    assert values == sorted(values, reverse=True)
    press(web, "Enter")
    assert web.run(way) == "ascending"
    values = [float(text) for text in web.texts("#list tbody td:nth-child(6)")]
    assert values == sorted(values)


@pytest.mark.parametrize("form", ["page", "single"])
def test_scrubber_shows_the_estimate_of_the_call(
    web: Window, form: str, request: pytest.FixtureRequest
) -> None:
    web.open(request.getfixturevalue(form), "#p/0/7.5")
    web.until("return document.querySelectorAll('.film .frame').length === 12")
    web.run("document.querySelector('#step').focus()")
    press(web, "Home")

    def call() -> int:
        return int(web.run("return document.querySelector('#step').value"))

    def shown(branch: int) -> tuple[int, int, int]:
        return web.colour(f".film .frame:nth-of-type({5 * branch + 2})")

    def expected(branch: int) -> tuple[int, int, int]:
        column = min(range(len(world.FILM)), key=lambda c: abs(world.FILM[c] - call()))
        return 64 * branch, 16 * column, 0

    assert call() == 0
    assert [shown(b) for b in range(3)] == [expected(b) for b in range(3)]
    press(web, *["ArrowRight"] * 13)
    assert call() == 13
    assert [shown(b) for b in range(3)] == [expected(b) for b in range(3)]
    web.drag("#step", 0.5, 0.98)
    assert call() > 40
    assert shown(2) == expected(2)
    web.drag(".curve svg", 0.9, 0.3)
    assert 3 < call() < 20
    assert shown(1) == expected(1)
    # Away from the slider the arrow keys scrub as well, and the readouts follow.
    web.run("document.querySelector('#prompt').focus()")
    before, said = call(), web.texts(".readout")
    press(web, "ArrowLeft")
    assert call() == before - 1
    assert web.texts(".readout") != said
    assert f"call {before} of 50" in web.texts(".player .where")[0]
    press(web, "Escape")
    assert web.until("return document.querySelector('#prompt').hidden")


def test_readout_is_the_mean_of_the_record(web: Window, whole_run: Run, page: Path) -> None:
    web.open(page, "#p/0/7.5")
    web.until("return document.querySelectorAll('.curve').length === 5")
    web.run("document.querySelector('#step').focus()")
    press(web, "Home", *["ArrowRight"] * 20)
    gram, keys = whole_run.gram("path", 7.5)
    mine = keys["prompt_id"] == "m5"
    weights = gram.fit("x", ["target", "x_T"]).weights[mine, 20].mean(0)
    shown = [float(text.split(", ")[0]) for text in web.texts(".readout")]
    assert shown[:2] == pytest.approx(weights.tolist(), rel=0.01)
    assert shown[3] == pytest.approx(float(gram.rms("gap")[mine, 20].mean()), rel=0.01)


def test_two_sides_move_in_step(web: Window, page: Path) -> None:
    web.open(page, "#p/0/7.5")
    web.until("return document.querySelectorAll('.side').length === 1")
    web.choose("#beside", "0/1")
    web.until("return document.querySelectorAll('.side').length === 2")
    web.run("document.querySelector('#step').focus()")
    press(web, "Home", "ArrowRight", "ArrowRight")
    markers = web.run(
        "return [...document.querySelectorAll('.chart')].map(e => e.querySelector"
        "('path[stroke=currentColor]').getAttribute('d'))"
    )
    assert len(markers) == 10
    assert len(set(markers)) == 1
    # Both sides share the axes, or a difference would not be seen.
    scales = web.run(
        "return [...document.querySelectorAll('.side')].map(s => [...s.querySelectorAll('.chart')]"
        ".map(c => [...c.querySelectorAll('text')].map(t => t.textContent).join()))"
    )
    assert scales[0] == scales[1]
    web.page.fill(".finder input", "picture of c1")
    web.page.click(".hits button")
    web.until("return document.querySelectorAll('.side.control').length === 1")
    assert web.run("return document.querySelector('.side.control .title').textContent") == (
        "a picture of c1"
    )


def test_pictures_of_both_sides_fit_a_phone(web: Window, page: Path) -> None:
    web.size(390, 844)
    web.open(page, "#p/0/7.5/with/0/1")
    web.until("return document.querySelectorAll('.side .film').length === 2")
    rooms = web.run(
        "return [...document.querySelectorAll('.stage .scroll')].map(e => [e.scrollWidth,"
        " e.clientWidth])"
    )
    assert len(rooms) == 2
    assert all(needed <= room for needed, room in rooms)


def test_a_prompt_shows_where_its_scores_lie(web: Window, page: Path) -> None:
    web.open(page, "#p/0/7.5")
    web.until("return document.querySelectorAll('.scored').length === 2")
    # m5 is the last of six that copy, and the scores of the first detector rise with the place.
    assert web.texts(".scored p") == [
        "consensus_whitened 12.6, the highest of 16 prompts",
        "gap_norm 10, the highest of 16 prompts",
    ]
    # 15 others and itself: six of them are memorized, and stand above the line.
    ticks = "return [...document.querySelectorAll('.strip')].map(s => [...s.querySelectorAll("
    ticks += "'path')].filter(p => p.getAttribute('d').includes(arguments[0])).length)"
    assert web.run(ticks, "v-11") == [6, 6]
    assert web.run(ticks, "v11") == [10, 10]
    # The others are folded away, and a name is text whatever it says.
    assert web.run("return !document.querySelector('.scores details[open]')")
    assert web.texts(".ranks tbody th")[2:] == [world.HOSTILE[0], "length"]
    place = web.run(
        "return [...document.querySelectorAll('#list .prompt')].findIndex(e => e.textContent"
        ".endsWith('of p3'))"
    )
    web.run("location.hash = '#p/' + arguments[0] + '/7.5'", place)
    web.until("return document.querySelector('#prompt-title').textContent === 'a picture of p3'")
    cells = web.texts(".ranks tbody tr:last-child > *")
    assert cells == ["length", "no score", visible(world.HOSTILE[1])]


def test_prints_as_a_document(web: Window, page: Path) -> None:
    web.open(page)
    web.until("return document.querySelectorAll('#list .card').length === 16")
    pages = len(re.findall(rb"/Type /Page\b", web.printed()))
    # Two figures share a row, so that they, their tables and all the words take fewer pages.
    assert 5 < pages < web.run("return document.querySelectorAll('figure.panel').length")
    web.page.emulate_media(media="print")
    shown = "return [...document.querySelectorAll(arguments[0])].some(e => e.checkVisibility())"
    assert not web.run(shown, "nav, .controls, .save, #more")
    # What is folded away on a screen cannot be opened on paper.
    assert web.run("return !document.querySelector('details[open]')")
    assert web.run(shown, "details figure")
    assert web.run(shown, "details td")


def test_a_missing_detail_is_said(window: Window, page: Path, tmp_path: Path) -> None:
    alone = tmp_path / "index.html"
    alone.write_bytes(page.read_bytes())
    window.open(alone, "#p/0/7.5")
    said = window.until("return document.querySelector('#prompt [role=alert]')?.textContent")
    assert "data/0.html cannot be read" in said


def test_exports(web: Window, page: Path, whole_run: Run) -> None:
    web.open(page)
    web.choose("#group", "control")
    web.page.click("#csv")
    rows = list(csv.DictReader(io.StringIO(web.downloaded("prompts.csv").decode())))
    assert {row["prompt_id"] for row in rows} == {"c0", "c1", "c2", "c3"}
    assert all(float(row["severity"]) < 0.85 for row in rows)
    web.page.click("#argument .save button")
    web.page.click("#argument .save button:nth-child(2)")
    name = web.run("return document.querySelector('#argument figure').dataset.name")
    drawn = web.downloaded(f"{name}.svg").decode()
    assert drawn.startswith("<svg")
    assert "var(" not in drawn
    assert web.downloaded(f"{name}.png").startswith(b"\x89PNG")
    web.page.click("a[download='severity.parquet']")
    (web.downloads / "copy.parquet").write_bytes(web.downloaded("severity.parquet"))
    table = pq.read_table(web.downloads / "copy.parquet")
    assert table.to_pylist() == whole_run.table("severity").to_pylist()


def test_statistics_are_found_and_sorted(web: Window, page: Path) -> None:
    web.open(page)
    web.page.fill("#find", "pearson D1 early")
    web.page.fill("#find", "Pearson")
    shown = web.run(
        "return [...document.querySelectorAll('#figures tbody tr')].filter(r => r.offsetParent)"
        ".map(r => r.textContent)"
    )
    assert shown
    assert all("pearson" in text.lower() for text in shown)


def test_comparison_is_sorted_and_searched(web: Window, both: Path) -> None:
    web.open(both)
    assert web.run("return document.querySelector('h1').textContent") == (
        "6 of 12 prompts reproduce an image in A, 3 in B"
    )
    web.page.fill("input.filter", "control")
    shown = web.run(
        "return [...document.querySelectorAll('#pairs tbody tr')].filter(r => !r.hidden).length"
    )
    assert shown == 4
    web.page.click("#differences thead th:nth-child(5) button")
    sort = "return document.querySelector('#differences th:nth-child(5)').getAttribute('aria-sort')"
    assert web.run(sort) == "descending"


def test_the_address_holds_the_list_and_going_back_returns_to_it(web: Window, page: Path) -> None:
    web.open(page)
    web.choose("#group", "control")
    web.page.fill("#search", "picture")
    assert web.run("return location.hash") == "#prompts?search=picture&group=control"
    shown = listed(web)
    assert 0 < len(shown) < 16
    web.run("document.querySelector('#list').scrollIntoView({behavior: 'instant'})")
    # Where the reader is is noted once scrolling has come to rest.
    web.until("return history.state && Math.abs(history.state.scroll - scrollY) < 2")
    place = web.run("return scrollY")
    web.page.click("#list .card")
    web.until("return document.querySelectorAll('.side').length === 1")
    web.page.go_back()
    web.until("return document.querySelector('#prompt').hidden")
    assert listed(web) == shown
    assert web.run("return Math.abs(scrollY - arguments[0]) < 2", place)
    # The same address shows the same list in a page that was just opened.
    web.open(page, "#prompts?search=picture&group=control")
    assert listed(web) == shown
    assert web.run("return document.querySelector('#group').value") == "control"


def test_a_dot_names_its_prompt_and_opens_it(web: Window, page: Path) -> None:
    web.open(page)
    dots = "#verdict [data-place]"
    assert web.run("return document.querySelectorAll(arguments[0]).length", dots) == 16
    dot = web.page.locator("#verdict [data-place='0']")
    dot.scroll_into_view_if_needed()
    dot.hover(force=True)
    assert web.texts(".tip .prompt") == [listed(web)[0]]
    dot.click(force=True)
    assert web.until("return location.hash") == "#p/0/7.5"
    web.until("return document.querySelectorAll('.side').length === 1")
    # A prompt is not offered beside itself, at its own guidance.
    choices = web.run("return [...document.querySelector('#beside').options].map(o => o.value)")
    assert "0/1" in choices
    assert "0/7.5" not in choices
    # Whatever ends playing, the button says what pressing it does.
    web.page.click(".play")
    assert web.texts(".play") == ["Pause"]
    web.page.focus("#step")
    press(web, "ArrowRight")
    assert web.texts(".play") == ["Play"]


def test_letters_of_figures_can_be_read_on_a_phone(web: Window, page: Path) -> None:
    web.size(390, 844)
    web.open(page)
    smallest = web.run(
        "return Math.min(...[...document.querySelectorAll('#verdict svg text')].map(t =>"
        " parseFloat(getComputedStyle(t).fontSize) * t.ownerSVGElement.getBoundingClientRect()"
        ".width / t.ownerSVGElement.viewBox.baseVal.width))"
    )
    assert smallest >= 11


def test_redacted_page_shows_no_picture(web: Window, whole_run: Run, tmp_path: Path) -> None:
    page = report(whole_run, tmp_path, single_file=True, redact_images=True)
    web.open(page, "#p/0/7.5")
    web.until("return document.querySelectorAll('.curve').length === 5")
    assert web.run("return document.querySelectorAll('img').length") == 0
    assert web.run("return document.querySelectorAll('.stage .digest').length") == 1 + world.SEEDS
    web.run("location.hash = '#prompts'")
    web.until("return document.querySelectorAll('#list .card').length === 16")
    assert web.run("return document.querySelectorAll('img').length") == 0
    # The image and four samples, each with the similarity of its picture.
    prints = web.texts("#list .card:first-child .missing")
    assert len(prints) == 1 + 4
    assert all(text.split()[1].startswith("0.9") for text in prints[1:])
    # A digest is one long word.
    for width in (1280, 390):
        web.size(width, 900)
        web.open(page)
        web.until("return document.querySelectorAll('#list .card').length === 16")
        assert web.run("return document.documentElement.scrollWidth") == width


@pytest.mark.skipif(not OLD_RUNS, reason="no run folder of an older schema is kept in tests/runs")
@pytest.mark.parametrize("folder", OLD_RUNS, ids=lambda path: path.name)
def test_an_older_run_still_opens(web: Window, folder: Path, tmp_path: Path) -> None:
    web.open(report(open_run(folder), tmp_path, single_file=True), "#p/0")
    assert web.until("return document.querySelector('#prompt-title')?.textContent")


def violations(web: Window) -> list[tuple[str, int, str, str]]:
    found = Axe().run(web.page).response["violations"]
    return [
        (one["id"], len(nodes), nodes[0]["html"][:200], nodes[0]["failureSummary"])
        for one in found
        for nodes in [one["nodes"]]
    ]


def test_the_checker_sees_what_is_wrong(web: Window, both: Path) -> None:
    # An empty list is only worth something if a page that is wrong fills it.
    web.open(both)
    web.run(
        "document.documentElement.removeAttribute('lang');"
        "document.querySelector('h1').style.color = 'color-mix(in srgb, var(--paper), gray 5%)'"
    )
    assert {"html-has-lang", "color-contrast"} <= {found[0] for found in violations(web)}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_accessible(web: Window, single: Path, both: Path, width: int, dark: bool) -> None:
    web.size(width, 900, dark)
    for path, fragment, ready in (
        (single, "", "return document.querySelectorAll('#list .card').length === 16"),
        (single, "#p/0/7.5/with/0/1", "return document.querySelectorAll('.side').length === 2"),
        (both, "", "return document.readyState === 'complete'"),
    ):
        web.open(path, fragment)
        web.until(ready)
        # What is folded away or shown in another view is part of the page as well.
        web.run(
            "for (const e of document.querySelectorAll('details')) e.open = true;"
            "document.querySelector('input[value=table]')?.click()"
        )
        assert violations(web) == []
        # Nothing is wider than a phone, or the reader scrolls in two directions.
        assert web.run("return document.documentElement.scrollWidth") <= width
    web.open(single)
    web.until("return document.querySelectorAll('#list .card').length === 16")
    assert violations(web) == []


@pytest.mark.parametrize("width", [1280, 390])
def test_an_explanation_is_accessible_and_fits(web: Window, tmp_path: Path, width: int) -> None:
    tokens = tuple(Token(i, f"token{i}", "text", 0.1 * i, 0.02 * i, 0.01) for i in range(77))
    words = (Word("a", 0, 0.2, 0.1, 0.3), Word("picture", 2, 0.9, 0.8, 1.1))
    maps = {name: torch.rand(4, 16, 16) for name in ("squared gap", "bright ending")}
    shown = Explanation(
        "a picture", words, tokens, maps, {"curvature": "no second derivative"},
        torch.rand(4, 3, 64, 64), torch.rand(3, 64, 64),
    )  # fmt: skip
    page = tmp_path / "explanation.html"
    page.write_text(explanation.page(shown, shown), "utf-8")
    web.size(width, 900)
    web.open(page)
    assert web.run("return document.documentElement.scrollWidth") == width
    assert web.run("return document.querySelector('img').naturalWidth") == 64
    web.run("document.querySelector('details').open = true")
    assert violations(web) == []
