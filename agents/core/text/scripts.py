"""The script of a text, by ISO 15924 code, and what follows from it for languages."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable

LATIN, HAN, JAPANESE, KOREAN = "Latn", "Hani", "Jpan", "Kore"
COMMON = "Zyyy"  # digits, punctuation

# First word of a character's Unicode name -> script.
_BY_NAME = {
    "LATIN": LATIN, "CJK": HAN, "HIRAGANA": JAPANESE, "KATAKANA": JAPANESE, "HANGUL": KOREAN, "CYRILLIC": "Cyrl",
    "GREEK": "Grek", "ARABIC": "Arab", "HEBREW": "Hebr", "DEVANAGARI": "Deva", "THAI": "Thai", "ARMENIAN": "Armn",
    "GEORGIAN": "Geor", "BENGALI": "Beng", "TAMIL": "Taml", "TELUGU": "Telu", "GUJARATI": "Gujr", "ETHIOPIC": "Ethi",
    "KHMER": "Khmr", "LAO": "Laoo", "MYANMAR": "Mymr", "SINHALA": "Sinh", "TIBETAN": "Tibt", "KANNADA": "Knda",
    "MALAYALAM": "Mlym", "GURMUKHI": "Guru", "COPTIC": "Copt",
}  # fmt: skip

_LATIN_LANGUAGES = (
    "af az bs ca cs cy da de en es et eu fi fr ga gl hr ht hu id is it jv ku la lb lt lv mi ms mt nb nl nn no oc pl pt "
    "qu ro sk sl sq sv sw tl tr uz vi"
)
# Language (ISO 639-1) -> its script.
_OF_LANGUAGE = {
    **dict.fromkeys(_LATIN_LANGUAGES.split(), LATIN),
    "zh": HAN, "ja": JAPANESE, "ko": KOREAN, "ru": "Cyrl", "uk": "Cyrl", "bg": "Cyrl", "sr": "Cyrl", "be": "Cyrl",
    "mk": "Cyrl", "el": "Grek", "ar": "Arab", "fa": "Arab", "ur": "Arab", "he": "Hebr", "yi": "Hebr", "hi": "Deva",
    "mr": "Deva", "ne": "Deva", "th": "Thai", "hy": "Armn", "ka": "Geor", "bn": "Beng", "ta": "Taml", "te": "Telu",
    "gu": "Gujr", "am": "Ethi", "km": "Khmr", "lo": "Laoo", "my": "Mymr", "si": "Sinh", "bo": "Tibt", "kn": "Knda",
    "ml": "Mlym", "pa": "Guru",
}  # fmt: skip
RIGHT_TO_LEFT = frozenset({"Arab", "Hebr"})


def script_of_letter(letter: str) -> str:
    """Return the script of a character; `Zyyy` for digits, punctuation and what is unknown."""
    if letter.isascii():
        return LATIN if letter.isalpha() else COMMON
    if not letter.isalpha() or letter == "ー":  # the long vowel mark is of either kana
        return COMMON
    name = unicodedata.name(letter, "").removeprefix("HALFWIDTH ").removeprefix("FULLWIDTH ")
    return _BY_NAME.get(name.partition(" ")[0], COMMON)


def script_of(text: str) -> str:
    """Return the script most letters of a text are in; `Jpan` if kana occur among Han; `Zyyy` without letters."""
    counts = Counter(script_of_letter(letter) for letter in text)
    del counts[COMMON]
    if not counts:
        return COMMON
    if counts[JAPANESE]:
        counts[JAPANESE] += counts.pop(HAN, 0)
    return max(counts, key=lambda script: (counts[script], script))


def script_of_language(language: str) -> str:
    """Return the script a language is written in; `Zyyy` for an unknown language."""
    return _OF_LANGUAGE.get(language.partition("-")[0], COMMON)


def scripts_of(languages: Iterable[str]) -> frozenset[str]:
    """Return the scripts of languages."""
    return frozenset(script_of_language(language) for language in languages)


# Tesseract's names of scripts (its orientation and script detection) -> ISO 15924.
OF_TESSERACT = {
    "Latin": LATIN, "Fraktur": LATIN, "Han": HAN, "Japanese": JAPANESE, "Hangul": KOREAN, "Korean": KOREAN,
    "Cyrillic": "Cyrl", "Greek": "Grek", "Arabic": "Arab", "Hebrew": "Hebr", "Devanagari": "Deva", "Thai": "Thai",
    "Armenian": "Armn", "Georgian": "Geor", "Bengali": "Beng", "Tamil": "Taml", "Telugu": "Telu", "Gujarati": "Gujr",
    "Ethiopic": "Ethi", "Khmer": "Khmr", "Lao": "Laoo", "Myanmar": "Mymr", "Sinhala": "Sinh", "Tibetan": "Tibt",
    "Kannada": "Knda", "Malayalam": "Mlym", "Gurmukhi": "Guru",
}  # fmt: skip
