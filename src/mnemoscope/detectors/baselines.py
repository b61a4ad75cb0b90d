r"""Baselines know nothing of the model; a detector that does not beat them has shown nothing.

Formulas::

    prompt_length    - number of tokens         published lists of memorized prompts are shorter
    word_rarity      - mean over words of log(share of the list's prompts that hold the word)
    random           a number from the SHA-256 of the prompt, uniform in [0, 1)
"""

import hashlib
from dataclasses import dataclass
from math import log
from typing import ClassVar, Literal

import torch

from mnemoscope.detectors.base import Detector, PerPrompt
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.text import Text, split_words


@dataclass(frozen=True)
class Baseline(Detector):
    """A number that the prompt's text alone gives.

    Attributes:
        what: Which one.
    """

    what: Literal["prompt_length", "word_rarity", "random"] = "random"
    source: ClassVar[str] = "ours; baseline"

    @property
    def name(self) -> str:
        """Return its name."""
        return self.what

    @property
    def formula(self) -> str:
        """Return the formula."""
        return {
            "prompt_length": "- number of tokens",
            "word_rarity": "- mean log share of the list's prompts that hold a word",
            "random": "uniform number from the prompt's SHA-256",
        }[self.what]

    @property
    def needs(self) -> Needs:
        """Return the text."""
        return Needs((Text(),), uncond=False)

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the number."""
        facts = evidence[Text()]
        if self.what == "prompt_length":
            return -facts.tokens
        if self.what == "random":
            digests = [hashlib.sha256(t.encode("utf-8", "replace")).digest() for t in facts.texts]
            drawn = [int.from_bytes(digest[:6], "big") / 2**48 for digest in digests]
            return torch.tensor(drawn, dtype=torch.float64)
        rare: list[float] = []
        for text in facts.texts:
            logs = [log(facts.frequency[word]) for word in split_words(text)]
            rare.append(-sum(logs) / len(logs) if logs else float("nan"))
        return torch.tensor(rare, dtype=torch.float64)


DETECTORS = (Baseline("prompt_length"), Baseline("word_rarity"), Baseline("random"))
