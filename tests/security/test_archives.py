"""Hostile archives and polyglot files: refused or sanitized, and never served as what they hide."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from PIL import Image

from agents.core.decode import Limits, Refusal
from agents.core.sanitize import sanitize
from gateway.apps.components import IngestComponents
from gateway.apps.ingest import ingest_app
from schemas.events.intake import ImageUploaded
from schemas.http.batches import BatchSubmitted
from streams.object_store.factory import open_files
from streams.settings import FilesSettings
from tests.support import documents
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

BATCH = "/api/v1/images/batch"
ZIP = {"content-type": "application/zip"}
SCRIPT = b"<html><script>alert(document.domain)</script></html>"


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FaultyFiles]:
    async with open_files(FilesSettings(directory=tmp_path / "files")) as found:
        yield FaultyFiles(found)


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
async def client(files: FaultyFiles, sink: Sink, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    spool = tmp_path / "spool"
    spool.mkdir()
    own = settings(max_upload_bytes=2_000_000, max_batch_bytes=8_000_000, spool_dir=spool)
    async with client_of(
        ingest_app(own, IngestComponents(files=files, events=sink, readiness=StubReadiness()))
    ) as found:
        yield found
    assert list(spool.iterdir()) == [], "what arrived is gone"


def archive(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a valid archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as made:
        for name, data in members:
            made.writestr(name, data)
    return out.getvalue()


def changed(data: bytes, member: int, *, local: dict[int, bytes] | None = None, central: dict[int, bytes]) -> bytes:
    """Return an archive with bytes of one member's headers changed: offset in the header -> bytes."""
    out = bytearray(data)
    with zipfile.ZipFile(io.BytesIO(data)) as read:
        starts, table = [info.header_offset for info in read.infolist()], read.start_dir
    at = table
    for _ in range(member):
        name, extra, comment = struct.unpack_from("<3H", out, at + 28)
        at += 46 + name + extra + comment
    for offset, value in central.items():
        out[at + offset : at + offset + len(value)] = value
    for offset, value in (local or {}).items():
        out[starts[member] + offset : starts[member] + offset + len(value)] = value
    return bytes(out)


