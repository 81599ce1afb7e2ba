"""The language of a text: by its script, and among Latin ones by function words and by letters few languages have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby

from agents.core.text.scripts import COMMON, HAN, JAPANESE, KOREAN, LATIN, script_of, script_of_language
from schemas.values import TextSpan

UNKNOWN = "und"  # BCP 47: undetermined
_BY_SCRIPT = {HAN: "zh", JAPANESE: "ja", KOREAN: "ko", "Grek": "el", "Hebr": "he", "Thai": "th", "Armn": "hy",
              "Geor": "ka", "Taml": "ta", "Telu": "te", "Gujr": "gu", "Khmr": "km", "Laoo": "lo", "Mymr": "my",
              "Sinh": "si", "Knda": "kn", "Mlym": "ml", "Guru": "pa"}  # fmt: skip
# The most frequent words of each language that are not also frequent in several others.
_WORDS = {
    "en": "the of and to that is was for it with as be by this are from at have not which you or an they were we his",
    "de": "der die und das den von zu mit sich des auf für ist im dem nicht ein eine als auch es an werden aus wird",
    "fr": "le les et des du une dans est que pour qui sur au pas par avec ce sont il la à aux ou cette",
    "es": "el los y del las un por con una para es se al lo como más su en la que sus este pero cada",
    "it": "il di che e della per un è del con non una i le dei nel si al alla sono più come gli ha",
    "pt": "o que do da em um para com não uma os no se na por mais as dos como mas ao ele das à seu",
    "nl": "de het een en van is dat op te zijn met voor niet aan er ook door bij naar wordt deze",
    "pl": "w i na z się do nie jest że o jak po co przez dla od ale są był tym proszę",
    "cs": "v a na se je že s z do o k i jako za by ale od po pro při jsou který do",
    "sv": "och att det som en på är av för med till den har inte om ett men var från vi",
    "da": "og at det er en til på som med for af den har ikke der et men var fra vi",
    "tr": "ve bir bu için ile de da çok olarak daha olan gibi ne var ama o her kadar",
    "fi": "ja on ei että se oli hän mutta ovat kun myös niin kuin joka tai sen",
    "ro": "și în a la de cu pe nu este din că un o care mai pentru sunt",
    "hu": "a az és hogy nem is egy ez van meg már csak de volt el mint",
    "vi": "của và là có trong được cho không các một với người này những đã khi",
}
_LETTERS = {
    "de": "ß", "es": "ñ¿¡", "pl": "łąęśźżń", "cs": "řůě", "tr": "ğıİ", "hu": "őű", "pt": "ãõ", "ro": "ță",
    "vi": "ạảấầậắặẹếềệọốồộớợụứừựỳơư", "fr": "œ", "da": "ø",
}  # fmt: skip
_FREQUENT = {language: frozenset(words.split()) for language, words in _WORDS.items()}
_ENOUGH, _AHEAD = 2.0, 1.25  # evidence, and how much more of it than the next language


def language_of(text: str, named: Sequence[str] = ()) -> str:
    """Return the language of a text, `und-Latn` and the like if only the script is certain, `und` without letters.

    `named` are the languages the caller expects: one of them alone in the text's script decides, and several limit the
    choice.
    """
    script = script_of(text)
    if script == COMMON:
        return UNKNOWN
    expected = [language for language in named if script_of_language(language) == script]
    if len(expected) == 1:
        return expected[0]
    if script != LATIN:
        return _BY_SCRIPT.get(script, f"{UNKNOWN}-{script}")
    return _latin(text, expected) or f"{UNKNOWN}-{LATIN}"


def _latin(text: str, expected: Sequence[str]) -> str | None:
    words = re.findall(r"[^\W\d_]+", text.lower())
    evidence: Counter[str] = Counter()
    for language in expected or _WORDS:
        evidence[language] += sum(word in _FREQUENT.get(language, ()) for word in words)
        evidence[language] += sum(2 * text.count(letter) for letter in _LETTERS.get(language, ""))
    (best, most), *rest = evidence.most_common(2)
    second = rest[0][1] if rest else 0
    return best if most >= _ENOUGH and most >= _AHEAD * second else None


def with_languages(spans: Iterable[TextSpan], named: Sequence[str] = ()) -> list[TextSpan]:
    """Return ordered spans with their script and language: by their block, or else by the whole text of that script.

    A span whose language is not `und` keeps it.
    """
    known = list(spans)
    scripts = [script_of(span.text) for span in known]
    if JAPANESE in scripts:  # Han characters beside kana are Japanese, also in lines without kana
        scripts = [JAPANESE if script == HAN else script for script in scripts]
    whole = {script: _joined(known, scripts, script) for script in set(scripts)}
    found: list[TextSpan] = []
    for _, members in groupby(range(len(known)), key=lambda i: known[i].block):
        block = list(members)
        for index in block:
            span, script = known[index], scripts[index]
            language = span.language
            if language == UNKNOWN and script == JAPANESE:
                language = "ja"
            elif language == UNKNOWN and script != COMMON:
                here = [known[i].text for i in block if scripts[i] == script]
                language = language_of(" ".join(here), named)
                if language.startswith(UNKNOWN):
                    language = language_of(whole[script], named)
            found.append(span.model_copy(update={"script": script, "language": language}))
    return found


def _joined(spans: Sequence[TextSpan], scripts: Sequence[str], script: str) -> str:
    return " ".join(span.text for span, each in zip(spans, scripts, strict=True) if each == script)
