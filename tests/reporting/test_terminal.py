"""Tables for a person and for a program, of hostile text."""

from mnemoscope.reporting.terminal import laid_out

HOSTILE = "a\tb\nc\x1b[31m\u202e[bold]x[/bold]\x9b0m"


def test_a_program_gets_rows_with_tabs():
    text = laid_out(("n", "text", "yes"), [(1.23456789, HOSTILE, True), (None, "b", float("nan"))])
    head, first, second = text.splitlines()
    assert head == "n\ttext\tyes"
    assert first.split("\t") == [
        "1.23457",
        "a b c⟨U+001B⟩[31m⟨U+202E⟩[bold]x[/bold]⟨U+009B⟩0m",
        "yes",
    ]
    assert second == "\tb\t"


def test_a_person_gets_columns_within_the_terminal():
    rows = [(0.5, HOSTILE), (12.0, "word " * 40)]
    text = laid_out(("score", "prompt"), rows, width=50)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 50
    assert lines[0].split() == ["score", "prompt"]
    assert "[bold]x[/bold]" in text
    for character in "\t\x1b\u202e\x9b":
        assert character not in text
    # Folded, and nothing lost.
    assert text.count("word") == 40


def test_a_person_is_told_what_is_cut():
    assert "(600 more characters)" in " ".join(
        laid_out(("prompt",), [("x" * 1000,)], width=60).split()
    )
    assert "x" * 1000 in laid_out(("prompt",), [("x" * 1000,)])


def test_nothing_is_a_head_alone():
    assert laid_out(("a", "b"), []) == "a\tb\n"
    assert laid_out(("a", "b"), [], width=40).split()[:2] == ["a", "b"]