def overlapping(count: int) -> bytes:
    """Return an archive in which all members share the same packed bytes, as in Fifield's bomb."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    plain = JPEG + bytes(900_000)
    kernel = packer.compress(plain) + packer.flush()
    crc = zlib.crc32(plain)
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 8, 0, 33, crc, len(kernel), len(plain), 1, 0) + b"a"
    out = local + kernel
    table = b"".join(
        struct.pack(
            "<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 8, 0, 33, crc, len(kernel), len(plain), 1, 0, 0, 0, 0, 0, 0
        )
        + b"a"
        for _ in range(count)
    )
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(table), len(out), 0)
    return out + table + end


def bomb() -> bytes:
    """Return an archive with one member that is truly large and packed tiny."""
    return archive(("cat.jpg", JPEG + bytes(1_900_000)))


def false_sizes() -> bytes:
    """Return an archive whose member is larger than its header declares."""
    data = archive(("cat.jpg", JPEG + bytes(1_500_000)), ("dog.jpg", JPEG))
    small = struct.pack("<L", 1000)
    return changed(data, 0, central={24: small}, local={22: small})


def nested() -> bytes:
    """Return an archive of archives of archives, like 42.zip."""
    data = archive(("0.jpg", bytes(1_000_000)))
    for level in range(4):
        data = archive(*((f"lib {level}{number}.zip", data) for number in range(16)))
    return data


def many() -> bytes:
    """Return an archive of very many tiny members."""
    return archive(*((f"{number}.jpg", b"") for number in range(3000)))


def large_together() -> bytes:
    """Return an archive whose members are allowed one by one, but not together."""
    noise = os.urandom(90_000)
    return archive(*((f"{number}.jpg", JPEG + noise + bytes(900_000)) for number in range(20)))


def large_directory() -> bytes:
    """Return an archive whose central directory alone would fill the memory."""
    return archive(*(_extra(number) for number in range(100)))


def _extra(number: int) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(f"{number}.jpg")
    info.comment = bytes(60_000)
    return info, JPEG


def moved_end(data: bytes, **fields: int) -> bytes:
    """Return an archive with a changed end record."""
    names = ("disk", "first", "here", "entries", "size", "offset", "comment")
    head = dict(zip(names, struct.unpack_from("<4H2LH", data, len(data) - 18), strict=True)) | fields
    return data[:-18] + struct.pack("<4H2LH", *head.values())


BOMBS: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "tightly packed": (bomb, 422, "invalid-archive"),
    "overlapping members": (lambda: overlapping(50), 422, "invalid-archive"),
    "very many members": (many, 413, "too-many-files"),
    "too much together": (large_together, 413, "file-too-large"),
    "a huge table of contents": (large_directory, 422, "invalid-archive"),
    "archives in archives": (nested, 415, "unsupported-format"),
    "something before it": (lambda: SCRIPT + archive(("a.jpg", JPEG)), 415, "unsupported-format"),
    "a GIF before it": (lambda: b"GIF89a" + bytes(100) + archive(("a.jpg", JPEG)), 422, "invalid-archive"),
    "something behind it": (lambda: archive(("a.jpg", JPEG)) + SCRIPT, 422, "invalid-archive"),
    "cut off": (lambda: archive(("a.jpg", JPEG))[:-30], 422, "invalid-archive"),
    "no table": (lambda: archive(("a.jpg", JPEG))[:100], 422, "invalid-archive"),
    "in several parts": (lambda: moved_end(archive(("a.jpg", JPEG)), disk=1), 422, "invalid-archive"),
    "a table elsewhere": (lambda: moved_end(archive(("a.jpg", JPEG)), offset=5), 422, "invalid-archive"),
    "more entries than there are": (
        lambda: moved_end(archive(("a.jpg", JPEG)), here=2, entries=2), 422, "invalid-archive"
    ),
    "fewer entries than there are": (
        lambda: moved_end(archive(("a.jpg", JPEG), ("b.jpg", JPEG)), here=1, entries=1), 422, "invalid-archive"
    ),
    "Zip64": (lambda: moved_end(archive(("a.jpg", JPEG)), here=0xFFFF, entries=0xFFFF), 422, "invalid-archive"),
    "a member that is not there": (
        lambda: changed(archive(("a.jpg", JPEG)), 0, central={42: struct.pack("<L", 10)}), 422, "invalid-archive"
    ),
    "two methods at once": (
        lambda: changed(archive(("a.jpg", JPEG)), 0, central={10: struct.pack("<H", 0)}), 422, "invalid-archive"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_is_refused(client: httpx.AsyncClient, files: FaultyFiles, sink: Sink, name: str) -> None:
    """Archives that are too large, or not laid out as declared, are refused as a whole, and nothing is stored."""
    make, status, code = BOMBS[name]
    data = make()
    refused(await client.post(BATCH, content=data, headers=ZIP), status, code)
    assert not await files.objects()
    assert not sink.sent


async def test_a_member_that_is_larger_than_it_says_is_refused(client: httpx.AsyncClient, sink: Sink) -> None:
    """A member with false sizes is refused when it is read; the others are accepted."""
    answer = await client.post(BATCH, content=false_sizes(), headers=ZIP)
    assert answer.status_code == 207, answer.text
    items = BatchSubmitted.model_validate_json(answer.content).items
    assert [item.status for item in items] == [422, 202]
    assert len(sink.sent) == 1


def _symlink() -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo("link.jpg")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info, b"/etc/passwd"


def _device() -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo("null.jpg")
    info.create_system, info.external_attr = 3, (stat.S_IFCHR | 0o666) << 16
    return info, JPEG


MEMBERS: dict[str, Callable[[], bytes]] = {
    "a symbolic link": lambda: archive(_symlink(), ("dog.jpg", JPEG)),
    "a device": lambda: archive(_device(), ("dog.jpg", JPEG)),
    "encrypted": lambda: changed(
        archive(("a.jpg", JPEG), ("dog.jpg", JPEG)), 0, central={8: b"\x01\x00"}, local={6: b"\x01\x00"}
    ),
    "packed by bzip2": lambda: _mixed(zipfile.ZIP_BZIP2),
    "packed by lzma": lambda: _mixed(zipfile.ZIP_LZMA),
    "a wrong checksum": lambda: changed(
        archive(("a.jpg", JPEG), ("dog.jpg", JPEG)), 0, central={16: b"abcd"}, local={14: b"abcd"}
    ),
    "damaged": lambda: changed(archive(("a.jpg", JPEG), ("dog.jpg", JPEG)), 0, central={}, local={37: b"\xff\xff\xff"}),
    "another name before its bytes": lambda: changed(
        archive(("a.jpg", JPEG), ("dog.jpg", JPEG)), 0, central={}, local={30: b"b.jpg"}
    ),
}


def _mixed(method: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr("a.jpg", JPEG, method)
        made.writestr("dog.jpg", JPEG)
    return out.getvalue()


@pytest.mark.parametrize("name", MEMBERS)
async def test_an_invalid_member_is_refused_by_itself(client: httpx.AsyncClient, sink: Sink, name: str) -> None:
    """Links, devices, encrypted, damaged and oddly packed members are refused one by one; the valid one is accepted."""
    answer = await client.post(BATCH, content=MEMBERS[name](), headers=ZIP)
    assert answer.status_code == 207, answer.text
    items = BatchSubmitted.model_validate_json(answer.content).items
    assert [item.status for item in items] == [422, 202]
    assert items[0].error is not None
    assert items[0].error.code == "invalid-archive"
    assert "passwd" not in answer.text
    (event,) = [event for _, event in sink.sent]
    assert isinstance(event, ImageUploaded)
    assert event.filename == "dog.jpg"


@pytest.mark.parametrize(
    "name",
    [
        "../../../../etc/cron.d/evil.jpg",
        "/etc/passwd",
        "..\\..\\windows\\win.ini",
        "C:\\evil.jpg",
        "images/../../../evil.jpg",
        "jobs/evil.json",
        "a/\u202egpj.exe",
        "evil\n.jpg",
        "x" * 300 + ".jpg",
        "..",
        "CON",
    ],
)
async def test_no_member_name_becomes_a_path(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink, tmp_path: Path, name: str
) -> None:
    """With any member name, the bytes are stored under their hash only; the name is its last part, for display."""
    before = {path for path in tmp_path.rglob("*") if "files" not in path.parts[len(tmp_path.parts) :]}
    answer = await client.post(BATCH, content=archive((name, JPEG)), headers=ZIP)
    assert answer.status_code == 202, answer.text
    (event,) = [event for _, event in sink.sent]
    assert isinstance(event, ImageUploaded)
    shown = event.filename or ""
    assert "/" not in shown
    assert "\\" not in shown
    assert "\n" not in shown
    assert "\u202e" not in shown
    assert len(shown) <= 255
    assert all(key.split("/")[0] in ("originals", "claims", "jobs") for key in await files.objects())
    after = {path for path in tmp_path.rglob("*") if "files" not in path.parts[len(tmp_path.parts) :]}
    assert after == before, "nothing is unpacked to a path"


def _saved(kind: str) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(out, kind)
    return out.getvalue()


POLYGLOTS: dict[str, Callable[[], bytes]] = {
    "GIF and JAR": lambda: _saved("GIF")
    + archive(("META-INF/MANIFEST.MF", b"Main-Class: Evil"), ("Evil.class", SCRIPT)),
    "JPEG and zip": lambda: _saved("JPEG") + archive(("evil.html", SCRIPT)),
    "PNG and HTML": lambda: _saved("PNG") + SCRIPT,
    "JPEG with a script in a comment": lambda: b"\xff\xd8\xff\xfe" + struct.pack(">H", len(SCRIPT) + 2) + SCRIPT
    + _saved("JPEG")[2:],
    "BMP and script": lambda: _saved("BMP") + b"*/=1;" + SCRIPT,
    "GIF with a script in a comment": lambda: _saved("GIF")[:-1]
    + (b"\x21\xfe" + bytes([len(SCRIPT)]) + SCRIPT + b"\x00;"),
}  # fmt: skip


@pytest.mark.parametrize("name", POLYGLOTS)
async def test_a_polyglot_becomes_its_pixels(client: httpx.AsyncClient, sink: Sink, name: str) -> None:
    """A polyglot is accepted as the image it is, with any declared type; its master contains only the pixels."""
    data = POLYGLOTS[name]()
    answer = await client.post(UPLOAD, files={"file": ("evil.html", data, "text/html")})
    assert answer.status_code == 202, answer.text
    (event,) = [event for _, event in sink.sent]
    assert isinstance(event, ImageUploaded)
    assert event.original.content_type.startswith("image/")
    made = sanitize(data, Limits())
    assert made.master[:4] in (b"\xff\xd8\xff\xe0", b"\x89PNG", b"\xff\xd8\xff\xdb")
    for trace in (b"PK\x03\x04", b"PK\x05\x06", b"<script", b"<html", b"Main-Class", b"alert("):
        assert trace not in made.master


@pytest.mark.parametrize(
    "data",
    [
        b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>' + bytes(100),
        b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>' + bytes(100),
        SCRIPT + _saved("JPEG"),
        archive(("cat.jpg", _saved("JPEG"))),
        b"\n%PDF-1.7\n" + _saved("JPEG"),
    ],
    ids=[
        "SVG with a script",
        "SVG with an entity",
        "HTML before a JPEG",
        "a zip as an image",
        "a PDF after a line end",
    ],
)
async def test_an_image_after_other_bytes_is_refused(
    client: httpx.AsyncClient, files: FaultyFiles, data: bytes
) -> None:
    """SVG, and an image after other bytes, are refused alone and in an archive, and by the sanitizer too."""
    refused(await client.post(UPLOAD, files={"file": ("cat.jpg", data, "image/jpeg")}), 415, "unsupported-format")
    inside = archive(("cat.jpg", data), method=zipfile.ZIP_STORED)
    refused(await client.post(BATCH, content=inside, headers=ZIP), 415, "unsupported-format")
    assert not await files.objects()
    with pytest.raises(Refusal):
        sanitize(data, Limits())


async def test_a_document_within_an_image_is_not_read(client: httpx.AsyncClient, sink: Sink) -> None:
    """A PDF behind an image stays behind; one that an image follows is a PDF, drawn or refused, and never the image."""
    written = documents.written_pdf(["secret"])
    made = sanitize(_saved("PNG") + written, Limits())
    assert (made.source_format, made.pages) == ("png", 1)
    assert made.master == sanitize(_saved("PNG"), Limits()).master
    upload = {"file": ("cat.jpg", b"%PDF-1.7\n" + _saved("JPEG"), "image/jpeg")}
    assert (await client.post(UPLOAD, files=upload)).status_code == 202
    (event,) = [event for _, event in sink.sent]
    assert isinstance(event, ImageUploaded)
    assert event.original.content_type == "application/pdf"
    for data in (b"%PDF-1.7\n" + _saved("JPEG"), b"%PDF-1.7\n" + _saved("JPEG") + b"\n%%EOF"):
        with pytest.raises(Refusal):
            sanitize(data, Limits())
    drawn = sanitize(written + archive(("evil.html", SCRIPT)) + b"%%EOF", Limits())
    assert drawn.source_format == "pdf"
    assert b"<script" not in drawn.master
