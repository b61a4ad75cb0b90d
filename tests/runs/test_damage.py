"""Damage to a run folder is noticed wherever it strikes; a hostile one harms nothing outside it."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from mnemoscope.cli import app
from mnemoscope.errors import RunError
from mnemoscope.flows.study import Study
from mnemoscope.flows.study import run as run_study
from mnemoscope.runs import folder as module
from mnemoscope.runs import parts, records
from mnemoscope.runs.folder import Writer, open_run, repair
from mnemoscope.runs.tables import TABLES
from mnemoscope.runs.verify import verify
from tests.runs.test_folder import filled, manifest, samples

SMALL = ("samples", "similarities", "severity")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage")
    (folder / "prompts.txt").write_text("target 0\nsomething else\n")
    return run_study(
        Study(
            model="oracle:memorizer", prompts=folder / "prompts.txt", seeds=2, steps=3,
            guidance=(7.5,), out=folder / "run", device="cpu",
        )
    ).path  # fmt: skip


def content(folder):
    """Return all that a reader of a run is told."""
    run = open_run(folder)
    tables = {name: run.table(name).to_pylist() for name in SMALL}
    gram, _ = run.gram("path", 7.5)
    constants = [part.numpy() for _, part in sorted(run.constants.items())]
    numbers = [gram.products.numpy(), *constants]
    told = run.manifest.model_dump()
    return repr((tables, told)), b"".join(np.ascontiguousarray(part).tobytes() for part in numbers)


def flips(data, many):
    """Yield damaged copies of a file: one bit each, spread over it, and torn at a few places."""
    for at in np.linspace(0, len(data) - 1, many).astype(int):
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(at % 7)
        yield bytes(damaged)
    yield from (data[: len(data) // 2], data[:-1], b"")


@pytest.mark.parametrize(
    ("pattern", "many"),
    [
        ("manifest.json", 16),
        ("constants.safetensors", 10),
        ("commits/0*.json", 10),
        ("commits/constants.json", 6),
        ("gram/*.parquet", 4),
    ],
)
def test_no_damaged_file_enters_a_result(whole, pattern, many):
    file = next(whole.glob(pattern))
    data, expected = file.read_bytes(), content(whole)
    tried, noticed = 0, 0
    try:
        for damaged in flips(data, many):
            file.write_bytes(damaged)
            tried += 1
            try:
                # White space may change; nothing that is told may.
                assert content(whole) == expected
            except RunError:
                noticed += 1
                assert not verify(whole).ok
    finally:
        file.write_bytes(data)
    assert tried == many + 3
    assert noticed >= tried // 2


@pytest.mark.parametrize("pattern", ["commits/*.json", "constants.safetensors", "*/*.parquet"])
def test_no_file_can_be_taken_away_unseen(whole, pattern):
    files = sorted(whole.glob(pattern))
    assert files
    for file in files:
        data = file.read_bytes()
        file.unlink()
        try:
            found = verify(whole)
            assert not found.ok
            assert file.stem in str(found)
        finally:
            file.write_bytes(data)
    assert verify(whole).ok


def test_a_lost_unit_is_told_on_opening_and_made_again(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    lost = next((folder / "commits").glob("0*.json"))
    lost.unlink()
    with pytest.raises(RunError, match=lost.stem):
        open_run(folder)
    found = verify(folder)
    assert found.lost == (lost.stem,)
    assert found.ahead == 0


def test_a_unit_lost_from_an_interrupted_run_is_told(tmp_path):
    given = manifest(units={"*": 5})
    with Writer.open(tmp_path, given) as writer:
        for at in range(3):
            writer.append(f"{at:06d}", {"samples": samples(f"p{at}")})
        writer.close(given, "interrupted")
    assert open_run(tmp_path).table("samples").num_rows == 6
    assert verify(tmp_path).ahead == 2
    (tmp_path / "commits" / "000001.json").unlink()
    with pytest.raises(RunError, match="lost"):
        open_run(tmp_path)
    assert verify(tmp_path).lost == ("000001",)


def test_a_commit_under_another_name_is_refused(tmp_path):
    folder = filled(tmp_path / "run")
    shutil.copy(folder / "commits" / "a.json", folder / "commits" / "b.json")
    with pytest.raises(RunError, match="another unit"):
        open_run(folder).table("samples")


def test_a_commit_that_names_no_part_hides_no_rows(whole, tmp_path):
    at = tmp_path / "run"
    shutil.copytree(whole, at)
    unit = sorted(path for path in (at / "commits").glob("0*.json"))[0]
    unit.write_bytes(b"{}")
    with pytest.raises(RunError, match="names no part"):
        open_run(at).table("samples")
    assert not verify(at).ok


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"schema": 2}', None])
def test_a_damaged_manifest_is_rebuilt_from_its_copy(whole, tmp_path, damage):
    folder = shutil.copytree(whole, tmp_path / "run")
    before = open_run(folder).manifest
    (folder / "manifest.json").unlink()
    if damage is not None:
        (folder / "manifest.json").write_bytes(damage)
    with pytest.raises(RunError, match="--repair"):
        open_run(folder)
    done = CliRunner().invoke(app, ["verify", str(folder), "--repair"])
    assert done.exit_code == 0, done.output
    after = open_run(folder).manifest
    assert after.finished is not None
    assert after.model_copy(update={"finished": before.finished}) == before


def test_the_same_command_rebuilds_a_manifest_too(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    before = open_run(folder).manifest
    (folder / "manifest.json").write_bytes(b"\x00" * 100)
    options = {k: v for k, v in before.given.items() if k != "out"}
    again = run_study(Study(**(options | {"out": folder, "guidance": (7.5,)}))).manifest
    assert (again.samples, again.rows, again.started) == (
        before.samples,
        before.rows,
        before.started,
    )
    assert verify(folder).ok


def test_a_manifest_without_a_whole_copy_is_not_made_up(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    for name in ("manifest.json", "manifest.copy.json"):
        (folder / name).write_bytes(b"{")
    with pytest.raises(RunError, match="copy is damaged as well"):
        repair(folder)
    assert not verify(folder).ok


def test_repair_leaves_a_whole_manifest_alone(whole):
    before = (whole / "manifest.json").read_bytes()
    assert repair(whole).status == "complete"
    assert (whole / "manifest.json").read_bytes() == before


def older(folder):
    """Turn a run into one from before there were digests."""
    told = json.loads((folder / "manifest.json").read_text())
    for name in ("sha256", "units", "done"):
        told.pop(name, None)
    (folder / "manifest.json").write_text(json.dumps(told, indent=1))
    (folder / "manifest.copy.json").unlink()
    (folder / "commits" / "constants.json").unlink(missing_ok=True)
    for commit in (folder / "commits").glob("*.json"):
        commit.write_text(json.dumps(json.loads(commit.read_text())["parts"]))
    return folder


def test_a_folder_from_before_there_were_digests_opens_and_is_given_them(whole, tmp_path):
    folder = older(shutil.copytree(whole, tmp_path / "run"))
    assert content(folder)[1] == content(whole)[1]
    found = verify(folder)
    assert found.ok
    assert found.unchecked == 2 + len(open_run(folder).commits())
    given = {k: v for k, v in open_run(folder).manifest.given.items() if k != "out"}
    run_study(Study(**(given | {"out": folder, "guidance": (7.5,)})))
    assert verify(folder).unchecked == 0
    assert content(folder)[1] == content(whole)[1]


def test_a_power_cut_between_constants_and_their_commit_computes_them_anew(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    before = open_run(folder).mean
    (folder / "commits" / "constants.json").unlink()
    (folder / "constants.safetensors").write_bytes(b"torn")
    given = {k: v for k, v in open_run_loosely(folder).given.items() if k != "out"}
    again = run_study(Study(**(given | {"out": folder, "guidance": (7.5,)})))
    assert torch.equal(again.mean, before)


def open_run_loosely(folder):
    return module.read_manifest(folder)


# What a stranger's folder may try.


def outside(tmp_path):
    victim = tmp_path / "victim.parquet"
    victim.write_bytes(b"precious")
    return victim


@pytest.mark.parametrize("name", ["../victim", "..", "/etc", "samples/../../victim", "constants"])
def test_names_in_commits_lead_nowhere(tmp_path, name):
    folder = filled(tmp_path / "run")
    victim = outside(tmp_path)
    commit = {name: {"sha256": "0" * 64, "rows": 1}}
    # As an older folder has it, and with a digest that is right.
    for data in (json.dumps(commit).encode(), records.sealed({"unit": "x", "parts": commit})):
        (folder / "commits" / "x.json").write_bytes(data)
        with pytest.raises(RunError, match=r"x\.json"):
            open_run(folder).table("samples")
        with Writer.open(folder, manifest()) as writer:
            assert writer.finished() == {"a", "b", "c"}
    assert victim.read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "victim.parquet"]


@pytest.mark.parametrize("link", ["samples", "commits"])
def test_nothing_is_written_through_a_linked_table(tmp_path, link):
    folder, away = tmp_path / "run", tmp_path / "away"
    with Writer.open(folder, manifest()):
        pass
    away.mkdir()
    (folder / link).symlink_to(away)
    with (
        pytest.raises(RunError, match="link"),
        Writer.open(folder, manifest()) as writer,
    ):
        writer.append("a", {"samples": samples("a")})
    assert list(away.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["manifest.json", ".manifest.json.tmp", "samples/.a.parquet.tmp", ".lock"]
)
def test_nothing_is_written_through_a_linked_file(tmp_path, name):
    folder = tmp_path / "run"
    with Writer.open(folder, manifest()):
        pass
    victim = outside(tmp_path)
    (folder / "samples").mkdir()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(victim)
    try:
        with Writer.open(folder, manifest()) as writer:
            writer.append("a", {"samples": samples("a")})
    except RunError:
        pass
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("where", ["manifest.json", "commits/a.json"])
@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, "{" + " " * 2**21 + "}", "{" + "\n" * 9],
)
def test_deep_and_huge_records_are_refused(tmp_path, where, text):
    folder = filled(tmp_path / "run")
    (folder / where).write_text(text)
    with pytest.raises(RunError, match="damaged"):
        open_run(folder).table("samples")


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    folder = filled(tmp_path / "run")
    (folder / "samples" / "a.parquet").unlink()
    os.mkfifo(folder / "samples" / "a.parquet")
    with pytest.raises(RunError, match="regular"):
        open_run(folder).table("samples")


def bomb(kind):
    if kind == "values":
        column = pa.array(np.zeros(10**6, np.int32))
    elif kind == "texts":
        some = pa.array(["y" * 10**4]).dictionary_encode()
        column = some.take(pa.array(np.zeros(10**4, np.int64))).cast(pa.string())
    else:
        texts = pa.array(["z" * 10**4] * 10**4)
        column = pa.ListArray.from_arrays(pa.array([0, 5000, 10**4], pa.int32()), texts)
    return pa.table({"prompt_id": column})


@pytest.mark.parametrize("kind", ["values", "texts", "lists"])
def test_a_part_that_unpacks_into_much_is_refused(tmp_path, monkeypatch, kind):
    rows = bomb(kind)
    folder = filled(tmp_path / "run", ["a"])
    part = folder / "samples" / "a.parquet"
    pq.write_table(rows, part, compression="zstd")
    data = part.read_bytes()
    assert len(data) < 20_000
    commit = {"samples": module._told(data, rows.num_rows)}
    record = records.sealed({"unit": "a", "parts": commit})
    (folder / "commits" / "a.json").write_bytes(record)
    # A hundredth of what is allowed, so that the test itself stays small.
    monkeypatch.setattr(parts, "MAX_PART", parts.MAX_PART // 100)
    with pytest.raises(RunError, match="unpacks"):
        open_run(folder).table("samples")


def test_parts_come_back_as_they_were():
    strips = TABLES["filmstrips"].of_rows(
        [
            {
                "prompt_id": f"p{at}", "seed": at, "recipe": "g", "calls": [1] * (at % 3),
                "branches": ["a", "b"], "side": 3, "image": bytes(at),
            }
            for at in range(50)
        ]
    )  # fmt: skip
    for rows, table in ((strips, TABLES["filmstrips"]), (samples("a"), TABLES["samples"])):
        assert parts.decode(parts.encode(table, rows), rows.num_rows).equals(rows)
        with pytest.raises(ValueError, match="rows"):
            parts.decode(parts.encode(table, rows), rows.num_rows + 1)


def test_verify_on_the_command_line(whole, tmp_path):
    assert CliRunner().invoke(app, ["verify", str(whole)]).exit_code == 0
    folder = shutil.copytree(whole, tmp_path / "run")
    part = next((folder / "gram").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-1])
    done = CliRunner().invoke(app, ["verify", str(folder)])
    assert done.exit_code == 3
    assert part.name in done.output
    assert Path(done.output.splitlines()[0].split(":")[0]) == folder
