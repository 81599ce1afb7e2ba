"""Scripts and languages of texts."""

from __future__ import annotations

import pytest

from agents.core.text.languages import language_of, with_languages
from agents.core.text.scripts import script_of, script_of_language
from schemas.values import TextSpan

POLYGON = ((0.0, 0.0), (9.0, 0.0), (9.0, 9.0), (0.0, 9.0))


def span(text: str, block: int = 0, language: str = "und") -> TextSpan:
    return TextSpan(text=text, confidence=1, polygon=POLYGON, engine="ppocr", language=language, block=block)


@pytest.mark.parametrize(
    ("text", "script"),
    [("Straße", "Latn"), ("今天天气", "Hani"), ("図書館は休み", "Jpan"), ("コーヒー", "Jpan"), ("도서관", "Kore"),
     ("парк 12", "Cyrl"), ("καιρός", "Grek"), ("المكتبة", "Arab"), ("12.50 €", "Zyyy"), ("", "Zyyy"), ("ﾃｽﾄ", "Jpan")],
)  # fmt: skip
def test_the_script_of_a_text(text: str, script: str) -> None:
    """The script most letters are in; kana make Han characters Japanese; digits and signs have none."""
    assert script_of(text) == script


def test_the_script_of_a_language() -> None:
    """A language's region does not matter; an unknown language has no script."""
    assert script_of_language("ru-RU") == "Cyrl"
    assert script_of_language("pt") == "Latn"
    assert script_of_language("xyz") == "Zyyy"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The harbour office closes at six, and the ferries stop earlier in winter.", "en"),
        ("Die Straßenbahn fährt täglich außer sonntags über die große Brücke.", "de"),
        ("Le musée est fermé le mardi, sauf à Noël et à Pâques. L'entrée est gratuite pour les élèves.", "fr"),
        ("El autobús número ocho pasa cada quince minutos. Mañana habrá más información en la página.", "es"),
        ("Zażółć gęślą jaźń, proszę bardzo. Łódź i Kraków są piękne o każdej porze roku.", "pl"),
        ("Příliš žluťoučký kůň úpěl ďábelské ódy.", "cs"),
        ("Şişli'de ılık bir ağustos akşamı.", "tr"),
        ("SALE", "und-Latn"),
        ("IBAN DE89 3704 0044", "und-Latn"),
        ("12.50", "und"),
        ("今天天气很好", "zh"),
        ("Сегодня", "und-Cyrl"),
        ("Σήμερα", "el"),
    ],
)
def test_the_language_of_a_text(text: str, language: str) -> None:
    """A language is named only with evidence for it: function words, or letters that few languages have."""
    assert language_of(text) == language


def test_a_named_language_decides_within_its_script() -> None:
    """The one language a caller names for a script is the language; for other scripts it says nothing."""
    assert language_of("SALE", ["en", "ru"]) == "en"
    assert language_of("Сегодня", ["en", "uk"]) == "uk"
    assert language_of("今天天气", ["en"]) == "zh"
    assert language_of("Die Brücke und das Meer, für alle", ["en", "de"]) == "de"


def test_spans_take_the_language_of_their_block_or_of_the_whole() -> None:
    """A line without evidence has its neighbours' language; Han beside kana is Japanese; a known language stays."""
    found = with_languages(
        [span("Die Brücke und das Meer, für alle"), span("Harbour"), span("the end of the day was cold", 1),
         span("東京", 2), span("図書館は休み", 2), span("12.50", 3), span("парк", 4, "ru")]
    )  # fmt: skip
    assert [each.language for each in found] == ["de", "de", "en", "ja", "ja", "und", "ru"]
    assert [each.script for each in found] == ["Latn", "Latn", "Latn", "Jpan", "Jpan", "Zyyy", "Cyrl"]
