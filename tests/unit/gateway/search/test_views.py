"""The snippet of a search result: the part of the text that matched, however it is written."""

from __future__ import annotations

import pytest

from gateway.search.views import search_item, snippet
from schemas.http.search import Way
from schemas.values import new_image_id
from streams.read_model.records import ImageRecord

FILLER = " ".join(["lorem ipsum"] * 60)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("hauptstrasse", "Hauptstraße 5"),
        ("CAFÉ", "the Cafe is open"),
        ("cafe", "das Café, täglich"),
        ('"open all day"', "is open all day long"),
        ("“open all day”", "is Open — all  day"),
        ("due", "(Due)"),
        ("amount", "total-amount: 5"),
        ("東京", "これは東京です"),
    ],
)
def test_a_snippet_shows_what_matched(query: str, text: str) -> None:
    """Accents, case, quotes and punctuation do not matter to finding the place."""
    flat = " ".join(text.split())
    found = snippet(f"{FILLER} {text} {FILLER}", query, 60)
    assert found is not None
    assert flat in found
    assert len(found) == 60


def test_a_snippet_shows_a_phrase_rather_than_its_words() -> None:
    """A quoted phrase is shown where its words are next to each other."""
    text = f"day after day open {FILLER} open all day {FILLER}"
    found = snippet(text, '"all day"', 60)
    assert found is not None
    assert "open all day" in found


def test_a_snippet_shows_the_most_words() -> None:
    """Of several places the first with the most different words of the query is shown."""
    text = f"total total {FILLER} the total due {FILLER} due total"
    found = snippet(text, "total due", 60)
    assert found is not None
    assert "the total due" in found


def test_a_snippet_of_other_words_is_the_beginning() -> None:
    """If no word is found in the text, for example because of stemming, the snippet is its beginning."""
    assert snippet(f"first {FILLER}", "running", 20) == f"first {FILLER}"[:20]
    assert snippet("short", "running", 20) == "short"
    assert snippet(None, "running", 20) is None
    assert snippet("", "running", 20) is None


@pytest.mark.parametrize(
    ("matched", "text"), [(("text", "label"), "a cat"), (("meaning",), None), (("label", "filename"), None)]
)
def test_an_item_has_text_only_if_the_text_matched(matched: tuple[Way, ...], text: str | None) -> None:
    """An image found by its label or by meaning has no snippet."""
    record = ImageRecord(image_id=new_image_id(), owner="anna", generation=1, text="a cat", labels=("cat",))
    item = search_item(
        record, score=1.5, similarity=0.25004, matched=matched, query="cat", snippet_length=20, base="http://x"
    )
    assert (item.text, item.matched, item.score, item.similarity) == (text, matched, 1.0, 0.25)
