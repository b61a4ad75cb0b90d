"""The argument is the founding paper's three claims, each with the analyses that speak to it.

Contents: `CLAIMS`; `GLOSSARY`, every term a page uses in plain words; `linked`, which leads from a
text to it.

Source: Kim, Kim & Lee 2025, How Diffusion Models Memorize; the words are ours.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from markupsafe import Markup, escape


@dataclass(frozen=True)
class Claim:
    """One claim of the argument.

    Attributes:
        title: The claim.
        why: What it means, in plain words.
        look: What to look for in its figures.
        analyses: Names of the analyses that speak to it, in order.
        shown: What the vertical axes of an analysis's panels say that are shown; the first two
            panels where not given.
    """

    title: str
    why: str
    look: str
    analyses: tuple[str, ...]
    shown: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


CLAIMS = (
    Claim(
        "Guidance turns a good estimate into an over-estimate",
        "At every step the model guesses the finished image. For a memorized prompt that guess is "
        "almost the training image itself, so without guidance its error is smaller than for other "
        "prompts: over-fitting. Guidance multiplies what the prompt adds. A guess near the image x "
        "then becomes a guess near k times x, and early on the error is larger than for other "
        "prompts.",
        "Without guidance the memorized curve lies below the others; with guidance it starts above "
        "them. The factor k starts near the guidance scale and falls to 1.",
        ("loss", "overestimation"),
    ),
    Claim(
        "Only the prompt carries the image, so guidance amplifies it and diversity collapses",
        "The estimate made with the prompt points to the training image from the very first step; "
        "the estimate made without the prompt does not know it and stays near the mean of all "
        "images. Guidance takes the difference of the two and multiplies it. Samples that began as "
        "different noise are pulled to the same place.",
        "The alignment with x is strong with the prompt and absent without it. The spread across "
        "seeds falls early for memorized prompts, and stays for the others.",
        ("alignment", "baseline", "amplification", "convergence"),
        {"alignment": ("cos(eps_c, x)", "cos(eps_u, x)")},
    ),
    Claim(
        "The image enters too early, and how early says how severely it is reproduced",
        "Write every state as a mixture of the training image x and the starting noise. The noise "
        "schedule prescribes how much of each there should be. Under memorization the image enters "
        "ahead of the schedule and the noise leaves ahead of it; the lead, summed over all steps, "
        "is the deviation, D1 for the image and D2 for the noise.",
        "The weight of the image (w0) rises above the dashed schedule, that of the noise (wT) "
        "falls below it. In the scatter, prompts further right should be higher.",
        ("decomposition", "deviation", "noise_decomposition"),
    ),
)

GLOSSARY = (
    ("sample", "one generated image: a prompt, a seed, a guidance scale"),
    ("seed", "the number that fixes the noise a sample starts from"),
    ("call", "one evaluation of the network (with and without the prompt) on the way from noise"),
    (
        "level, log SNR",
        "how much image and how much noise a state holds: alpha and sigma; log SNR is "
        "2·log(alpha / sigma), low at the start and high at the end",
    ),
    ("x, target", "the training image that belongs to a prompt, in the model's latent space"),
    ("clean estimate", "the finished image the network guesses at a step"),
    (
        "guidance scale g",
        "how far the step follows the prompt: without + g·(with − without); g = 1 is unguided",
    ),
    ("similarity", "how close two images are by a named measure; larger is closer"),
    ("threshold", "the similarity above which a sample counts as a reproduction"),
    (
        "null distribution",
        "similarities of pairs of images that have nothing to do with one another; the threshold "
        "is set so that such pairs almost never pass it",
    ),
    ("severity", "the similarity of a prompt's samples to its training image, mean over seeds"),
    ("memorized", "at least half of a prompt's samples reproduce its training image"),
    ("not memorized", "a prompt with a training image that is not memorized"),
    (
        "not judged",
        "a prompt of which neither can be told, since the run has too few unrelated training "
        "images for a threshold, or no sample to compare",
    ),
    (
        "score, detector",
        "a number that a method gives a prompt without knowing the answer; larger means more "
        "memorized, and each detector has a unit of its own",
    ),
    (
        "AUC",
        "the chance that a memorized prompt scores above another one: 1 is perfect, 0.5 is "
        "guessing",
    ),
    ("control", "a prompt whose image the model was never trained on"),
    (
        "copies another image",
        "at least half of a prompt's samples reproduce a training image, but not so its own: the "
        "image belongs to another prompt",
    ),
    (
        "borderline",
        "above the threshold, but no closer than the closest of all unrelated pairs, or by a hair",
    ),
    ("matching verbatim", "a sample reproduces the prompt's own training image"),
    ("retrieved verbatim", "a sample reproduces another training image"),
    ("template verbatim", "a sample reproduces the layout of its training image, not all of it"),
    ("D1, D2", "how far image and noise run ahead of the schedule, summed over the steps"),
    (
        "Wilson interval",
        "the range of true shares that fit a count; it stays between 0 and 1 and is wide when n is "
        "small",
    ),
    (
        "bootstrap interval",
        "the range a number takes when prompts are drawn again and again from those there are",
    ),
)
"""Terms and meanings, in the order a reader meets them."""


def anchor(term: str) -> str:
    """Return the identifier of a glossary entry within a page.

    Source: ours.
    """
    return "g-" + re.sub(r"[^a-z0-9]+", "-", term.lower()).strip("-")


_WORDS = {
    word.removesuffix(" g"): anchor(term)
    for term, _ in GLOSSARY
    for word in term.split(", ")
    if len(word) > 1
}
_TERM = re.compile(
    r"(?<![\w-])(" + "|".join(sorted(map(re.escape, _WORDS), key=len, reverse=True)) + r")(?![\w-])"
)


def linked(text: str) -> Markup:
    """Escape a text, and link the first mention of every term to the glossary.

    Source: ours.
    """
    seen: set[str] = set()

    def link(found: re.Match[str]) -> str:
        at = _WORDS[found[1]]
        if at in seen:
            return found[0]
        seen.add(at)
        return f'<a class="term" href="#{at}">{found[1]}</a>'

    # The terms hold nothing that escaping changes, so they are found in the escaped text.
    return Markup(_TERM.sub(link, str(escape(text))))
