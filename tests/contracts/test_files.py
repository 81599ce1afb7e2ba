"""Contract of the object store, for the directory and for a real MinIO."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import subprocess
import sys
import time
import tracemalloc
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from infra.local.minio import LocalMinio
from streams.concurrency.circuit_breaker import Breakers
from streams.errors import DependencyUnavailable, NotReady
from streams.object_store.factory import open_files
from streams.object_store.keys import image_key, image_prefix
from streams.object_store.protocol import FileStore, ObjectMissing, delete_prefix
from streams.object_store.with_breakers import BreakingFiles
from streams.settings import BreakerSettings, FilesSettings

HOSTILE = (
    "", "/", "/etc/passwd", "a//b", "a/", "..", "a/../b", "../x", "./a", "a/.", "a\\b", "a\nb", "a\x00b", "a\ud800",
    "x" * 2000, "y" * 250,
)  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        target.write(data)
        await target.drain()
    target.close()


@pytest.fixture
def s3(minio: LocalMinio) -> FilesSettings:
    """Settings of a bucket on a real MinIO."""
    return FilesSettings(
        endpoint=minio.endpoint,
        access_key=minio.access_key,
        secret_key=SecretStr(minio.secret_key),
        bucket="contract-tests",
    )


@pytest.fixture(params=["directory", "s3"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> FilesSettings:
    """The settings of each adapter."""
    if request.param == "s3":
        found: FilesSettings = request.getfixturevalue("s3")
        return found
    return FilesSettings(directory=tmp_path / "objects", bucket="tests")


@pytest.fixture
async def files(settings: FilesSettings) -> AsyncIterator[FileStore]:
    """An empty open store, behind breakers as in every process."""
    async with open_files(settings, Breakers()) as store:
        await delete_prefix(store, "")
        yield store


async def keys(files: FileStore, prefix: str) -> list[str]:
    return [found.key async for found in files.list(prefix)]


async def read(files: FileStore, key: str, start: int = 0, length: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in files.stream(key, start=start, length=length)])


async def test_what_is_written_can_be_read(files: FileStore) -> None:
    """An object is read as written, and its reference has its key, size, type and hash."""
    ref = await files.put("images/a/1/x.webp", b"hello", content_type="image/webp")
    assert await files.get("images/a/1/x.webp") == b"hello"
    assert (ref.bucket, ref.key, ref.size, ref.content_type) == (files.bucket, "images/a/1/x.webp", 5, "image/webp")
    assert ref.sha256 == hashlib.sha256(b"hello").hexdigest()


async def test_stat_knows_type_size_and_hash(files: FileStore) -> None:
    """`stat` returns size, type and sha256, or None for a missing object."""
    await files.put("a/b.bin", b"1234", content_type="image/png", sha256="ab" * 32)
    found = await files.stat("a/b.bin")
    assert found is not None
    assert (found.key, found.size, found.content_type, found.sha256) == ("a/b.bin", 4, "image/png", "ab" * 32)
    assert found.etag
    assert found.modified > 1.6e9
    assert await files.stat("a/none") is None
    assert await files.stat("a") is None


async def test_existing_keys_are_found_in_one_call(files: FileStore) -> None:
    """Of many keys, those with an object are returned; a folder is no object, and invalid keys are refused."""
    written = {f"e/{number}" for number in range(0, 40, 2)}
    for key in written:
        await files.put(key, b"", content_type="x/y")
    assert await files.existing({"e", "e/none/x", *(f"e/{number}" for number in range(40))}) == written
    assert await files.existing(()) == set()
    with pytest.raises(ValueError, match="object key"):
        await files.existing({"e/0", "../x"})


async def test_an_empty_object_is_an_object(files: FileStore) -> None:
    """Zero bytes can be written, read and streamed."""
    await files.put("empty", b"", content_type="text/plain")
    assert await files.get("empty") == b""
    assert await read(files, "empty") == b""


async def test_writing_again_replaces(files: FileStore) -> None:
    """Writing the same key twice leaves one object: the last."""
    first = await files.put("k", b"same", content_type="text/plain")
    assert await files.put("k", b"same", content_type="text/plain") == first
    await files.put("k", b"other, longer", content_type="text/html")
    assert await files.get("k") == b"other, longer"
    assert await keys(files, "") == ["k"]
    found = await files.stat("k")
    assert found is not None
    assert found.content_type == "text/html"


async def test_concurrent_writers_leave_one_whole_object(files: FileStore) -> None:
    """With concurrent writers of one key, readers see one complete version."""
    versions = [bytes([n]) * 300_000 for n in range(8)]
    await files.put("race/k", versions[0], content_type="x/0")

    async def look() -> None:
        for _ in range(10):
            assert await files.get("race/k") in versions

    await asyncio.gather(*(files.put("race/k", v, content_type=f"x/{v[0]}") for v in versions), look())
    last = await files.get("race/k")
    found = await files.stat("race/k")
    assert found is not None
    assert found.content_type == f"x/{last[0]}"
    assert found.sha256 == hashlib.sha256(last).hexdigest()


async def test_create_never_replaces(files: FileStore) -> None:
    """`create` keeps an existing object, and succeeds after its deletion."""
    assert await files.create("claims/one", b"first", content_type="text/plain")
    assert not await files.create("claims/one", b"second", content_type="text/plain")
    assert await files.get("claims/one") == b"first"
    found = await files.stat("claims/one")
    assert found is not None
    assert (found.content_type, found.sha256) == ("text/plain", hashlib.sha256(b"first").hexdigest())
    await files.delete("claims/one")
    assert await files.create("claims/one", b"third", content_type="text/plain")


async def test_one_of_several_concurrent_creators_succeeds(files: FileStore) -> None:
    """`create` returns True to exactly one of several concurrent callers, whose bytes are stored."""
    bodies = [str(number).encode() for number in range(12)]
    created = await asyncio.gather(*(files.create("claims/race", body, content_type="text/plain") for body in bodies))
    assert created.count(True) == 1
    assert await files.get("claims/race") == bodies[created.index(True)]


async def test_a_missing_object_raises(files: FileStore) -> None:
    """Reading, streaming or copying a missing object, or a folder, raises ObjectMissing."""
    await files.put("folder/k", b"x", content_type="text/plain")
    for key in ("none", "folder", "folder/k/deeper"):
        with pytest.raises(ObjectMissing):
            await files.get(key)
        with pytest.raises(ObjectMissing):
            await read(files, key)
        with pytest.raises(ObjectMissing):
            await read(files, key, length=0)
        with pytest.raises(ObjectMissing):
            await files.copy(key, "target")
    with pytest.raises(ObjectMissing):
        await files.copy("none", "none")


async def test_the_size_limit_applies(files: FileStore) -> None:
    """An object larger than the limit is refused, one of that size is not."""
    await files.put("k", b"12345", content_type="text/plain")
    assert await files.get("k", limit=5) == b"12345"
    with pytest.raises(ValueError, match="more than 4"):
        await files.get("k", limit=4)
    assert await files.get("k") == b"12345"


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, None), (0, 10), (5, None), (5, 7), (999_990, 100), (1_000_000, None), (2_000_000, 5), (3, 0)],
)
async def test_ranges(files: FileStore, start: int, length: int | None) -> None:
    """A range returns what slicing returns, also past the end."""
    data = bytes(range(250)) * 4000
    await files.put("k", data, content_type="x/y")
    assert await read(files, "k", start, length) == data[start:][:length]


async def test_a_stream_can_be_closed_early(files: FileStore) -> None:
    """The store stays usable after streams closed early."""
    await files.put("k", os.urandom(2_000_000), content_type="x/y")
    for _ in range(40):
        stream = files.stream("k")
        async for chunk in stream:
            assert chunk
            break
        await stream.aclose()  # type: ignore[attr-defined]
    assert len(await files.get("k")) == 2_000_000


async def test_copies_are_independent(files: FileStore) -> None:
    """A copy keeps type and bytes when its source changes or is deleted."""
    await files.put("a/1", b"first", content_type="image/webp")
    await files.copy("a/1", "b/2")
    await files.copy("a/1", "b/2")
    await files.put("a/1", b"second", content_type="text/plain")
    await files.delete("a/1")
    found = await files.stat("b/2")
    assert await files.get("b/2") == b"first"
    assert found is not None
    assert (found.content_type, found.sha256) == ("image/webp", hashlib.sha256(b"first").hexdigest())
    await files.copy("b/2", "b/2")
    assert await files.get("b/2") == b"first"


async def test_deleting_is_idempotent(files: FileStore) -> None:
    """Deleting twice, or a missing object, is no error, and other objects stay."""
    await files.put("f/a", b"1", content_type="x/y")
    await files.put("f/b", b"2", content_type="x/y")
    await files.delete("f/a")
    await files.delete("f/a")
    await files.delete("f/never/was")
    assert await keys(files, "") == ["f/b"]
    await files.delete("f/b")
    assert await keys(files, "") == []
    await files.put("f", b"now a file where a folder was", content_type="x/y")
    assert await keys(files, "") == ["f"]


async def test_listing_is_by_prefix_in_key_order(files: FileStore) -> None:
    """A listing returns every key with the prefix, sorted, for prefixes that end anywhere."""
    wanted = ["a-b", "a.json", "a/1", "a/2/x", "a/20", "ab/c", "b", "jobs/i.1.json", "jobs/i.2.json", "jobs/j.1.json"]
    for key in reversed(wanted):
        await files.put(key, key.encode(), content_type="x/y")
    for prefix in ("", "a", "a/", "a/2", "a/2/", "ab", "jobs/i.", "none", "none/", "b/"):
        assert await keys(files, prefix) == [key for key in wanted if key.startswith(prefix)], prefix
    sizes = {found.key: found.size async for found in files.list("")}
    assert sizes == {key: len(key) for key in wanted}


async def test_a_listing_starts_after_a_key(files: FileStore) -> None:
    """A listing after a key returns the rest of the full listing, whether the key exists or not."""
    known = ["a-b", "a.json", "a/1", "a/2/x", "a/20", "ab/c", "b", "é/1", "é/2"]
    for key in known:
        await files.put(key, b"x", content_type="x/y")
    for after in (*known, "a", "a/", "a/10", "a/2", "a/2/", "a/2/y", "aa", "c", "z"):
        for prefix in ("", "a", "a/", "a/2", "b", "é/"):
            wanted = [k for k in known if k.startswith(prefix) and k.encode() > after.encode()]
            assert [found.key async for found in files.list(prefix, after=after)] == wanted, (prefix, after)


async def test_all_generations_of_an_image_are_removed(files: FileStore) -> None:
    """Deleting an image's prefix deletes all its generations and no other image."""
    one, other = "0190a1b2-0000-7000-8000-00000000000a", "0190a1b2-0000-7000-8000-00000000001a"
    for image in (one, other):
        for generation in (1, 2):
            await files.put(image_key(image, generation, "master.webp"), b"x", content_type="image/webp")
    assert await delete_prefix(files, image_prefix(one)) == 2
    assert await keys(files, "") == [image_key(other, 1, "master.webp"), image_key(other, 2, "master.webp")]


