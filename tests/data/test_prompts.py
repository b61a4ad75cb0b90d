"""Prompt lists: every layout, and every way to break one, with the line it breaks in."""

import csv
import hashlib
import json
import pickle
import tracemalloc
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mnemoscope.data.prompts import (
    MAX_LINE,
    Prompt,
    PromptList,
    load_prompts,
    read_prompts,
    stratified,
)
from mnemoscope.errors import InputError
from mnemoscope.lab.prompts import embedded_prompts


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / name)
    return tmp_path


def broken(path, message):
    with pytest.raises(InputError, match=message) as caught:
        load_prompts(path)
    return str(caught.value)


ROWS = [
    {"prompt": "a cat, a dog", "group": "x", "level": 3, "images": "a.png"},
    {"prompt": 'he said "no"', "group": None, "level": None, "images": None},
    {"prompt": "naïve 猫 😀", "group": "y", "level": 0, "images": ["a.png", "b.png"]},
]


def in_jsonl(folder):
    return write(folder / "p.jsonl", "\n".join(json.dumps(r) for r in ROWS))


def in_csv(folder):
    with (folder / "p.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        for row in ROWS:
            images = row["images"]
            row = row | {"images": json.dumps(images) if isinstance(images, list) else images}
            writer.writerow(row)
    return folder / "p.csv"


def in_parquet(folder):
    rows = [
        r | {"images": [r["images"]] if isinstance(r["images"], str) else r["images"]} for r in ROWS
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "p.parquet")
    return folder / "p.parquet"


@pytest.mark.parametrize("layout", [in_jsonl, in_csv, in_parquet])
def test_layouts_hold_the_same(folder, layout):
    prompts = load_prompts(layout(folder))
    assert [p.text for p in prompts] == [r["prompt"] for r in ROWS]
    assert [p.group for p in prompts] == ["x", None, "y"]
    assert [p.level for p in prompts] == [3, None, 0]
    assert [[f.name for f in p.images] for p in prompts] == [["a.png"], [], ["a.png", "b.png"]]
    # The same row has the same name in every layout.
    assert [p.prompt_id for p in prompts] == [p.prompt_id for p in load_prompts(in_jsonl(folder))]


def test_plain_text(tmp_path):
    path = write(tmp_path / "p.txt", b"\xef\xbb\xbfone\r\n\r\n two  words \nlast")
    prompts = load_prompts(path)
    assert [p.text for p in prompts] == ["one", " two  words ", "last"]
    assert prompts[0].images == ()


@pytest.mark.parametrize("name", ["prompt", "Prompt", "caption", "Caption", "text"])
def test_text_columns(tmp_path, name):
    assert load_prompts(write(tmp_path / "p.jsonl", json.dumps({name: "x"})))[0].text == "x"


def test_websters_columns_load_as_they_are(tmp_path):
    row = {
        "caption": "Hardwood 7SAPS31403",
        "url": "https://example.org/a.jpg",
        "index": 1917461520,
        "overfit_type": "MV",
        "gen_seeds": [1, 2],
        "mse_real_gen": 0.5,
    }
    rows = [row, {"caption": "no label", "index": 7, "url": ""}]
    path = write(tmp_path / "p.jsonl", "\n".join(map(json.dumps, rows)))
    first, second = load_prompts(path)
    assert (first.index, first.url, first.overfit_type) == ("1917461520", row["url"], "MV")
    assert (second.index, second.url, second.overfit_type) == ("7", None, None)
    assert first.images == ()


def test_an_index_column_with_gaps_stays_whole(tmp_path):
    table = pa.table({"caption": ["a", "b"], "index": pa.array([5.0, None])})
    pq.write_table(table, tmp_path / "p.parquet")
    assert [p.index for p in load_prompts(tmp_path / "p.parquet")] == ["5", None]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_image_folders(folder, suffix):
    rows = [{"file_name": "a.png", "text": "a"}, {"file_name": "b.png", "text": "b"}]
    if suffix == "jsonl":
        write(folder / "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    elif suffix == "csv":
        write(folder / "metadata.csv", "file_name,text\na.png,a\nb.png,b\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")
    prompts = load_prompts(folder)
    assert [(p.text, p.images[0].name) for p in prompts] == [("a", "a.png"), ("b", "b.png")]


def test_image_folders_need_one_metadata_file(folder):
    broken(folder, "found none")
    write(folder / "metadata.csv", "file_name,text\na.png,a\n")
    write(folder / "metadata.jsonl", "{}")
    broken(folder, "found metadata.jsonl, metadata.csv")


def test_names_are_stable_and_unique(tmp_path):
    path = write(tmp_path / "p.txt", "same\nother\nsame\nsame\n")
    ids = [p.prompt_id for p in load_prompts(path)]
    assert len(set(ids)) == 4
    elsewhere = tmp_path / "deep" / "q.txt"
    elsewhere.parent.mkdir()
    assert [p.prompt_id for p in load_prompts(write(elsewhere, "same\n"))] == ids[:1]
    labelled = write(tmp_path / "p.jsonl", '{"prompt": "same", "group": "x", "level": 3}')
    assert [p.prompt_id for p in load_prompts(labelled)] == ids[:1]


def test_the_same_captions_are_the_same_prompts_in_every_layout(folder):
    rows = [{"file_name": "a.png", "text": "a cat"}, {"file_name": "b.png", "text": "a cat"}]
    write(folder / "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    lists = [
        folder,
        write(folder / "p.csv", "Caption,group\na cat,x\na cat,y\n"),
        write(folder / "p.jsonl", '{"prompt": "a cat"}\n{"prompt": "a cat", "url": "u"}'),
        write(folder / "p.txt", "a cat\na cat\n"),
    ]
    found = [[p.prompt_id for p in load_prompts(path)] for path in lists]
    assert len(set(found[0])) == 2
    assert all(ids == found[0] for ids in found)


def test_names_that_were_given_and_hashed_ones_do_not_meet(tmp_path):
    (first, second) = load_prompts(write(tmp_path / "p.txt", "a\na\n"))
    rows = [
        {"prompt": "a", "prompt_id": first.prompt_id},
        {"prompt": "a"},
        {"prompt": "b"},
        {"prompt": "b"},
    ]
    path = write(tmp_path / "p.jsonl", "\n".join(map(json.dumps, rows)))
    held = read_prompts(path)
    assert [p.prompt_id for p in held][:2] == [first.prompt_id, second.prompt_id]
    assert len({p.prompt_id for p in held}) == 4
    write(path, "\n".join(map(json.dumps, rows[::-1])))
    assert "p.jsonl:3" in broken(path, r"p\.jsonl:4: prompt_id .* is already that of")


def test_a_list_streams_and_knows_its_length(folder):
    held = read_prompts(in_jsonl(folder))
    assert len(held) == 3
    assert list(held) == list(held) == list(load_prompts(folder / "p.jsonl"))
    assert next(iter(held)).text == ROWS[0]["prompt"]
    assert list(pickle.loads(pickle.dumps(held))) == list(held)


def test_the_digest_is_of_what_is_in_the_list_and_not_of_where_it_lies(folder, tmp_path_factory):
    plain = write(tmp_path_factory.mktemp("other") / "q.txt", "one\ntwo\n")
    here = read_prompts(plain).digest
    assert read_prompts(write(folder / "p.txt", "one\n\ntwo")).digest == here
    assert read_prompts(write(folder / "p.csv", "caption\none\ntwo\n")).digest == here
    differing = [
        "caption\ntwo\none\n",
        "caption\none\n",
        "caption,group\none,x\ntwo,\n",
        "caption,level\none,1\ntwo,\n",
        "caption,prompt_id\none,x\ntwo,\n",
        "caption,images\none,a.png\ntwo,\n",
        "caption,images\none,b.png\ntwo,\n",
        "caption,mask\none,b.png\ntwo,\n",
    ]
    others = {read_prompts(write(folder / "p.csv", text)).digest for text in differing}
    assert len(others | {here}) == 1 + len(differing)


def test_a_list_that_changed_is_not_gone_on_with(tmp_path):
    path = write(tmp_path / "p.txt", "one\ntwo\n")
    held = read_prompts(path)
    write(path, "one\ntwo\nthree\n")
    with pytest.raises(InputError, match="has changed"):
        list(held)
    path.unlink()
    with pytest.raises(InputError, match="cannot read"):
        list(held)


def test_a_list_of_prompts_in_memory():
    prompts = [Prompt("a", "one", images=(torch.zeros(3, 4, 4),)), Prompt("b", "two", level=2)]
    held = PromptList.of(prompts)
    assert (len(held), list(held)) == (2, prompts)
    assert PromptList.of(held) is held
    other = [Prompt("a", "one", images=(torch.ones(3, 4, 4),)), prompts[1]]
    assert PromptList.of(other).digest != held.digest
    assert PromptList.of([Prompt("b", "two", level=2)]).digest != held.digest
    with pytest.raises(InputError, match="'a' is given twice"):
        PromptList.of([prompts[0], prompts[0]])
    with pytest.raises(InputError, match="no prompts given"):
        PromptList.of([])
    plain = PromptList.of([Prompt("x", "one", group="g")])
    assert len(plain.digest) == 64


def test_own_names(tmp_path):
    path = write(tmp_path / "p.jsonl", '{"prompt": "a", "prompt_id": "mine-1"}')
    assert load_prompts(path)[0].prompt_id == "mine-1"
    path = write(tmp_path / "p.csv", "prompt_id,prompt\nx,a\ny,b\nx,c\n")
    assert "p.csv:2" in broken(path, r"p\.csv:4: prompt_id 'x'")
    path = write(tmp_path / "p.csv", "prompt_id,prompt\n../x,a\n")
    broken(path, r"p\.csv:2: prompt_id")


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv"])
@pytest.mark.parametrize("content", [b"", b"\n\r\n\n", b" \t \n", b"\xef\xbb\xbf"])
def test_empty_files(tmp_path, suffix, content):
    broken(write(tmp_path / f"p.{suffix}", content), "holds no prompts")


def test_empty_tables(tmp_path):
    broken(write(tmp_path / "p.csv", "prompt,group\n"), "holds no prompts")
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "p.parquet")
    broken(tmp_path / "p.parquet", "holds no prompts")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', r"p\.jsonl:2: broken JSON"),
        ("p.jsonl", '{"prompt": "a"}\n"a"\n', r"p\.jsonl:2: expected an object"),
        ("p.jsonl", "[" * 500_000, r"p\.jsonl:1: broken JSON"),
        ("p.jsonl", '{"prompt": "a", "index": 1' + "0" * 5000 + "}", r"p\.jsonl:1: broken JSON"),
        ("p.jsonl", '{"promt": "a"}', r"p\.jsonl:1: no prompt column.*'promt'"),
        ("p.jsonl", '{"prompt": 5}', r"p\.jsonl:1: the prompt must be text, got int 5"),
        ("p.jsonl", '{"prompt": null}', r"p\.jsonl:1: the prompt must be text"),
        ("p.jsonl", '{"prompt": " \\n "}', r"p\.jsonl:1: the prompt is blank"),
        ("p.jsonl", '{"prompt": "a\\u0000b"}', r"p\.jsonl:1: prompt holds .* U\+0000"),
        ("p.jsonl", '{"prompt": "a\\ud800b"}', r"p\.jsonl:1: prompt holds .* U\+D800"),
        ("p.jsonl", '{"prompt": "a", "group": {"b": 1}}', r"p\.jsonl:1: group must be"),
        ("p.jsonl", '{"prompt": "a", "level": "high"}', r"p\.jsonl:1: level must be"),
        ("p.jsonl", '{"prompt": "a", "level": NaN}', r"p\.jsonl:1: level must be"),
        ("p.jsonl", '{"prompt": "a", "images": 3}', r"p\.jsonl:1: images must be"),
        ("p.jsonl", '{"prompt": "a", "images": [null]}', r"p\.jsonl:1: images must be"),
        ("p.jsonl", '{"prompt": "a", "images": "no.png"}', r"p\.jsonl:1: no image .*no\.png"),
        ("p.jsonl", '{"prompt": "a", "image": "http://x.org/a.png"}', r"p\.jsonl:1: .*download"),
        ("p.jsonl", '{"prompt": "a", "image": "../../../../../../etc/passwd"}', "outside"),
        ("p.jsonl", '{"prompt": "a", "mask": "/etc/passwd"}', "outside"),
        ("p.csv", "prompt,group\na,b\nc\n", r"p\.csv:3: 1 cells under 2 columns"),
        ("p.csv", "prompt,group\na,b,c\n", r"p\.csv:2: 3 cells under 2 columns"),
        ("p.csv", 'prompt,group\n"a,b\n', r"p\.csv:\d: broken CSV"),
        ("p.csv", "promt,group\na,b\n", r"p\.csv:2: no prompt column"),
        ("p.csv", "prompt,prompt\na,b\n", r"p\.csv:1: the header names 'prompt' more than once"),
        ("p.csv", 'prompt,images\na,"[""b"\n', r"p\.csv:2: the images are no JSON list"),
        ("p.csv", 'prompt\n"' + "x" * 200_000 + '"\n', r"p\.csv:2: broken CSV"),
        ("p.txt", "ok\n" + "x" * 10_000_000, r"p\.txt:2: the line is longer"),
        ("p.jsonl", "x" * (MAX_LINE + 1), r"p\.jsonl:1: the line is longer"),
        ("p.txt", "ok\n" + "x" * 30_000, r"p\.txt:2: prompt has 30000 characters"),
        ("p.txt", b"ok\nca\xe9\n", r"p\.txt:2: invalid UTF-8 at byte 2"),
        ("p.txt", "ok".encode("utf-16"), r"p\.txt:1: invalid UTF-8"),
        ("p.txt", b"a\0b\n", r"p\.txt:1: .*NUL"),
        ("p.txt", b"a\x1b[31mb\n", r"p\.txt:1: .*U\+001B"),
        ("p.txt", b"one\rtwo\r", r"p\.txt:1: a carriage return"),
        ("p.parquet", b"PAR1 nothing PAR1", "no readable Parquet"),
        ("p.parquet", b"", "no readable Parquet"),
        ("p.yaml", "- a", "cannot tell the format"),
    ],
)
def test_broken_files_are_refused_with_their_line(tmp_path, name, content, message):
    broken(write(tmp_path / name, content), message)


