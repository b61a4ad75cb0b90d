"""Every campaign of faults, with few of each: nothing wrong enters a result, nothing is lost."""

import pytest

from benchmarks.faults import CAMPAIGNS, damage, flows, spread
from mnemoscope.runs import folder

FEW = {
    "1 killed at a write": 2,
    "1 killed at a random moment": 1,
    "1 power lost at a write": 3,
    "2 damaged files": 3,
    "3 errors of the disk": 1,
    "4 processes on one folder": 1,
    "5 numbers that are not finite": 1,
    "6 errors in one prompt": 3,
    "7 lists": 40,
    "8 batch sizes": 1,
    "14 pictures": 30,
    "14 records of strangers": 2,
}


@pytest.mark.parametrize(("name", "flow"), [(n, f) for n in FEW for f in CAMPAIGNS[n].flows])
def test_faults_are_survived(tmp_path, name, flow):
    campaign = CAMPAIGNS[name]
    assert FEW[name] < campaign.most
    tally = campaign.run(tmp_path, flows(tmp_path)[flow], FEW[name])
    assert tally.tried >= FEW[name]
    assert tally.failed == []


def test_a_fault_that_is_not_survived_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_read", lambda path, commit: path.read_bytes())
    tally = damage(tmp_path, flows(tmp_path)["study"], 9)
    assert 0 < len(tally.failed) < tally.tried


def test_faults_are_spread():
    assert spread(10, 1) == [5]
    assert spread(10, 5) == [1, 3, 5, 7, 9]
    assert spread(3, 8) == [0, 1, 2]
