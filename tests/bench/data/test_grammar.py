"""The grammar compiler refuses what recognition could not finish, and depth is really bounded."""

import pytest

from modelassay.data.grammar import compile_grammar


def compile_text(rules: str, words: dict[str, list[str]] | None = None) -> object:
    return compile_grammar(rules, features={"n": ["sg", "pl"]}, words=words or {}, split=tuple)


@pytest.mark.parametrize(
    ("rules", "words", "message"),
    [
        ("S : T a\nT : S b | c", {}, "left recursion: S -> T -> S"),
        ("S : a S", {}, "no finite derivation: S"),
        ("S : Missing a", {}, "unknown symbol 'Missing'"),
        ("S : a\nS : b", {}, "rule 'S' is defined twice"),
        ("S : {z} a", {}, "unknown feature 'z'"),
        ("S : a | ", {}, "must derive something"),
        ("S : a", {"S": ["a"]}, "both as a rule and as a word class: S"),
    ],
)
def test_a_grammar_that_cannot_be_recognised_is_refused(rules: str, words: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compile_text(rules, words)


def test_overlapping_words_are_followed_to_every_end() -> None:
    """Longest match alone takes 'aab' and fails: backtracking to 'aa' and to 'a' is needed."""
    grammar = compile_grammar("S : W W z", features={}, words={"W": ["a", "aa", "aab", "bb"]}, split=tuple)
    derived = {text for text in ("aabbz", "aaz", "aaaz", "aaaaaz", "aabz", "abbz") if grammar.derives("S", tuple(text))}
    assert derived == {"aabbz", "aaz", "aaaz", "abbz"}


def test_recognition_agrees_with_enumeration() -> None:
    """All strings of a^n b^n up to length 8 against all strings over {a, b}."""
    grammar = compile_grammar("S : a S b | a b", features={}, words={}, split=tuple)
    for length in range(1, 9):
        for code in range(2**length):
            text = format(code, f"0{length}b").replace("0", "a").replace("1", "b")
            half = length // 2
            assert grammar.derives("S", tuple(text)) == (text == "a" * half + "b" * half)


def test_choices_keep_within_the_depth_left() -> None:
    grammar = compile_grammar("S : T | 2* a\nT : U\nU : b", features={}, words={}, split=tuple)
    symbols = {depth: [choice.symbols for choice in grammar.choices("S", depth)] for depth in (0, 1, 2, 3)}
    assert symbols == {0: [("a",)], 1: [("a",)], 2: [("a",)], 3: [("T",), ("a",)]}