def test_messages_stay_short(tmp_path):
    row = json.dumps({"x" * 10_000: 1, "images": "y" * 10_000})
    assert len(broken(write(tmp_path / "p.jsonl", row), "no prompt column")) < 1000


def test_missing_files(tmp_path):
    broken(tmp_path / "p.txt", "no prompt file")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": pa.array([1, 2])}, r"row 1: the prompt must be text, got int"),
        ({"prompt": pa.array([b"a", b"b"])}, r"row 1: the prompt must be text, got bytes"),
        ({"prompt": pa.array(["a", None])}, r"row 2: the prompt must be text, got NoneType"),
        ({"words": pa.array(["a", "b"])}, r"no prompt column.*'words'"),
        ({"prompt": ["a", "b"], "image": pa.array([{"bytes": b""}] * 2)}, r"row 1: images must"),
        ({"prompt": ["a", "b"], "images": pa.array([[1], [2]])}, r"row 1: images must"),
    ],
)
def test_parquet_of_wrong_types(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    broken(tmp_path / "p.parquet", message)


def test_parquet_with_invalid_text(tmp_path):
    text = pa.array([b"ok", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"prompt": text}), tmp_path / "p.parquet")
    broken(tmp_path / "p.parquet", "no readable Parquet")


def bomb(path, texts, **options):
    pq.write_table(pa.table({"prompt": texts}), path, compression="zstd", **options)
    assert path.stat().st_size < 50_000
    return path


