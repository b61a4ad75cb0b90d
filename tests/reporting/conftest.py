"""One run folder and its pages, made once for all tests of the report."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from mnemoscope.reporting import compare, report
from mnemoscope.runs.folder import Run
from tests.reporting import world
from tests.reporting.browser import CHROMIUM, browser


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Write the synthetic run."""
    return world.write(tmp_path_factory.mktemp("whole") / "run", world.rows())


@pytest.fixture(scope="session")
def page(whole_run: Run) -> Path:
    """Write its report as a folder."""
    return report(whole_run)


@pytest.fixture(scope="session")
def single(whole_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write its report as a single file."""
    return report(whole_run, tmp_path_factory.mktemp("single"), single_file=True)


@pytest.fixture(scope="session")
def mended_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Write the run in which every prompt of even number is forgotten."""
    return world.write(tmp_path_factory.mktemp("mended") / "run", world.rows(forgotten=world.EVEN))


@pytest.fixture(scope="session")
def both(whole_run: Run, mended_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the page that holds the two against each other."""
    return compare(whole_run, mended_run, tmp_path_factory.mktemp("both"))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Start the machine's Chromium, one for all tests."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with browser() as opened:
        yield opened
