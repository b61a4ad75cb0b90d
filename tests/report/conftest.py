"""One run folder and its page, made once for all tests of the report."""

from pathlib import Path

import pytest

from mnemoscope.report import report
from mnemoscope.runs import Run
from tests.report import world


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Write the synthetic run."""
    return world.write(tmp_path_factory.mktemp("whole") / "run", world.rows())


@pytest.fixture(scope="session")
def page(whole_run: Run) -> Path:
    """Write its report."""
    return report(whole_run)
