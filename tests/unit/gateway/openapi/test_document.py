"""The OpenAPI document: valid, complete, and accurate for every operation."""

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
        ("GET", "/docs"),  # the page of the document
        ("POST", "/api/v1/uploads/{upload_id}"),  # X-HTTP-Method-Override
    }
)
WITHOUT_BODY = frozenset({"204", "304"})


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The committed document."""
    return openapi()


def named(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the operations with a name for messages."""
    for method, path, operation in operations(document):
        yield f"{method.upper()} {path}", operation


def followed(document: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """Return the target of a reference, or the value itself."""
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
    """It is OpenAPI 3.1 by the schema of the specification."""
    assert document["openapi"].startswith("3.1.")
    validate(document)


def test_every_endpoint_is_in_it(document: dict[str, Any]) -> None:
    """The operations are the expected endpoints, without OPTIONS, which every resource supports."""
    found = {(method.upper(), path) for method, path, _ in operations(document)}
    wanted = {row for row in PERMISSIONS if row[0] != "OPTIONS"} - UNLISTED
    assert found == wanted


def test_operations_have_names_words_and_tags(document: dict[str, Any]) -> None:
    """Each has a unique id, a summary, a description, and a tag with a description."""
    explained = {tag["name"] for tag in document["tags"]}
    ids = [operation["operationId"] for _, operation in named(document)]
    assert len(ids) == len(set(ids))
    for name, operation in named(document):
        assert re.fullmatch(r"[a-z0-9_]+", operation["operationId"]), name
        assert operation.get("summary") and operation.get("description"), name
        assert operation["tags"] and set(operation["tags"]) <= explained, name


def test_operations_have_their_scope(document: dict[str, Any]) -> None:
    """The security of an operation is its scope; a protected one documents the errors of callers without it."""
    schemes = set(document["components"]["securitySchemes"])
    for method, path, operation in operations(document):
        scope = PERMISSIONS[method.upper(), path]
        asked = {(scheme, *scopes) for way in operation["security"] for scheme, scopes in way.items()}
        assert asked == (set() if scope is None else {(scheme, scope.value) for scheme in schemes}), (method, path)
        if scope is not None:
            assert {"401", "403", "429", "500", "503"} <= set(operation["responses"]), (method, path)


def test_bodies_have_examples_that_fit(document: dict[str, Any]) -> None:
    """Each request and response has at least one example, and every example is valid."""
    whole = {"components": document["components"]}
    for name, operation in named(document):
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for body in bodies:
            for kind, content in body.get("content", {}).items():
                if (
                    kind in ("text/plain", "application/zip", "application/pdf")
                    or kind.startswith("image/")
                    or "octet-stream" in kind
                ):
                    continue  # bytes
                assert examples(document, content), (name, kind)
                for example in examples(document, content):
                    validator = jsonschema.Draft202012Validator({**content.get("schema", {}), **whole})
                    wrong = [f"{'.'.join(map(str, e.path))}: {e.message}" for e in validator.iter_errors(example)]
                    assert not wrong, (name, kind, wrong)


def test_refusals_are_problems(document: dict[str, Any]) -> None:
    """Each error is problem+json with an example per code, with the status of the response."""
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
    """Each response has X-Correlation-ID, and 429 and 503 have Retry-After."""
    for name, operation in named(document):
        for status, response in operation["responses"].items():
            headers = {key.lower(): followed(document, value) for key, value in response["headers"].items()}
            assert "x-correlation-id" in headers, (name, status)
            assert all(header.get("description") and header.get("schema") for header in headers.values()), name
            assert status not in ("429", "503") or "retry-after" in headers, (name, status)
            assert status not in ("201", "202") or "location" in headers or status == "201", (name, status)


def test_parameters_are_described(document: dict[str, Any]) -> None:
    """Each parameter has a schema; the path parameters are those of the path."""
    for method, path, operation in operations(document):
        found = [followed(document, parameter) for parameter in operation["parameters"]]
        in_path = {parameter["name"] for parameter in found if parameter["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path)), (method, path)
        for parameter in found:
            assert parameter.get("schema") or parameter.get("content"), (path, parameter["name"])
        pairs = [(parameter["in"], parameter["name"].lower()) for parameter in found]
        assert len(pairs) == len(set(pairs)), (method, path)


def test_words_of_images_and_of_requests_agree() -> None:
    """A code in both lists has one meaning; the lists are closed, and each code is a valid anchor."""
    shared = {code.value for code in ProblemCode} & {code.value for code in ErrorCode}
    assert {"unsupported-format", "empty-file", "file-too-large", "corrupt-image", "gone", "superseded"} <= shared
    assert set(TITLES) == set(ProblemCode)
    assert all(re.fullmatch(r"[a-z]+(-[a-z0-9]+)*", code) for code in (*ProblemCode, *ErrorCode))


def test_dead_letters_are_filtered_by_existing_agents() -> None:
    """The filter `agent` has the agents that write dead letters."""
    agents = LetterFilter.model_json_schema()["properties"]["agent"]["enum"]
    assert agents == [*GIVES_UP, None]


def test_the_document_names_nothing_of_the_machine_it_was_made_on(document: dict[str, Any]) -> None:
    """It has no version of the software, no path and no host."""
    assert document["info"]["version"] == "1.0.0"
    assert "servers" not in document
    assert not re.search(r"/(?:home|root|tmp|srv)/|localhost|127\.0\.0\.1", str(document))
