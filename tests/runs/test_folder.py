"""Writing, reading, damage, full disks and locks of run folders."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mnemoscope.core.gram import NAMES, PAIRS
from mnemoscope.data.images import thumbnail
from mnemoscope.errors import NeedsError, RunError
from mnemoscope.mitigations.guidance_interval import GuidanceInterval
from mnemoscope.runs import folder as module
from mnemoscope.runs.folder import Writer, open_run
from mnemoscope.runs.manifest import Manifest
from mnemoscope.runs.tables import TABLES
from mnemoscope.sampling.recipe import Recipe

UNGUIDED, GUIDED = Recipe(guidance=1.0), Recipe(guidance=7.5)
STEERED = Recipe(guidance=7.5, intervention=GuidanceInterval())


def manifest(**changes):
    values = {
        "given": {},
        "options": {"seeds": 2, "steps": 3, "batch": 4, "similarity": ["l2"]},
        "packages": {"torch": "2"},
        "model": {"name": "m", "digest": "d" * 64},
        "prompts": "p",
        "device": "cpu",
        "dtype": "float32",
        "final_level": (1.0, 0.0),
        "d": 5,
        "latent_shape": (5,),
    }
    return Manifest(**(values | changes))


def samples(prompt_id, status="ok"):
    return TABLES["samples"].of_rows(
        [
            {
                "prompt_id": prompt_id,
                "seed": seed,
                "recipe": UNGUIDED.key,
                "status": status,
                "network_calls": 6,
                "seconds": 0.5,
            }
            for seed in range(2)
        ]
    )


def filled(folder, units=("a", "b", "c")):
    with Writer.open(folder, manifest()) as writer:
        for unit in units:
            writer.append(unit, {"samples": samples(unit)})
    return folder


def test_what_is_written_is_read(tmp_path):
    run = open_run(filled(tmp_path / "run"))
    assert run.table("samples")["prompt_id"].to_pylist() == ["a", "a", "b", "b", "c", "c"]
    assert run.table("gram").num_rows == 0
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_parts_carry_page_checksums(tmp_path):
    folder = filled(tmp_path / "run", ["a"])
    part = folder / "samples" / "a.parquet"
    data = bytearray(part.read_bytes())
    # The last byte of a column is of a page; a page's header is not covered by its checksum.
    column = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(0).column(0)
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    with pytest.raises(OSError, match=r"(?i)crc|checksum|corrupt|invalid|deserialize"):
        pq.read_table(pa.BufferReader(bytes(data)), page_checksum_verification=True)


def test_manifest_is_small_and_round_trips(tmp_path):
    with Writer.open(tmp_path, manifest()) as writer:
        writer.append("a", {"samples": samples("a")})
        writer.append("b", {"samples": samples("b", "nonfinite")})
        run = writer.close(manifest(), "complete")
    assert (tmp_path / "manifest.json").stat().st_size <= 4096
    assert open_run(tmp_path).manifest == run.manifest
    assert run.manifest.samples == {"ok": 2, "nonfinite": 2}
    assert run.manifest.rows == {"samples": 4}


@pytest.mark.parametrize("where", range(0, 100, 7))
def test_any_changed_byte_is_noticed_and_its_unit_runs_again(tmp_path, where):
    folder = filled(tmp_path / "run")
    part = folder / "samples" / "b.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) * where // 100] ^= 1
    part.write_bytes(data)
    with pytest.raises(RunError, match=r"b\.parquet"):
        open_run(folder).table("samples")
    with Writer.open(folder, manifest()) as writer:
        assert writer.finished() == {"a", "c"}
        assert (folder / "samples" / "b.parquet.corrupt").exists()
        writer.append("b", {"samples": samples("b")})
    assert open_run(folder).table("samples").num_rows == 6


@pytest.mark.parametrize("kept", [0, 10, 0.5, -1])
def test_torn_part_is_noticed(tmp_path, kept):
    folder = filled(tmp_path / "run")
    part = folder / "samples" / "c.parquet"
    data = part.read_bytes()
    part.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    with Writer.open(folder, manifest()) as writer:
        assert writer.finished() == {"a", "b"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"samples": {}}', b'{"samples": 1}'])
def test_damaged_commit_is_set_aside(tmp_path, content):
    folder = filled(tmp_path / "run")
    (folder / "commits" / "a.json").write_bytes(content)
    if content != b"[]":
        with pytest.raises(RunError, match=r"a\.json"):
            open_run(folder).table("samples")
    with Writer.open(folder, manifest()) as writer:
        assert writer.finished() == {"b", "c"}


def test_missing_part_is_noticed(tmp_path):
    folder = filled(tmp_path / "run")
    (folder / "samples" / "a.parquet").unlink()
    with Writer.open(folder, manifest()) as writer:
        assert writer.finished() == {"b", "c"}


def test_part_without_commit_is_not_read(tmp_path):
    folder = filled(tmp_path / "run")
    (folder / "commits" / "b.json").unlink()
    assert open_run(folder).table("samples")["prompt_id"].to_pylist() == ["a", "a", "c", "c"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"options": {"seeds": 3, "steps": 3, "batch": 4, "similarity": ["l2"]}}, "seeds: 2 there"),
        ({"prompts": "other"}, "prompts or training images"),
        ({"model": {"name": "m", "digest": "e" * 64}}, "weights of the model"),
        ({"dtype": "bfloat16"}, "dtype: float32 there, bfloat16 here"),
        ({"flow": "detection"}, "flow: a study there, a detection here"),
        ({"methods": "other"}, "formulas of the detectors"),
    ],
)
def test_other_study_is_refused_by_name_of_what_differs(tmp_path, changes, word):
    folder = filled(tmp_path / "run")
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(RunError, match=word), Writer.open(folder, manifest(**changes)):
        pass
    assert (folder / "manifest.json").read_bytes() == before


def test_batch_and_device_may_change(tmp_path):
    folder = filled(tmp_path / "run")
    options = {"seeds": 2, "steps": 3, "batch": 1, "similarity": ["l2"]}
    with Writer.open(folder, manifest(options=options, device="cuda")) as writer:
        assert len(writer.finished()) == 3


def test_an_option_that_came_later_is_taken_as_not_asked_for():
    older = manifest()
    newer = manifest(options=older.options | {"filmstrip": 0})
    assert older.differences(newer) == newer.differences(older) == []
    asked = manifest(options=older.options | {"filmstrip": 16})
    assert older.differences(asked) == ["filmstrip: 0 there, 16 here"]


def test_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match="not empty"), Writer.open(tmp_path, manifest()):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_second_process_is_refused(tmp_path):
    filled(tmp_path / "run")
    code = (
        "import sys\n"
        "from tests.runs.test_folder import manifest\n"
        "from pathlib import Path\n"
        "from mnemoscope.runs.folder import Writer\n"
        "with Writer.open(Path(sys.argv[1]), manifest()): pass\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    root = Path(__file__).parents[2]
    with Writer.open(tmp_path / "run", manifest()):
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "another process is writing" in done.stderr
    again = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_failure_at_any_write_leaves_earlier_parts_intact(tmp_path, monkeypatch, call, code):
    real = getattr(os, call)
    fail_at = 0
    told = []
    while True:
        folder = tmp_path / f"{fail_at}"
        count = 0

        def failing(*args, at=fail_at):
            nonlocal count
            count += 1
            if count - 1 == at:
                raise OSError(code, os.strerror(code))
            return real(*args)

        monkeypatch.setattr(module.os, call, failing)
        message = ""
        try:
            filled(folder)
        except RunError as error:
            message = str(error)
        finally:
            monkeypatch.setattr(module.os, call, real)
        if not message:
            break
        assert os.strerror(code) in message
        assert str(folder) in message
        assert not list(folder.rglob("*.tmp"))
        if (folder / "manifest.json").exists():
            kept = open_run(folder).table("samples")["prompt_id"].to_pylist()
            assert kept == ["a", "a", "b", "b", "c", "c"][: len(kept)]
        filled(folder)
        assert open_run(folder).table("samples").num_rows == 6
        fail_at += 1
    assert fail_at >= 6
    assert all(place in text and os.strerror(code) in text for place, text in told)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 2}', '{"schema": 3}'])
def test_damaged_or_foreign_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=r"damaged|schema"):
        open_run(tmp_path)


def test_no_run_folder_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"no run folder"):
        open_run(tmp_path / "nothing")


def test_gram_comes_back_as_it_went(tmp_path):
    vectors = torch.randn(2, 3, len(NAMES), 5, dtype=torch.float64)
    products = vectors @ vectors.mT
    # A matrix product of itself is symmetric but for rounding; a record holds one of the two.
    products = (products + products.mT) / 2
    rows = [
        {
            "prompt_id": "a",
            "seed": seed,
            "recipe": recipe,
            "law": law,
            "call": call,
            "alpha": 0.6,
            "sigma": 0.8,
        }
        | {
            f"{a}·{b}": products[seed, call, NAMES.index(a), NAMES.index(b)].item()
            for a, b in PAIRS
        }
        for law, recipe in (("path", GUIDED.key), ("noise", None))
        for seed in range(2)
        for call in range(3)
    ]
    with Writer.open(tmp_path, manifest()) as writer:
        writer.append("inputs", {"recipes": TABLES["recipes"].of_rows([GUIDED.row])})
        writer.append("a", {"gram": TABLES["gram"].of_rows(rows)})
    run = open_run(tmp_path)
    gram, keys = run.gram("path", 7.5)
    assert torch.equal(gram.products, products)
    assert gram.names == NAMES
    assert keys["seed"].tolist() == [0, 1]
    assert keys["prompt_id"].tolist() == ["a", "a"]
    assert torch.equal(run.gram("path")[0].products, products)
    assert torch.equal(run.gram("noise")[0].products, products)
    with pytest.raises(NeedsError, match="forward"):
        run.gram("forward")
    with pytest.raises(NeedsError, match=r"\[7\.5\]"):
        run.gram("path", 3.0)


def test_a_recipe_is_named_where_a_guidance_scale_names_several(tmp_path):
    rows, pictures = [], []
    for value, recipe in enumerate((GUIDED, STEERED)):
        key = {"prompt_id": "a", "seed": 0, "recipe": recipe.key}
        told = {"law": "path", "call": 0, "alpha": 0.6, "sigma": 0.8}
        rows.append(key | told | {f"{a}·{b}": float(value) for a, b in PAIRS})
        picture = thumbnail(torch.full((3, 8, 8), float(value)))
        told = {"status": "ok", "network_calls": 2, "seconds": 0.1, "image": picture}
        pictures.append(key | told)
    with Writer.open(tmp_path, manifest()) as writer:
        recipes = [GUIDED.row, STEERED.row, UNGUIDED.row]
        writer.append("inputs", {"recipes": TABLES["recipes"].of_rows(recipes)})
        parts = {"gram": TABLES["gram"].of_rows(rows)}
        writer.append("a", parts | {"samples": TABLES["samples"].of_rows(pictures)})
    run = open_run(tmp_path)
    for given in (("path", 7.5), ("path",)):
        with pytest.raises(NeedsError, match=f"{GUIDED.key}|say which"):
            run.gram(*given)
    with pytest.raises(NeedsError, match=STEERED.key):
        run.image("a", 0, 7.5)
    for value, recipe in enumerate((GUIDED, STEERED)):
        assert (run.gram(recipe=recipe.key)[0].products == value).all()
        assert run.image("a", 0, recipe=recipe.key).getpixel((0, 0)) == (255 * value,) * 3
    with pytest.raises(NeedsError, match=UNGUIDED.key):
        run.gram("path", 1.0)


def recipes_and_samples(folder):
    """Write samples of two recipes, a unit each."""
    with Writer.open(folder, manifest()) as writer:
        rows = [UNGUIDED.row, GUIDED.row]
        writer.append("inputs", {"recipes": TABLES["recipes"].of_rows(rows)})
        for unit, recipe in (("a", UNGUIDED), ("b", GUIDED)):
            told = [row | {"recipe": recipe.key} for row in samples(unit).to_pylist()]
            writer.append(unit, {"samples": TABLES["samples"].of_rows(told)})
    return open_run(folder)


def test_a_view_has_the_guidance_scale_beside_the_recipe(tmp_path):
    run = recipes_and_samples(tmp_path)
    shown = run.table("samples")
    at = shown.column_names.index("recipe")
    assert shown.column_names[at + 1] == "guidance"
    assert shown["guidance"].to_pylist() == [1.0, 1.0, 7.5, 7.5]
    assert set(shown.column_names) - set(TABLES["samples"].schema.names) == {"guidance"}
    assert run.recipes[GUIDED.key] == GUIDED.row
    assert run.table("recipes")["guidance"].to_pylist() == [1.0, 7.5]
    assert run.table("samples").schema.field("guidance").metadata[b"about"]


def test_parts_are_the_table_in_pieces(tmp_path):
    run = recipes_and_samples(tmp_path)
    parts = list(run.parts("samples"))
    assert [part.num_rows for part in parts] == [2, 2]
    assert pa.concat_tables(parts).equals(run.table("samples"))
    assert list(run.parts("gram")) == []


def test_some_columns_are_those_of_the_whole_table(tmp_path):
    run = recipes_and_samples(tmp_path)
    names = ["seed", "guidance"]
    assert run.table("samples", names).equals(run.table("samples").select(names))
    assert pa.concat_tables(run.parts("samples", names)).equals(run.table("samples", names))
    assert run.table("gram", names).column_names == names


def test_a_part_is_what_one_unit_wrote(tmp_path):
    run = recipes_and_samples(tmp_path)
    assert run.units("samples") == {"a": 2, "b": 2}
    assert run.units("gram") == {}
    parts = [run.part("samples", unit) for unit in "ab"]
    assert pa.concat_tables(parts).equals(run.table("samples"))
    assert run.part("samples", "b", ["seed"]).column_names == ["seed"]
    for unit in ("inputs", "c"):
        with pytest.raises(RunError, match=f"unit '{unit}'"):
            run.part("samples", unit)


def test_parts_are_read_one_at_a_time(tmp_path):
    run = recipes_and_samples(tmp_path)
    held = run.parts("samples")
    assert next(held)["prompt_id"].to_pylist() == ["a", "a"]
    (tmp_path / "samples" / "b.parquet").unlink()
    with pytest.raises(RunError, match=r"b\.parquet"):
        next(held)


def test_constants_come_back_and_damage_is_noticed(tmp_path):
    with Writer.open(tmp_path, manifest()) as writer:
        writer.write_constants({"mean": torch.arange(5.0)})
    run = open_run(tmp_path)
    assert torch.equal(run.mean, torch.arange(5.0))
    assert run.exact is None
    (tmp_path / "constants.safetensors").write_bytes(b"short")
    with pytest.raises(RunError, match="differs"):
        _ = open_run(tmp_path).mean
    (tmp_path / "constants.safetensors").unlink()
    with pytest.raises(RunError, match="cannot be read"):
        _ = open_run(tmp_path).mean
    with Writer.open(tmp_path, manifest()) as writer:
        assert writer.finished() == set()
    assert open_run(tmp_path).mean is None


@pytest.mark.parametrize("lacks", ["replace", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_cannot_do_what_is_needed_is_refused(
    tmp_path, monkeypatch, lacks, number
):
    def lacking(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module.os, lacks, lacking)
    with pytest.raises(RunError, match="cannot lock, rename or sync"):
        filled(tmp_path / "run")


@pytest.mark.parametrize("error", [NotImplementedError("flock"), OSError(errno.EOPNOTSUPP, "no")])
def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch, error):
    def lacking(self, **options):
        raise error

    monkeypatch.setattr(module.FileLock, "acquire", lacking)
    with pytest.raises(RunError, match="cannot lock, rename or sync"):
        filled(tmp_path / "run")
