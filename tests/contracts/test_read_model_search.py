"""Contract of word search: what is found, by which keys, and in which order; on both clients of the read model."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from schemas.values import new_image_id
from streams.read_model.protocol import ReadModel
from streams.read_model.records import Filters
from tests.support.read_models import added, merge, stub, vector


async def found(model: ReadModel, query: str, owner: str = "anna") -> list[str]:
    return [hit.record.image_id for hit in await model.search_words(owner, query, limit=50)]


async def test_accents_case_and_width_are_folded(model: ReadModel) -> None:
    """A word is found however its accents, case and width are written, in the text and in the query."""
    sign = await added(model, text="Café GRÖSSE ＷＩＤＥ Łódź naïve Ñandú")
    for query in ("cafe", "CAFÉ", "große", "größe", "grosse", "wide", "lodz", "łódź", "naive", "nandu"):
        assert await found(model, query) == [sign], query
    assert await found(model, "caf") == []


@pytest.mark.parametrize("script", ["会议室在三楼", "ภาษาไทย", "ひらがな"])
async def test_scripts_without_spaces_are_searched_by_their_parts(model: ReadModel, script: str) -> None:
    """A run of characters is found inside a longer one, in their order only."""
    sign = await added(model, text=f"A {script} B")
    assert await found(model, script) == await found(model, script[1:3]) == [sign]
    assert await found(model, script[2] + script[0] + script[1]) == []


async def test_combined_marks_do_not_split_words(model: ReadModel) -> None:
    """In scripts whose marks are vowels, a word is one token."""
    sign = await added(model, text="नमस्ते दुनिया")
    assert await found(model, "दुनिया") == [sign]
    assert await found(model, "दु") == []


async def test_phrases_are_found_in_their_order(model: ReadModel) -> None:
    """Words in double quotes must follow each other in one key; further words may be anywhere."""
    bus = await added(model, text="Cero emisiones, bus eléctrico", labels=["bus"])
    other = await added(model, text="emisiones cero")
    assert await found(model, '"cero emisiones"') == [bus]
    assert await found(model, '"emisiones cero"') == [other]
    assert await found(model, '"CERO Emisiones" eléctrico') == [bus]
    assert set(await found(model, "cero emisiones")) == {bus, other}
    assert await found(model, '"cero bus"') == []
    tags = await added(model, tags=["one two", "three"])
    assert await found(model, '"one two"') == [tags]
    assert await found(model, '"two three"') == []


async def test_every_searchable_key_is_searched(model: ReadModel) -> None:
    """Filename, tags, category, context and codes are found like text and labels, and the hit says which matched."""
    record = stub(filename="Résumé_2024.pdf", context={"order": {"id": "AB-17", "lines": [42, True]}})
    await model.begin(record)
    known: dict[str, JsonValue] = {
        "tags": ["Summer Trip"],
        "category": "invoices",
        "text": "total 99",
        "codes": ["590-12"],
    }
    await merge(model, record.image_id, 1, known)
    for query, way in {
        "resume": "filename", "2024": "filename", "summer": "tag", "INVOICES": "category", "17": "context",
        "42": "context", "total": "text", "590": "code",
    }.items():  # fmt: skip
        (hit,) = await model.search_words("anna", query, limit=5)
        assert (hit.record.image_id, hit.matched, hit.score) == (record.image_id, (way,), 1.0), query
    (hit,) = await model.search_words("anna", "total summer invoices", limit=5)
    assert set(hit.matched) == {"text", "tag", "category"}
    assert await found(model, "total winter") == []
    await merge(model, record.image_id, 1, {"tags": ["winter"], "category": None, "context": {}})
    assert await found(model, "total winter") == [record.image_id]
    assert await found(model, "invoices") == await found(model, "summer") == await found(model, "17") == []


async def test_plurals_of_labels_are_found(model: ReadModel) -> None:
    """A label is found by its plural, regular or not, also of several words."""
    street = await added(model, labels=["traffic light", "person", "bus", "mouse"])
    for query in ("people", "persons", "buses", "mice", "traffic lights", "Traffic Light", "people bus"):
        assert await found(model, query) == [street], query
    assert await found(model, "light") == [street]  # all words are found, in a label
    assert await model.page("anna", Filters(labels=("people",)), limit=5)


async def test_better_matches_come_first(model: ReadModel) -> None:
    """Of images that contain all words, BM25 ranks: more often, and in less text, comes first."""
    long = await added(model, text="harbour " + " ".join(f"word{n}" for n in range(60)))
    short = await added(model, text="harbour at night")
    often = await added(model, text="harbour harbour at night")
    named = await added(model, labels=["boat"], text="at night")
    for _ in range(20):
        await added(model, text="something else at night")
    assert await found(model, "harbour") == [often, short, long]
    hits = await model.search_words("anna", "harbour boat", limit=9)
    assert [(hit.record.image_id, hit.score) for hit in hits] == [(named, 0.5)]


async def test_everything_an_owner_has_is_searched(model: ReadModel) -> None:
    """The oldest of many images that contain a word is found as well as the newest."""
    first = await added(model, text="needle common")
    for n in range(400):
        await model.begin(stub(filename=f"common {n}"))
    last = await added(model, text="common haystack needle")
    await added(model, owner="bert", text="needle")
    assert set(await found(model, "common needle")) == {first, last}
    assert len(await model.search_words("anna", "common", limit=50)) == 50


async def test_a_newer_generation_is_not_found_by_the_words_of_the_older(model: ReadModel) -> None:
    """Words of an older generation, of replaced keys and of deleted images find nothing."""
    image_id = await added(model, text="old words", labels=["bus"])
    await merge(model, image_id, 1, {"text": "new words", "labels": []})
    assert await found(model, "old") == await found(model, "bus") == []
    assert await found(model, "new") == [image_id]
    await model.begin(stub(image_id, generation=2, filename="two.jpg"))
    assert await found(model, "words") == []
    assert await found(model, "two") == [image_id]
    await model.write_tombstone(image_id, "anna", 3)
    assert await found(model, "two") == []


@pytest.mark.parametrize("query", ['"', '""', '" "', "«»", "!?", "\u0301", "a" * 5000, "x " * 3000, '"a b" "', "\x00"])
async def test_any_query_is_answered(model: ReadModel, query: str) -> None:
    """Quotes without content, marks without letters and very long queries find nothing, without an error."""
    await added(model, text="words")
    assert await found(model, query) == []


async def test_a_minimum_similarity_limits_the_nearest(model: ReadModel) -> None:
    """Vectors less similar than the minimum are not found."""
    near, far = await added(model, seed=1), await added(model, seed=2)
    assert {hit.record.image_id for hit in await model.search_vector("anna", vector(1), limit=5)} == {near, far}
    hits = await model.search_vector("anna", vector(1), limit=5, min_score=0.5)
    assert [hit.record.image_id for hit in hits] == [near]
    assert await model.search_vector("anna", [-x for x in vector(1)], limit=5, min_score=0.5) == []


async def test_a_page_may_have_some_keys_only(model: ReadModel) -> None:
    """A page by keys has these and the record's identity, in the same order."""
    ids = [await added(model, text=f"text {n}", filename=f"{n}.jpg", width=n) for n in range(3)]
    page = await model.page("anna", Filters(), limit=5, keys=("filename", "width"))
    assert [(record.image_id, record.filename, record.width, record.text) for record in page] == [
        (ids[n], f"{n}.jpg", n, None) for n in (2, 1, 0)
    ]
    assert {record.owner for record in page} == {"anna"}
    assert await model.page("bert", Filters(), limit=5, beyond=new_image_id(), keys=("filename",)) == []
