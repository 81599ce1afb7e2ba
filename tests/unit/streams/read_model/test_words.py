"""Analysis of texts for word search: tokens, what a query requires, forms of labels, and BM25 weights."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.read_model.words import (
    BREAK,
    MAX_TOKEN,
    QUERY_TOKENS,
    Analyzer,
    _stem,
    bm25_weights,
    contains,
    has_phrase,
    joined,
    label_forms,
    texts_in,
    token_number,
)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Café au-lait", ["cafe", "au", "lait"]),
        ("Straße STRASSE ẞ", ["strasse", "strasse", "ss"]),
        ("Łódź Søren Þór", ["lodz", "soren", "thor"]),
        ("ΆΛΦΑ άλφα", ["αλφα", "αλφα"]),
        ("Ёлка йод", ["ёлка", "йод"]),
        ("مَرْحَبًا", ["مرحبا"]),
        ("नमस्ते", ["नमस्ते"]),
        ("東京タワーTokyo", ["東", "京", "タ", "ワ", "ー", "tokyo"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("ﬁne ２０２６", ["fine", "2026"]),
        ("a_b", ["a", "b"]),
        ("", []),
    ],
)
def test_tokens(text: str, tokens: list[str]) -> None:
    """Case, width and accents are folded; marks that are letters are kept; unspaced scripts become characters."""
    assert Analyzer().tokens(text) == tokens


@given(st.text(max_size=200))
def test_tokens_are_found_by_themselves(text: str) -> None:
    """Any text contains each term of itself as a query, and the tokens of its folded form are the same."""
    analyzer = Analyzer()
    tokens = analyzer.tokens(text)
    document = joined([tokens])
    assert analyzer.tokens(" ".join(tokens)) == tokens
    assert all(len(token) <= MAX_TOKEN and token != BREAK for token in tokens)
    assert all(contains(document, term) for term in analyzer.terms(text.replace('"', " ")))


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ('red "Big Dog" cat', [("red",), ("big", "dog"), ("cat",)]),
        ("“one two” «three four»", [("one", "two"), ("three", "four")]),
        ('open "quote', [("open",), ("quote",)]),
        ('"" " "', []),
        ("東京 red red", [("東", "京"), ("red",)]),
    ],
)
def test_terms_of_queries(query: str, terms: list[tuple[str, ...]]) -> None:
    """Quoted words and runs of unspaced characters are phrases; repetitions count once."""
    assert Analyzer().terms(query) == terms


def test_a_query_is_bounded() -> None:
    """Of a long query only the first tokens count."""
    terms = Analyzer().terms(" ".join(f"w{n}" for n in range(500)))
    assert len(terms) == QUERY_TOKENS
    (phrase,) = Analyzer().terms('"' + " ".join(f"w{n}" for n in range(500)) + '"')
    assert len(phrase) == QUERY_TOKENS


def test_only_quoted_words_are_a_phrase() -> None:
    """Empty quotes and a single quotation mark are no phrase."""
    assert has_phrase('a "b c"')
    assert not has_phrase('a "" "!" "b')


def test_stems_are_those_of_the_language() -> None:
    """With a language, tokens are its stems; numbers and other scripts stay."""
    assert Analyzer("english").tokens("Running runs 2026 東京") == ["run", "run", "2026", "東", "京"]


@pytest.mark.parametrize(
    ("label", "forms"),
    [
        ("person", {"person", "people", "persons"}),
        ("Traffic Light", {"traffic light", "traffic lights"}),
        ("mouse", {"mouse", "mice"}),
        ("sheep", {"sheep"}),
        ("Straße", {"strasse"}),
        ("!?", set()),
    ],
)
def test_forms_of_labels(label: str, forms: set[str]) -> None:
    """A label is found by its singular and plural."""
    assert forms <= set(label_forms(label))
    assert bool(label_forms(label)) == bool(forms)


def test_a_phrase_does_not_span_two_values() -> None:
    """Values of one key are separated."""
    document = joined([["one", "two"], [], ["three"]])
    assert contains(document, ("one", "two"))
    assert not contains(document, ("two", "three"))
    assert BREAK.encode() not in map(str.encode, Analyzer().tokens(document))


def test_bm25_prefers_frequent_tokens_and_short_documents() -> None:
    """A token's weight grows with its frequency, ever less, and falls with the length of the document."""
    token = token_number("a")
    once, twice, thrice = (bm25_weights("a " * n + "b " * (9 - n), 9)[token] for n in (1, 2, 3))
    assert once < twice < thrice < 2.2
    assert thrice - twice < twice - once
    assert bm25_weights("a", 9)[token] > once > bm25_weights("a " + "b " * 99, 9)[token]
    assert once == pytest.approx(1.0)  # of average length
    assert bm25_weights(BREAK, 9) == {}


def test_texts_in_json_are_bounded() -> None:
    """Texts and numbers at any depth are found, in order; other values are not."""
    assert texts_in({"a": ["x", {"b": 7, "c": None, "d": True}], "e": 1.5}) == ["x", "7", "1.5"]
    assert len(texts_in([str(n) for n in range(1000)], most=10)) == 10


def test_threads_stem_without_disturbing_each_other() -> None:
    """Facts are analysed beside images that get other stems: a stemmer keeps the word it works on."""
    words = [f"{start}{end}" for start in ("run", "relation", "hope", "care") for end in ("ning", "al", "fulness", "s")]
    texts = [" ".join(f"{word}{number:x}{word}" for word in words) for number in range(60)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(Analyzer("english").tokens, texts))
    finally:
        sys.setswitchinterval(interval)
    _stem.cache_clear()
    assert found == [Analyzer("english").tokens(text) for text in texts]
