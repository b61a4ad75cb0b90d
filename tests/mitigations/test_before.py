"""What acts before the first call: prompts, embeddings, noise."""

import pytest
import torch

from mnemoscope.core.predict import Prediction
from mnemoscope.errors import InputError, ModelError
from mnemoscope.mitigations import parse
from tests.mitigations.steps import start_of, step_of

TEXTS = ("a red cat", "dog")


class Reading:
    """Keeps the texts that are encoded."""

    def __init__(self, prompts, **more):
        self.texts = []
        start = start_of(prompts, **more)
        inner = start.encode

        def encode(texts):
            self.texts.append(tuple(texts))
            return inner(texts)

        object.__setattr__(start, "encode", encode)
        self.start = start


@pytest.mark.parametrize("name", ["random_numbers", "random_tokens", "word_repetition"])
def test_words_are_inserted_and_the_prompt_stays_in_order(name):
    reading = Reading(TEXTS, words=("xx", "yy", "zz"))
    parse(f"{name}(strength=3)").condition(reading.start)
    (texts,) = reading.texts
    for before, after in zip(TEXTS, texts, strict=True):
        words, own = after.split(" "), before.split(" ")
        assert len(words) == len(own) + 3
        kept = iter(words)
        assert all(word in kept for word in own), "the prompt's own words, in their order"
        added = words.copy()
        for word in own:
            added.remove(word)
        allowed = {
            "random_numbers": lambda word: word.isdigit() and int(word) < 100_000,
            "random_tokens": lambda word: word in ("xx", "yy", "zz"),
            "word_repetition": lambda word, own=own: word in own,
        }[name]
        assert all(map(allowed, added))


def test_what_is_drawn_depends_on_the_sample_alone():
    method = parse("random_numbers(strength=4)")

    def texts(prompts, seeds):
        reading = Reading(prompts, seeds=seeds)
        method.condition(reading.start)
        return reading.texts[0]

    both = texts(("a cat", "a cat"), (5, 9))
    assert both[0] != both[1]
    assert texts(("a cat",), (9,)) == (both[1],)
    assert texts(("a cat",), (9,)) == texts(("a cat",), (9,))


def test_positions_and_numbers_spread_over_their_range():
    reading = Reading(["a b c"] * 400)
    parse("random_numbers(strength=1)").condition(reading.start)
    places, numbers = [], []
    for text in reading.texts[0]:
        words = text.split(" ")
        (at,) = [place for place, word in enumerate(words) if word.isdigit()]
        places.append(at)
        numbers.append(int(words[at]))
    # 400 draws over four gaps: 100 each, within five standard deviations.
    assert all(abs(places.count(gap) - 100) < 45 for gap in range(4))
    assert 40_000 < sum(numbers) / 400 < 60_000
    assert min(numbers) < 5_000
    assert max(numbers) > 95_000


def test_nothing_is_drawn_without_generators_or_a_vocabulary():
    with pytest.raises(InputError, match="generators"):
        parse("random_numbers").condition(start_of(TEXTS, seeds=()))
    with pytest.raises(ModelError, match="vocabulary"):
        parse("random_tokens").condition(start_of(TEXTS))


def test_embedding_noise_has_its_size_and_is_a_sample_s_own():
    start = start_of(TEXTS, tokens=500)
    made = parse("embedding_noise(strength=0.3)").condition(start).embedding
    noise = made - start.cond.embedding
    assert float(noise.std()) == pytest.approx(0.3, rel=0.05)
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float((noise[0] * noise[1]).mean()) == pytest.approx(0, abs=0.01)
    again = parse("embedding_noise(strength=0.3)").condition(
        start_of(TEXTS[1:], seeds=(1,), tokens=500)
    )
    torch.testing.assert_close(again.embedding[0], made[1])


def linear(matrix):
    """Return a network whose conditional noise estimate is a matrix times the state, else 0."""

    def predict(x, condition, rows):
        flat = x.flatten(1)
        # The empty prompt is all blanks, 0.32 each.
        on = (condition.embedding[:, :, 0] - 0.32).abs().sum(dim=1, keepdim=True) > 1e-6
        eps = torch.where(on, flat @ matrix.T, torch.zeros(())).reshape(x.shape)
        return Prediction(x, eps)

    return predict


def test_noise_adjustment_follows_the_change_of_the_pull():
    matrix = torch.randn(16, 16, generator=torch.Generator().manual_seed(3)) / 8
    start = start_of(TEXTS, linear(matrix))
    made = parse("noise_adjustment(strength=0.7,radius=0.4,rounds=2)").noise(start)
    for row in range(2):
        x = start.noise[row].flatten().double()
        m = matrix.double()
        for _ in range(2):
            pull = m @ x
            # radius is a root mean square: 0.4 * sqrt(16) in length.
            away = x + 0.4 * 4 * pull / pull.norm()
            x = x - 0.7 * (m @ away - pull)
        torch.testing.assert_close(made[row].flatten().double(), x, atol=1e-5, rtol=1e-5)


def test_noise_adjustment_waits_without_the_prompt():
    method = parse("noise_adjustment(wait=0.3)")
    for call in range(6):
        step = step_of(call)
        assert torch.equal(method.guide(step), step.raw["uncond"] if call < 3 else step.guided())
    assert method.calls_before == 8
