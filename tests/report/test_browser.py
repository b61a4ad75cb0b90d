"""The page in a real browser: the script runs under the policy, hostile text stays text."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mnemoscope.report.text import visible
from tests.report import world

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def dump(page: Path, folder: Path) -> tuple[str, str]:
    """Return the page's elements after its script ran, and what the browser complained of."""
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu",
            "--disable-background-networking", "--enable-logging=stderr", "--v=0",
            "--virtual-time-budget=4000", f"--user-data-dir={folder}", "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, "\n".join(x for x in done.stderr.splitlines() if "CONSOLE" in x)


@pytest.fixture(scope="module")
def shown(page: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return dump(page, tmp_path_factory.mktemp("browser"))


def test_script_runs_under_the_policy(shown: tuple[str, str]) -> None:
    dom, complaints = shown
    assert complaints == ""
    assert "16 of 16 prompts, similarity by l2, threshold 0.850, g = 7.5" in dom
    assert dom.count('class="card') == 16
    assert re.search(r'<button id="more"[^>]* hidden=""', dom)


def test_hostile_prompts_stay_text(shown: tuple[str, str]) -> None:
    dom, _ = shown
    assert "<title>6 of 12 prompts reproduce a training image · mnemoscope</title>" in dom
    cards = re.findall(r'<button type="button" class="card.*?<bdi class="prompt">(.*?)</bdi>', dom)
    assert {html.unescape(card) for card in cards} == {visible(t) for t in world.texts().values()}


def test_the_policy_refuses_another_script(page: Path, tmp_path: Path) -> None:
    # The complaint list is only worth something if a page that breaks the policy fills it.
    broken = tmp_path / "broken.html"
    text = page.read_text("utf-8")
    broken.write_text(text.replace("</main>", "<script>document.title = 'x'</script></main>"))
    dom, complaints = dump(broken, tmp_path / "browser")
    assert "Content Security Policy" in complaints
    assert "<title>x</title>" not in dom
