"""The API's document: valid, complete, and true of every operation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate

from darkroom.generate.openapi import openapi
from gateway.http.problems import MEDIA_TYPE, TITLES
from gateway.openapi.document import operations
from schemas.http.operations import LetterFilter
from schemas.http.problems import ProblemCode
from schemas.values import ErrorCode
from streams.topics import GIVES_UP
from tests.support.permissions import PERMISSIONS

UNLISTED = frozenset(
    {
        ("GET", "/openapi.json"),
        ("GET", "/docs"),  # a page for people, of the document itself
        ("POST", "/api/v1/uploads/{upload_id}"),  # other methods, in disguise
    }
)
WITHOUT_BODY = frozenset({"204", "304"})


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The document as it is committed."""
    return openapi()


def named(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Walk the operations with a name for messages."""
    for method, path, operation in operations(document):
        yield f"{method.upper()} {path}", operation


def followed(document: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """Return what a reference leads to, or the value itself."""
    if "$ref" not in value:
        return value
    found: Any = document
    for step in value["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    return dict(found)


def examples(document: dict[str, Any], content: dict[str, Any]) -> list[Any]:
    """Return the examples of a body."""
    if "example" in content:
        return [content["example"]]
    return [followed(document, example)["value"] for example in content.get("examples", {}).values()]


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    """It is OpenAPI 3.1 by the specification's own schema."""
    assert document["openapi"].startswith("3.1.")
    validate(document)


def test_every_endpoint_is_in_it(document: dict[str, Any]) -> None:
    """Each row of the table of permissions is an operation, and each operation has a row; OPTIONS is everywhere."""
    found = {(method.upper(), path) for method, path, _ in operations(document)}
    wanted = {row for row in PERMISSIONS if row[0] != "OPTIONS"} - UNLISTED
    assert found == wanted


def test_operations_have_names_words_and_tags(document: dict[str, Any]) -> None:
    """Each has an id of its own, a summary, a description, and a tag that the document explains."""
    explained = {tag["name"] for tag in document["tags"]}
    ids = [operation["operationId"] for _, operation in named(document)]
    assert len(ids) == len(set(ids))
    for name, operation in named(document):
        assert re.fullmatch(r"[a-z0-9_]+", operation["operationId"]), name
        assert operation.get("summary") and operation.get("description"), name
        assert operation["tags"] and set(operation["tags"]) <= explained, name


def test_operations_say_who_may(document: dict[str, Any]) -> None:
    """What an operation asks of its caller is what the table of permissions says, and can be refused."""
    schemes = set(document["components"]["securitySchemes"])
    for method, path, operation in operations(document):
        scope = PERMISSIONS[method.upper(), path]
        asked = {(scheme, *scopes) for way in operation["security"] for scheme, scopes in way.items()}
        assert asked == (set() if scope is None else {(scheme, scope.value) for scheme in schemes}), (method, path)
        if scope is not None:
            assert {"401", "403", "429", "500", "503"} <= set(operation["responses"]), (method, path)


def test_bodies_have_examples_that_fit(document: dict[str, Any]) -> None:
    """Each request and each answer has an example at least, and every one is as its schema says."""
    whole = {"components": document["components"]}
    for name, operation in named(document):
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for body in bodies:
            for kind, content in body.get("content", {}).items():
                if kind in ("text/plain", "application/zip") or kind.startswith("image/") or "octet-stream" in kind:
                    continue  # bytes
                assert examples(document, content), (name, kind)
                for example in examples(document, content):
                    validator = jsonschema.Draft202012Validator({**content.get("schema", {}), **whole})
                    wrong = [f"{'.'.join(map(str, e.path))}: {e.message}" for e in validator.iter_errors(example)]
                    assert not wrong, (name, kind, wrong)


def test_refusals_are_problems(document: dict[str, Any]) -> None:
    """Each refusal is problem+json with an example per code, whose status is that of the answer."""
    for name, operation in named(document):
        for status, response in operation["responses"].items():
            if status[0] not in "45" or name == "GET /health/ready":
                continue
            assert list(response["content"]) == [MEDIA_TYPE], (name, status)
            for code, named_example in response["content"][MEDIA_TYPE]["examples"].items():
                example = followed(document, named_example)
                assert TITLES[ProblemCode(code)][0] == int(status) == example["value"]["status"], (name, code)
                assert example["value"]["type"] == f"urn:darkroom:problem:{code}"
                assert f"`{code}`" in response["description"], (name, code)


def test_answers_name_their_headers(document: dict[str, Any]) -> None:
    """Each answer says that it has a correlation id, and whoever has to wait is told that it says how long."""
    for name, operation in named(document):
        for status, response in operation["responses"].items():
            headers = {key.lower(): followed(document, value) for key, value in response["headers"].items()}
            assert "x-correlation-id" in headers, (name, status)
            assert all(header.get("description") and header.get("schema") for header in headers.values()), name
            assert status not in ("429", "503") or "retry-after" in headers, (name, status)
            assert status not in ("201", "202") or "location" in headers or status == "201", (name, status)


def test_parameters_are_described(document: dict[str, Any]) -> None:
    """Each parameter has a schema and words or an example; each id in a path is one of the operation's."""
    for method, path, operation in operations(document):
        found = [followed(document, parameter) for parameter in operation["parameters"]]
        in_path = {parameter["name"] for parameter in found if parameter["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path)), (method, path)
        for parameter in found:
            assert parameter.get("schema") or parameter.get("content"), (path, parameter["name"])
        pairs = [(parameter["in"], parameter["name"].lower()) for parameter in found]
        assert len(pairs) == len(set(pairs)), (method, path)


def test_words_of_images_and_of_requests_agree() -> None:
    """A code that both lists have is one reason, written once: the lists are closed, and each code has its page."""
    shared = {code.value for code in ProblemCode} & {code.value for code in ErrorCode}
    assert {"unsupported-format", "empty-file", "file-too-large", "corrupt-image", "gone", "superseded"} <= shared
    assert set(TITLES) == set(ProblemCode)
    assert all(re.fullmatch(r"[a-z]+(-[a-z0-9]+)*", code) for code in (*ProblemCode, *ErrorCode))


def test_dead_letters_are_asked_for_by_the_agents_there_are() -> None:
    """The document names the agents that leave dead letters."""
    said = LetterFilter.model_json_schema()["properties"]["agent"]["enum"]
    assert said == [*GIVES_UP, None]


def test_the_document_names_nothing_of_the_machine_it_was_made_on(document: dict[str, Any]) -> None:
    """No version of the software, no path, no address of a host."""
    assert document["info"]["version"] == "1.0.0"
    assert "servers" not in document
    assert not re.search(r"/(?:home|root|tmp|srv)/|localhost|127\.0\.0\.1", str(document))
