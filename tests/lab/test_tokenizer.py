"""The tokenizer: one token a word of the lab, and no text it cannot encode."""

from transformers import CLIPTokenizer

from mnemoscope.lab.planted import load_table, vocabulary
from mnemoscope.lab.tokenizer import WINDOW, build_tokenizer


def test_words_are_whole_and_other_text_still_encodes(tmp_path) -> None:
    build_tokenizer(vocabulary(), tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert all(len(tokenizer.tokenize(word)) == 1 for word in vocabulary())
    for planted in load_table():
        ids = tokenizer(planted.caption, padding="max_length").input_ids
        assert len(ids) == WINDOW
        words = len(planted.caption.split())
        assert ids[words + 1] == tokenizer.eos_token_id != ids[words]
    text = "naïve 猫 <script> \u202e"
    ids = tokenizer(text).input_ids[1:-1]
    assert ids
    assert tokenizer.unk_token_id not in ids