@pytest.mark.parametrize("key", HOSTILE, ids=[repr(key[:12]) for key in HOSTILE])
async def test_hostile_keys_are_refused(files: FileStore, key: str) -> None:
    """Every call refuses keys that leave the store or are ambiguous, without any effect."""
    await files.put("fine", b"x", content_type="x/y")
    with pytest.raises(ValueError, match="object key"):
        await files.put(key, b"x", content_type="x/y")
    with pytest.raises(ValueError, match="object key"):
        await files.get(key)
    with pytest.raises(ValueError, match="object key"):
        await files.delete(key)
    with pytest.raises(ValueError, match="object key"):
        await files.stat(key)
    with pytest.raises(ValueError, match="object key"):
        await files.copy("fine", key)
    with pytest.raises(ValueError, match="object key"):
        await files.copy(key, "other")
    with pytest.raises(ValueError, match="object key"):
        await read(files, key)
    with pytest.raises(ValueError, match="object key"):
        await files.presign_get(key, expires_s=60)
    assert await keys(files, "") == ["fine"]


async def test_unusual_valid_keys_work(files: FileStore) -> None:
    """Spaces, percent and plus signs and any script are valid in keys."""
    odd = ["a b/c+d", "a%2Fb", "été/写真.jpg", "q?x=1&y=2", "#hash", "..hidden"]
    for key in odd:
        await files.put(key, key.encode(), content_type="x/y")
        assert await files.get(key) == key.encode()
    assert await keys(files, "") == sorted(odd, key=str.encode)


