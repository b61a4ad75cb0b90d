"""The lab's tokenizer is a CLIP tokenizer in which every word of the lab is one token.

It is a byte-level BPE trained on the word list until every word is whole, so any other text still
encodes, in smaller pieces. It loads with transformers' `CLIPTokenizer`.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

WINDOW = 77
"""Longest prompt in tokens, as in Stable Diffusion."""

START, END = "<|startoftext|>", "<|endoftext|>"
SUFFIX = "</w>"


def build_tokenizer(words: Iterable[str], out: Path) -> CLIPTokenizer:
    """Train the tokenizer and write it as `vocab.json` and `merges.txt` with its configuration.

    Args:
        words: Every word that must be one token.
        out: Folder to write to.

    Returns:
        The tokenizer as transformers loads it.

    Source: ours; the format is that of Radford et al. 2021 (CLIP).
    """
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=100_000,
        end_of_word_suffix=SUFFIX,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer = Tokenizer(BPE())
    tokenizer.train_from_iterator(sorted(set(words)), trainer)
    merges = [
        tuple(m.split(" ")) if isinstance(m, str) else tuple(m)
        for m in json.loads(tokenizer.to_str())["model"]["merges"]
    ]
    pieces = [*alphabet, *(c + SUFFIX for c in alphabet), *("".join(m) for m in merges), START, END]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    out.mkdir(parents=True, exist_ok=True)
    # Annotated as file names; mappings and lists are taken as well.
    build: Any = CLIPTokenizer
    built = build(
        vocab=vocab,
        merges=merges,
        model_max_length=WINDOW,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
    )
    built.save_pretrained(out)
    # Older transformers read these two files instead of tokenizer.json.
    (out / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (out / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8"
    )
    return built
