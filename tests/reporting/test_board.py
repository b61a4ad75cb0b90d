"""The leaderboard's section: what the ranking says is in the page, where it belongs."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mnemoscope.errors import RunError
from mnemoscope.reporting import report
from mnemoscope.reporting.board import board
from mnemoscope.runs.folder import Run
from mnemoscope.runs.tables import TABLES

HOSTILE = "<script>document.title='pwned'</script>"


def write(folder: Path, digest: str = "0" * 64) -> Path:
    """Write three detectors: a good dear one, a poor cheap one, a poor dear one without number."""
    folder.mkdir()
    rows = [
        {
            "detector": name, "kind": "prompt", "metric": metric, "population": "all",
            "value": value, "low": None if value is None else value - 0.07,
            "high": None if value is None else value + 0.03, "memorized": 6, "others": 10,
            "method": "m", "reason": None if value is not None else "6 positives",
            "network_calls": calls, "seconds": 0.25,
        }
        for name, calls, aucs in (
            ("cheap", 4.0, (0.61, None)), ("dear", 200.0, (0.93, 0.5)), (HOSTILE, 300.0, (0.8, 0.4))
        )
        for metric, value in zip(("auc", "tpr"), aucs, strict=True)
    ]  # fmt: skip
    pq.write_table(TABLES["ranking"].of_rows(rows), folder / "ranking.parquet")
    facts = {"model": {"digest": digest}, "cut": 0.5, "measure": "l2", "guidance": 7.5,
             "memorized": 6, "others": 10, "left_out": 0,
             "origins": {"cheap": "ours", "dear": "published"}}  # fmt: skip
    (folder / "bench.json").write_text(json.dumps(facts))
    return folder


def test_best_comes_first_and_price_buys(whole_run: Run, tmp_path: Path) -> None:
    found = board(whole_run, write(tmp_path / "bench"))
    assert found is not None
    assert [line.auc for line in found.lines] == [0.93, 0.8, 0.61]
    assert found.panel is not None
    assert found.panel.named == ("cheap", "dear")
    # The third costs more than the second and tells less, so nobody should buy it.
    assert "cheap (4 calls, AUC 0.610); dear (200 calls, AUC 0.930)." in found.panel.caption


def test_page_shows_it_and_its_text_stays_text(whole_run: Run, tmp_path: Path) -> None:
    folder = write(tmp_path / "bench")
    page = report(whole_run, tmp_path / "out", single_file=True, leaderboard=folder)
    text = page.read_text("utf-8")
    assert '<section id="detectors">' in text
    assert "0.860 to 0.960" in text
    assert "Withheld: 6 positives." in text
    assert 'title="6 positives">withheld' in text
    assert HOSTILE not in text
    assert 'data-name="0-board-1"' in text


def test_other_folders_are_refused_or_passed_over(whole_run: Run, tmp_path: Path) -> None:
    assert board(whole_run, None) is None
    with pytest.raises(RunError, match=r"holds no ranking\.parquet"):
        board(whole_run, tmp_path)
    with pytest.raises(RunError, match="other weights"):
        board(whole_run, write(tmp_path / "other", "1" * 64))
    damaged = write(tmp_path / "damaged")
    (damaged / "bench.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        board(whole_run, damaged)