def test_a_parquet_file_may_not_unpack_into_more_than_prompts(tmp_path):
    path = bomb(tmp_path / "p.parquet", ["x" * 2**26], use_dictionary=False)
    broken(path, r"row group 0 unpacks to 6\d{7} bytes for 1 rows")
    # One value that fits, repeated: the file is small however often.
    path = bomb(tmp_path / "q.parquet", ["x" * 900_000] * 500)
    tracemalloc.start()
    broken(path, r"row group 0: prompt has 900000 bytes")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    few = pa.table({"prompt": ["a"], "images": [[""] * 10_000]})
    pq.write_table(few, tmp_path / "r.parquet")
    broken(tmp_path / "r.parquet", "more than 1000 values a row")


def test_a_caption_that_repeats_is_read(tmp_path):
    path = bomb(tmp_path / "p.parquet", ["x" * 1000] * 5000)
    held = read_prompts(path)
    assert len(held) == len({p.prompt_id for p in held}) == 5000


def test_links_may_not_leave_the_folder(folder):
    inside = folder / "inside"
    inside.mkdir()
    (inside / "link.png").symlink_to(folder / "a.png")
    path = write(inside / "metadata.jsonl", '{"file_name": "link.png", "text": "a"}')
    broken(path, r"metadata\.jsonl:1: .*outside")
    assert load_prompts(path, root=folder)[0].images == (inside / "link.png",)