async def test_a_large_file_is_streamed_from_disk(files: FileStore, tmp_path: Path) -> None:
    """A file of 96 MB is written and read without being in memory as a whole."""
    block, path = os.urandom(1 << 20), tmp_path / "large"
    with path.open("wb") as file:
        for _ in range(96):
            file.write(block)
    tracemalloc.start()
    try:
        ref = await files.put("large", path, content_type="x/y")
        digest = hashlib.sha256()
        async for chunk in files.stream("large"):
            digest.update(chunk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (ref.size, ref.sha256) == (96 << 20, digest.hexdigest())
    assert peak < 40 << 20


async def test_an_unreadable_source_is_a_value_error(files: FileStore, tmp_path: Path) -> None:
    """A missing Path raises ValueError, not ObjectMissing or DependencyUnavailable."""
    with pytest.raises(ValueError, match="cannot read"):
        await files.put("k", tmp_path / "none", content_type="x/y")
    assert await files.stat("k") is None


async def test_a_presigned_link_downloads_the_object(files: FileStore, settings: FilesSettings) -> None:
    """S3 returns a link that downloads under the given name; a directory returns None."""
    await files.put("k", b"linked", content_type="image/webp")
    link = await files.presign_get("k", expires_s=60, filename='naïve "name".webp')
    if settings.endpoint is None:
        assert link is None
        return
    assert link is not None

    def fetch(link: str) -> tuple[bytes, str]:
        with urllib.request.urlopen(link, timeout=10) as answer:
            return answer.read(), answer.headers["content-disposition"]

    body, disposition = await asyncio.to_thread(fetch, link)
    assert body == b"linked"
    assert disposition == "attachment; filename*=UTF-8''na%C3%AFve%20%22name%22.webp"
    shown = await files.presign_get("k", expires_s=60, filename="x.webp", inline=True)
    assert shown is not None
    assert (await asyncio.to_thread(fetch, shown))[1] == "inline; filename*=UTF-8''x.webp"


async def test_a_presigned_form_writes_one_object_of_its_type_and_size(
    files: FileStore, settings: FilesSettings
) -> None:
    """S3 returns a form that accepts only its key, type and size; a directory returns None."""
    form = await files.presign_post("in/a b", content_type="image/png", min_bytes=4, max_bytes=8, expires_s=60)
    if settings.endpoint is None:
        assert form is None
        return
    assert form is not None

    async def send(data: bytes, **changed: str) -> int:
        async with httpx.AsyncClient() as client:
            fields = {**form.fields, **changed}
            return (await client.post(form.url, data=fields, files={"file": ("x", data)})).status_code

    refused = [await send(b"abc"), await send(b"123456789")]
    refused += [await send(b"abcd", key="in/other"), await send(b"abcd", **{"Content-Type": "text/html"})]
    assert all(status in (400, 403) for status in refused), refused
    assert await keys(files, "") == []
    assert await send(b"abcd") == 204
    found = await files.stat("in/a b")
    assert found is not None
    assert (found.size, found.content_type) == (4, "image/png")


async def test_presigned_urls_use_the_public_endpoint(s3: FilesSettings) -> None:
    """Behind a proxy, link and form are signed for the proxy's address."""
    outside = s3.model_copy(update={"public_endpoint": "https://files.example.org"})
    async with open_files(outside) as files:
        link = await files.presign_get("k", expires_s=60)
        form = await files.presign_post("k", content_type="a/b", min_bytes=1, max_bytes=2, expires_s=60)
    assert link is not None
    assert link.startswith("https://files.example.org/contract-tests/k?")
    assert form is not None
    assert form.url == "https://files.example.org/contract-tests/"


async def test_the_check_leaves_no_object(files: FileStore) -> None:
    """The check of a working store leaves no object."""
    await files.check()
    assert await keys(files, "") == []


async def test_opening_an_unavailable_store_raises() -> None:
    """A closed port is DependencyUnavailable."""
    unavailable = FilesSettings(
        endpoint=f"127.0.0.1:{_free_port()}", access_key="a", secret_key=SecretStr("secret-key")
    )
    with pytest.raises(DependencyUnavailable):
        async with open_files(unavailable):
            pass


async def test_a_lost_connection_raises(s3: FilesSettings) -> None:
    """A connection cut during a read is DependencyUnavailable."""
    host, port = str(s3.endpoint).split(":")
    writers: list[asyncio.StreamWriter] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        writers.extend((writer, up_writer))

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                target.write(data)
                await target.drain()

        await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    proxy = s3.model_copy(update={"endpoint": f"127.0.0.1:{server.sockets[0].getsockname()[1]}"})
    async with open_files(proxy) as files:
        await files.put("k", b"x" * 20_000_000, content_type="x/y")
        stream = files.stream("k")
        await anext(stream)
        server.close()
        for writer in writers:
            writer.transport.abort()
        with pytest.raises(DependencyUnavailable):
            async for _ in stream:
                pass
        with pytest.raises(DependencyUnavailable):
            await files.get("k")
        with pytest.raises(DependencyUnavailable):
            await files.check()


async def test_a_silent_store_times_out() -> None:
    """A server that accepts and never answers is DependencyUnavailable after the configured timeout."""

    async def nothing(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3600)

    server = await asyncio.start_server(nothing, "127.0.0.1", 0)
    endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    silent = FilesSettings(endpoint=endpoint, access_key="a", secret_key=SecretStr("secret-key"), timeout_s=0.2)
    with pytest.raises(DependencyUnavailable):
        async with open_files(silent):
            pass
    server.close()


async def test_the_breaker_opens_for_an_unavailable_store(s3: FilesSettings) -> None:
    """After five failures the store is not called; a successful check closes the breaker."""
    host, port = str(s3.endpoint).split(":")
    unavailable, calls = False, 0
    writers: list[asyncio.StreamWriter] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        if not unavailable:
            up_reader, up_writer = await asyncio.open_connection(host, int(port))
            writers.extend((writer, up_writer))
            await asyncio.gather(_pump(reader, up_writer), _pump(up_reader, writer), return_exceptions=True)
        writer.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    proxy = s3.model_copy(update={"endpoint": f"127.0.0.1:{server.sockets[0].getsockname()[1]}", "pool_size": 1})
    breakers = Breakers(BreakerSettings(open_s=600))
    async with server, open_files(proxy) as direct:
        store = BreakingFiles(direct, breakers)
        await store.put("k", b"1", content_type="x/y")
        unavailable = True
        for writer in writers:
            writer.transport.abort()
        for _ in range(5):
            with pytest.raises(DependencyUnavailable):
                await store.get("k")
        before = calls
        for _ in range(5):
            with pytest.raises(DependencyUnavailable, match="circuit breaker open") as refused:
                await store.get("k")
            assert 0 < (refused.value.after_s or 0) <= 600
        assert calls == before
        unavailable = False
        await store.check()
        assert await store.get("k") == b"1"
        for writer in writers:
            writer.transport.abort()


async def test_wrong_credentials_are_not_ready(s3: FilesSettings) -> None:
    """Refused credentials raise NotReady with the setting's name."""
    wrong = s3.model_copy(update={"secret_key": SecretStr("not-the-secret")})
    with pytest.raises(NotReady, match="DARKROOM_FILES__SECRET_KEY"):
        async with open_files(wrong):
            pass


async def test_stale_writes_are_removed_at_open(tmp_path: Path) -> None:
    """Temporary files of crashed writers are removed at open; those of a write in progress stay."""
    settings = FilesSettings(directory=tmp_path, bucket="b")
    async with open_files(settings):
        pass
    old, young = tmp_path / "b" / "tmp" / "old", tmp_path / "b" / "tmp" / "young"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    async with open_files(settings):
        assert not old.exists()
        assert young.exists()


async def test_a_full_disk_is_dependency_unavailable(tmp_path: Path) -> None:
    """A write to a full disk raises DependencyUnavailable, keeps the previous object, and leaves no partial file."""
    settings = FilesSettings(directory=tmp_path, bucket="b")
    async with open_files(settings) as files:
        await files.put("k", b"before", content_type="x/y")
    script = """
import asyncio, resource, signal, sys
from pathlib import Path
from streams.errors import DependencyUnavailable
from streams.object_store.factory import open_files
from streams.settings import FilesSettings
async def main():
    async with open_files(FilesSettings(directory=Path(sys.argv[1]), bucket="b")) as files:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # EFBIG stands for ENOSPC
        try:
            await files.put("k", bytes(1_000_000), content_type="x/y")
        except DependencyUnavailable as error:
            print("unavailable", error)
asyncio.run(main())
"""
    done = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(tmp_path), stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    output, _ = await done.communicate()
    assert output.startswith(b"unavailable")
    async with open_files(settings) as files:
        assert await files.get("k") == b"before"
    assert list((tmp_path / "b" / "tmp").iterdir()) == []


async def test_an_object_cannot_be_a_folder(tmp_path: Path) -> None:
    """A key that would be both object and folder is refused, and the existing object stays."""
    async with open_files(FilesSettings(directory=tmp_path, bucket="b")) as files:
        await files.put("a/b", b"1", content_type="x/y")
        with pytest.raises(ValueError, match="both"):
            await files.put("a", b"2", content_type="x/y")
        with pytest.raises(ValueError, match="both"):
            await files.put("a/b/c", b"2", content_type="x/y")
        assert await files.get("a/b") == b"1"
        found = await files.stat("a/b")
        assert found is not None
        assert found.content_type == "x/y"
