"""Data sets on disk: every layout gives the same items, and what is broken ends nothing."""

import base64
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnemoscope.data.images import load_image
from mnemoscope.data.prompts import load_prompts
from mnemoscope.data.sets import Captions, read_set
from mnemoscope.errors import InputError

TEXTS = ["a red crab", "a key", "a red crab", "größte Möwe"]


def picture(at):
    array = np.random.default_rng(at).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def pictures(folder):
    folder.mkdir()
    for at in range(len(TEXTS)):
        (folder / f"{at}.png").write_bytes(picture(at))
    return folder


def sidecars(folder):
    pictures(folder)
    for at, text in enumerate(TEXTS):
        (folder / f"{at}.txt").write_text(text + "\n", encoding="utf-8")
    return folder


def metadata(folder):
    rows = [{"file_name": f"{at}.png", "text": text} for at, text in enumerate(TEXTS)]
    path = pictures(folder) / "metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return folder


def csv(folder):
    pictures(folder)
    lines = ["image,caption", *(f'{at}.png,"{text}"' for at, text in enumerate(TEXTS))]
    path = folder / "list.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def encoded(folder):
    folder.mkdir()
    path = folder / "list.jsonl"
    rows = [
        {"caption": text, "image": {"bytes": base64.b64encode(picture(at)).decode()}}
        for at, text in enumerate(TEXTS)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def table():
    images = [{"bytes": picture(at), "path": None} for at in range(len(TEXTS))]
    return pa.table({"image": images, "text": TEXTS})


def parquet(folder):
    folder.mkdir()
    pq.write_table(table(), folder / "train.parquet", row_group_size=3)
    return folder


def binary(folder):
    folder.mkdir()
    columns = {"jpg": [picture(at) for at in range(len(TEXTS))], "caption": TEXTS}
    path = folder / "one.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def arrow(folder):
    folder.mkdir()
    for at, some in enumerate((table().slice(0, 1), table().slice(1))):
        with pa.ipc.new_stream(folder / f"data-{at:05d}-of-00002.arrow", some.schema) as sink:
            sink.write_table(some, max_chunksize=2)
    (folder / "state.json").write_text("{}")
    return folder


def tar(folder):
    folder.mkdir()
    for shard, places in enumerate(((0, 1), (2, 3))):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as file:
            for at in places:
                told = json.dumps({"caption": TEXTS[at]}).encode()
                words = (".txt", TEXTS[at].encode()) if at % 2 else (".json", told)
                for end, data in ((".png", picture(at)), words):
                    member = tarfile.TarInfo(f"{at:04d}{end}")
                    member.size = len(data)
                    file.addfile(member, io.BytesIO(data))
    return folder


LAYOUTS = (sidecars, metadata, csv, encoded, parquet, binary, arrow, tar)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_items(layout, tmp_path):
    held = read_set(layout(tmp_path / "set"))
    items = list(held)
    assert [item.text for item in items] == TEXTS
    assert [item.reason for item in items] == [""] * 4
    for at in (3, 0, 1, 2):
        # Out of order: a picture inside a larger file is found without those before it.
        direct = np.asarray(Image.open(io.BytesIO(picture(at)))).transpose(2, 0, 1)
        assert np.array_equal((load_image(items[at].image).pixels * 255).round(), direct)
    assert len(held) == 4
    assert held.keys[0] == held.keys[2] != held.keys[1]


def test_captions_are_named_as_prompts_are(tmp_path):
    held = read_set(metadata(tmp_path / "set"))
    captions = Captions(held, np.ones(4, dtype=bool))
    listed = load_prompts(tmp_path / "set")
    known = {prompt.prompt_id: prompt.text for prompt in listed}
    prompts = list(captions.listed())
    assert [prompt.text for prompt in prompts] == [TEXTS[0], TEXTS[1], TEXTS[3]]
    assert all(known[prompt.prompt_id] == prompt.text for prompt in prompts)
    assert captions.counts.tolist() == [2, 1, 1]
    assert [prompt.images[0].name for prompt in prompts] == ["0.png", "1.png", "3.png"]


BROKEN = (
    '{"file_name": "0.png", "text": "fine"}',
    "{broken",
    '["no object"]',
    '{"file_name": "absent.png", "text": "no file"}',
    '{"file_name": "../outside.png", "text": "outside"}',
    '{"file_name": "1.png"}',
    '{"file_name": "1.png", "text": "   "}',
    '{"file_name": "1.png", "text": 7}',
    '{"file_name": "1.png", "text": "a\\u0000b"}',
    '{"text": "no picture"}',
    '{"file_name": ["0.png", "1.png"], "text": "two"}',
)


def test_what_is_broken_is_told_and_ends_nothing(tmp_path):
    pictures(tmp_path / "set")
    (tmp_path / "outside.png").write_bytes(picture(9))
    path = tmp_path / "set" / "metadata.jsonl"
    path.write_text("\n".join(BROKEN))
    items = list(read_set(path))
    assert len(items) == len(BROKEN)
    words = ["", "broken line", "object", "absent", "outside", "", "", "no text but int", "U+0000",
             "no picture", "list"]  # fmt: skip
    for item, word in zip(items, words, strict=True):
        assert (word in item.reason) if word else not item.reason, item
    assert [bool(item.text) for item in items] == [
        True, False, False, True, True, False, False, False, False, True, True,
    ]  # fmt: skip


def test_a_set_that_changed_is_refused(tmp_path):
    folder = sidecars(tmp_path / "set")
    held = read_set(folder)
    assert read_set(folder).digest == held.digest
    (folder / "2.txt").write_text("another")
    assert read_set(folder).digest != held.digest
    with pytest.raises(InputError, match="changed"):
        list(held)


def test_a_picture_of_another_size_is_another_set(tmp_path):
    folder = sidecars(tmp_path / "set")
    before = read_set(folder).digest
    (folder / "2.png").write_bytes(picture(2) + b"more")
    assert read_set(folder).digest != before


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda folder: folder / "absent", "no such"),
        (lambda folder: folder, "no items"),
        (lambda folder: _written(folder / "a.xlsx", b"x"), "layout"),
        (lambda folder: _written(folder / "a.parquet", b"x"), "Parquet"),
        (lambda folder: _written(folder / "a.arrow", b"x"), "Arrow"),
        (lambda folder: _written(folder / "a.tar", b"x" * 2000), "tar"),
        (lambda folder: _written(folder / "dataset_dict.json", b"{}").parent, "splits"),
    ],
)
def test_what_is_no_set_is_refused(make, word, tmp_path):
    with pytest.raises(InputError, match=word):
        read_set(make(tmp_path))


def _written(path, data):
    path.write_bytes(data)
    return path


def test_a_table_without_captions_is_refused(tmp_path):
    pq.write_table(pa.table({"image": [b"x"], "label": [1]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="label"):
        read_set(tmp_path)
