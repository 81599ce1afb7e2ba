"""Analysis of text for word search: what is stored of a document, and what a query asks for.

Both clients of the read model search the same tokens, because they are computed here rather than by the engine: its
tokenizers fold no accents beyond Latin, and find no words in scripts written without spaces.
"""

from __future__ import annotations

import re
import threading
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import inflection

QUERY_TOKENS = 64  # further tokens of a query are ignored
MAX_TOKEN = 64  # characters of a token; the rest of a longer run is ignored
BREAK = "NEXTVALUE"  # separates the values of a document, so that no phrase spans two; no token is in upper case

_ASCII = re.compile(r"[0-9a-z]+")
_QUOTED = re.compile(r'["“”„«»]([^"“”„«»]*)["“”„«»]')
# Scripts written without spaces: Thai, Lao, Myanmar, Khmer, kana, Han. A character with its marks is a token, and a
# run of them a phrase.
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)
_FOLDED_SCRIPTS = ("LATIN", "GREEK", "HEBREW", "ARABIC")  # of which marks carry accents or vowels, not letters
_LETTERS = str.maketrans(
    {"ø": "o", "œ": "oe", "æ": "ae", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ħ": "h", "ı": "i", "ŋ": "n"}
)

Term = tuple[str, ...]
"""What a query requires: a token, or the tokens of a phrase in their order."""


@dataclass(frozen=True, slots=True)
class Analyzer:
    """Turns texts into tokens: case and accents folded, and stems of a Snowball language if one is set."""

    language: str = ""

    def tokens(self, text: str) -> list[str]:
        """Return the tokens of a text, in order."""
        return [token for run in _runs(text) for token in self._of_run(run)]

    def terms(self, query: str) -> list[Term]:
        """Return what a query requires, at most QUERY_TOKENS tokens: words, and phrases in double quotes."""
        found: list[Term] = []
        place = 0
        for quoted in _QUOTED.finditer(query):
            found += self._words(query[place : quoted.start()])
            found.append(tuple(self.tokens(quoted[1])))
            place = quoted.end()
        found += self._words(query[place:])
        return list(_bounded(dict.fromkeys(term for term in found if term)))

    def _words(self, text: str) -> list[Term]:
        """Return a term for each run of letters and digits; of scripts without spaces a run is a phrase."""
        return [tuple(self._of_run(run)) for run in _runs(text)]

    def _of_run(self, run: str) -> list[str]:
        if run.isascii() or not _UNSPACED.search(run):
            return [self._stem(run[:MAX_TOKEN])]
        parts: list[str] = []
        for part in filter(None, _UNSPACED.split(run)):
            if parts and _is_mark(part[0]):  # a vowel or tone belongs to the character before it
                parts[-1] += part
            else:
                parts.append(part)
        return [part if _UNSPACED.match(part) else self._stem(part[:MAX_TOKEN]) for part in parts]

    def _stem(self, token: str) -> str:
        return _stem(self.language, token) if self.language else token


def has_phrase(query: str) -> bool:
    """Return whether a query quotes a phrase."""
    return any(words_of(quoted[1]) for quoted in _QUOTED.finditer(query))


def words_of(text: str) -> list[str]:
    """Return the words of a text, case and accents folded, without stemming."""
    return list(_runs(text))


def label_key(label: str) -> str:
    """Return a label's matching key: its words, folded, separated by single spaces."""
    return " ".join(words_of(label))


@lru_cache(maxsize=4096)
def label_forms(label: str) -> tuple[str, ...]:
    """Return the keys by which a label is found: its own, its plural's and its singular's (English)."""
    key = label_key(label)
    if not key or not key.isascii():
        return (key,) if key else ()
    singular = inflection.singularize(key)
    forms = [key, singular, inflection.pluralize(singular)]
    if singular.endswith("person"):
        forms.append(f"{singular}s")
    return tuple(dict.fromkeys(forms))


def joined(values: Iterable[Sequence[str]]) -> str:
    """Return the searchable form of a document: the tokens of its values, in order, separated by spaces."""
    return together(" ".join(tokens) for tokens in values)


def together(forms: Iterable[str | None]) -> str:
    """Return the searchable form of several documents in theirs."""
    return f" {BREAK} ".join(form for form in forms if form)


def contains(document: str, term: Term) -> bool:
    """Return whether a document in its searchable form contains a term."""
    return f" {' '.join(term)} " in f" {document} "


def bm25_weights(document: str, average_tokens: float) -> dict[int, float]:
    """Return a document's sparse vector: token number -> weight of its frequency.

    Okapi BM25 (Robertson, Zaragoza, "The Probabilistic Relevance Framework", 2009) with k1 = 1.2 and b = 0.75; the
    inverse document frequency is the engine's part (the modifier `idf`). A token's number is its CRC-32: of 100 000
    different tokens two or three share theirs.
    """
    counts = Counter(token for token in document.split() if token != BREAK)
    shortening = 1.2 * (0.25 + 0.75 * counts.total() / average_tokens)
    weights: dict[int, float] = {}
    for token, count in counts.items():
        number = token_number(token)
        weights[number] = weights.get(number, 0.0) + count * 2.2 / (count + shortening)
    return weights


def token_number(token: str) -> int:
    """Return a token's dimension in sparse vectors, 32 bits."""
    return zlib.crc32(token.encode())


def texts_in(value: object, most: int = 256) -> list[str]:
    """Return the texts and numbers in a JSON value, at any depth, at most so many."""
    found: list[str] = []
    waiting = [value]
    while waiting and len(found) < most:
        item = waiting.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, int | float) and not isinstance(item, bool):
            found.append(str(item))
        elif isinstance(item, Mapping):
            waiting.extend(reversed(list(item.values())))
        elif isinstance(item, list | tuple):
            waiting.extend(reversed(item))
    return found


def _runs(text: str) -> Iterator[str]:
    """Yield the runs of letters, digits and their marks in a text, folded."""
    if text.isascii():
        yield from _ASCII.findall(text.lower())
        return
    folded = _fold(text)
    yield from "".join(char if char.isalnum() or _is_mark(char) else " " for char in folded).split()


def _fold(text: str) -> str:
    """Return a text without differences of case, width and, in scripts where they are accents, marks."""
    kept: list[str] = []
    keeps_marks = False  # not of letters that fold, and not where there is no letter before them
    for char in unicodedata.normalize("NFKD", text).casefold():
        if not _is_mark(char):
            keeps_marks = char.isalnum() and not _folds(char)
            kept.append(char)
        elif keeps_marks:
            kept.append(char)
    return unicodedata.normalize("NFC", "".join(kept)).translate(_LETTERS)


@lru_cache(maxsize=4096)
def _is_mark(char: str) -> bool:
    return unicodedata.category(char).startswith("M")


@lru_cache(maxsize=4096)
def _folds(char: str) -> bool:
    return char.isascii() or unicodedata.name(char, "").startswith(_FOLDED_SCRIPTS)


def _bounded(terms: Iterable[Term]) -> Iterator[Term]:
    left = QUERY_TOKENS
    for term in terms:
        if left <= 0:
            return
        yield term[:left]
        left -= len(term)


@lru_cache(maxsize=65536)
def _stem(language: str, token: str) -> str:
    return _stemmer(language, threading.get_ident())(token)


@lru_cache(maxsize=64)
def _stemmer(language: str, _thread: int) -> Callable[[str], str]:
    """Return a stemmer of one thread: it keeps the word it works on."""
    import snowballstemmer  # noqa: PLC0415 - only loaded where stemming is set

    stem: Callable[[str], str] = snowballstemmer.stemmer(language).stemWord
    return stem
