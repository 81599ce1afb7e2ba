"""Content-Digest: a body that does not match its digest is refused."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.apps.components import IngestComponents
from gateway.apps.ingest import ingest_app
from streams.object_store.factory import open_files
from streams.settings import FilesSettings
from tests.support.gateway_components import (
    JPEG,
    UPLOAD,
    FaultyFiles,
    Sink,
    StubReadiness,
    client_of,
    refused,
    settings,
)

TYPE = {"content-type": "multipart/form-data; boundary=x"}


def digest(data: bytes, name: str = "sha-256") -> str:
    """Return the value of a digest field (RFC 9530)."""
    value = hashlib.new(name.replace("-", ""), data).digest()
    return f"{name}=:{base64.b64encode(value).decode()}:"


def form(*headers: str, field: str | None = None) -> bytes:
    """Return a form of one file with these part headers, followed by a field `sha256`."""
    own = "".join(f"{header}\r\n" for header in headers).encode()
    sha256 = (
        b"" if field is None else b'--x\r\nContent-Disposition: form-data; name="sha256"\r\n\r\n%b\r\n' % field.encode()
    )
    start = b'--x\r\nContent-Disposition: form-data; name="file"; filename="cat.jpg"\r\n' + own + b"\r\n"
    return start + JPEG + b"\r\n" + sha256 + b"--x--\r\n"


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FaultyFiles]:
    async with open_files(FilesSettings(directory=tmp_path)) as found:
        yield FaultyFiles(found)


@pytest.fixture
async def client(files: FaultyFiles) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(
        ingest_app(settings(), IngestComponents(files=files, events=Sink(), readiness=StubReadiness()))
    ) as found:
        yield found


@pytest.mark.parametrize("name", ["Content-Digest", "Repr-Digest"])
@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
async def test_a_body_that_matches_its_digest_is_accepted(client: httpx.AsyncClient, name: str, algorithm: str) -> None:
    """An upload whose body matches the digest in its header is accepted."""
    body = form()
    answer = await client.post(UPLOAD, content=body, headers={**TYPE, name: digest(body, algorithm)})
    assert answer.status_code == 202, answer.text


@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
async def test_a_body_that_does_not_match_its_digest_is_refused(
    client: httpx.AsyncClient, files: FaultyFiles, algorithm: str
) -> None:
    """One changed byte: 400, nothing is stored, and Want-Content-Digest has the supported algorithms."""
    body = form()
    answer = await client.post(
        UPLOAD, content=body.replace(b"cat", b"cot"), headers={**TYPE, "Content-Digest": digest(body, algorithm)}
    )
    refused(answer, 400, "digest-mismatch")
    assert answer.headers["want-content-digest"] == "sha-256=10, sha-512=5"
    assert not await files.objects()


async def test_every_digest_must_match(client: httpx.AsyncClient) -> None:
    """A wrong SHA-256 is refused beside a right SHA-512; unknown algorithms beside them are ignored."""
    body = form()
    right, wrong = digest(body, "sha-512"), digest(b"other")
    answer = await client.post(UPLOAD, content=body, headers={**TYPE, "Content-Digest": f"{right}, {wrong}"})
    refused(answer, 400, "digest-mismatch")
    answer = await client.post(UPLOAD, content=body, headers={**TYPE, "Content-Digest": f"{right}, unixsum=:AAA=:"})
    assert answer.status_code == 202


@pytest.mark.parametrize(
    "text",
    ["md5=:1B2M2Y8AsgTpgAmY7PhCfg==:", "", "sha-256", "sha-256=:AAAA:", 'sha-256="abc"', "sha-256=abc", "sha-256=:!:"],
)
async def test_a_digest_that_cannot_be_checked_is_refused(client: httpx.AsyncClient, text: str) -> None:
    """Only unknown algorithms, a wrong length or no digest: 400 with the supported algorithms."""
    answer = await client.post(UPLOAD, content=form(), headers={**TYPE, "Content-Digest": text})
    refused(answer, 400, "invalid-digest")
    assert answer.headers["want-content-digest"] == "sha-256=10, sha-512=5"


@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
async def test_a_part_may_have_a_digest_of_its_own(client: httpx.AsyncClient, algorithm: str) -> None:
    """The digest of a part is checked against its file alone."""
    body = form(f"Content-Digest: {digest(JPEG, algorithm)}")
    assert (await client.post(UPLOAD, content=body, headers=TYPE)).status_code == 202
    body = form(f"Content-Digest: {digest(body, algorithm)}")
    refused(await client.post(UPLOAD, content=body, headers=TYPE), 400, "digest-mismatch")


async def test_the_field_sha256_is_checked(client: httpx.AsyncClient, files: FaultyFiles) -> None:
    """The field `sha256` is checked, in either case, also after the file; an invalid value is refused."""
    known = hashlib.sha256(JPEG).hexdigest()
    for text in (known, known.upper()):
        assert (await client.post(UPLOAD, content=form(field=text), headers=TYPE)).status_code == 202
    before = await files.objects()
    refused(await client.post(UPLOAD, content=form(field="0" * 64), headers=TYPE), 400, "digest-mismatch")
    refused(await client.post(UPLOAD, content=form(field="xyz"), headers=TYPE), 400, "invalid-digest")
    assert await files.objects() == before


async def test_a_json_body_is_checked_too(client: httpx.AsyncClient) -> None:
    """A fetch whose body does not match its digest is refused."""
    body = b'{"url": "https://example.org/cat.jpg"}'
    headers = {"content-type": "application/json", "Content-Digest": digest(body)}
    assert (await client.post("/api/v1/images/fetch", content=body, headers=headers)).status_code == 202
    refused(await client.post("/api/v1/images/fetch", content=body + b" ", headers=headers), 400, "digest-mismatch")