def test_prompts_compare_by_name_and_labels(folder):
    a, b = load_prompts(in_jsonl(folder)), load_prompts(in_jsonl(folder))
    assert a == b
    assert len({*a, *b}) == 3
    with pytest.raises(AttributeError):
        a[0].text = "other"


def test_a_choice_is_even_and_keeps_the_order():
    items = list(range(12))
    strata = [(0,)] * 8 + [(1,)] * 2 + [(2,)] * 2
    chosen = stratified(items, strata, 7, "test")
    assert chosen == sorted(chosen)
    assert Counter(strata[i] for i in chosen) == {(0,): 3, (1,): 2, (2,): 2}
    assert stratified(items, strata, None, "test") == items
    assert stratified(items, strata, 0, "test") == []
    for count in (-1, 13):
        with pytest.raises(InputError, match=f"asked for {count} test prompts; there are 12"):
            stratified(items, strata, count, "test")


def test_a_small_choice_spans_the_levels():
    strata = [(level, kind) for level in range(1, 7) for kind in "ab"]
    levels = [
        [strata[i][0] for i in stratified(range(12), strata, count, "test")]
        for count in range(1, 7)
    ]
    assert levels == [[6], [1, 6], [1, 5, 6], [1, 2, 5, 6], [1, 2, 4, 5, 6], [1, 2, 3, 4, 5, 6]]
    kinds = Counter(strata[i][1] for i in stratified(range(12), strata, 6, "test"))
    assert kinds == {"a": 3, "b": 3}


def test_a_small_subset_of_the_embedded_prompts_spans_the_levels():
    assert {p.level for p in embedded_prompts(planted=6, controls=2)} == set(range(7))
    assert embedded_prompts(planted=1, controls=0)[0].level == 6


def test_the_demos_subset_stays():
    ids = [p.prompt_id for p in embedded_prompts(planted=18, controls=6)]
    assert hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16] == "265604c0758f3af2"


def test_embedded_prompts():
    prompts = embedded_prompts(planted=14, controls=4)
    assert Counter(p.group for p in prompts) == {"planted": 14, "control": 4}
    assert {p.family for p in prompts} == {"verbatim", "template", "control"}
    assert {p.level for p in prompts} == {0, 1, 2, 3, 4, 5, 6}
    assert len({p.prompt_id for p in prompts}) == 18
    for p in prompts:
        (image,) = p.images
        assert image.shape == (3, 64, 64)
        assert bool(((image >= 0) & (image <= 1)).all())
        assert (p.mask is not None) == (p.family == "template")
    templates = [p.mask for p in prompts if p.mask is not None]
    assert all(torch.equal(m, m.round()) and 0 < m.mean() < 1 for m in templates)
