"""The object store on any S3 server, through the minio SDK in a bounded thread pool."""

from __future__ import annotations

import asyncio
import hashlib
import io
import uuid
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import certifi
import urllib3
from minio import Minio
from minio.commonconfig import CopySource
from minio.datatypes import PostPolicy
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from schemas.values import ObjectRef
from streams.errors import AccessDenied, DependencyUnavailable, NotReady
from streams.object_store.keys import check_key, check_prefix
from streams.object_store.protocol import FileStore, ObjectInfo, ObjectMissing, PostForm, open_source
from streams.settings import FilesSettings

CHUNK = 256 * 1024
PART = 8 * 1024 * 1024  # bytes of a file in memory while it is sent; S3's minimum is 5 MiB
ONE_PUT = 64 * 1024 * 1024  # bytes objects are sent in one request, up to this size
PAGE = 500  # objects listed per call in a thread
CONNECT_S = 3.0  # a running store accepts at once

R = TypeVar("R")

_MISSING = {"NoSuchKey", "NoSuchVersion", "ResourceNotFound"}
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed"}
_UNAVAILABLE = {
    "NoSuchBucket", "SlowDown", "SlowDownRead", "SlowDownWrite", "InternalError", "ServiceUnavailable",
    "RequestTimeout", "RequestTimeTooSkewed", "XMinioStorageFull", "XMinioServerNotInitialized", "QuotaExceeded",
    "XMinioAdminBucketQuotaExceeded",
}  # fmt: skip


class _OnceUnlessSlow(urllib3.Retry):
    """Retries any error but a timeout, so that timeouts do not add up."""

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: urllib3.response.BaseHTTPResponse | None = None,
        error: Exception | None = None,
        _pool: urllib3.connectionpool.ConnectionPool | None = None,
        _stacktrace: TracebackType | None = None,
    ) -> Self:
        if isinstance(error, urllib3.exceptions.TimeoutError):
            raise error
        return super().increment(method, url, response, error, _pool, _stacktrace)


class S3Files:
    """A FileStore on an S3 server."""

    def __init__(self, settings: FilesSettings) -> None:
        self.bucket = settings.bucket
        self._where = f"object store {settings.endpoint}"
        self._http = urllib3.PoolManager(
            num_pools=2,
            maxsize=settings.pool_size,
            timeout=urllib3.Timeout(connect=min(CONNECT_S, settings.timeout_s), read=settings.timeout_s),
            # The runner retries; one more try here covers a keep-alive connection the server has just closed and a
            # briefly busy server: processing that makes ten calls would rarely succeed if one in five failed.
            retries=_OnceUnlessSlow(
                total=1,
                redirect=0,
                status_forcelist=(500, 502, 503),
                raise_on_status=False,
                respect_retry_after_header=False,
                backoff_factor=0.0,
            ),
            cert_reqs="CERT_REQUIRED",
            ca_certs=certifi.where(),
        )
        secret = settings.secret_key.get_secret_value() if settings.secret_key else None
        self._s3 = Minio(
            settings.endpoint,
            access_key=settings.access_key,
            secret_key=secret,
            secure=settings.secure,
            region=settings.region,
            http_client=self._http,
        )
        self._signer, self._signs = self._public_client(settings, secret), settings.access_key is not None
        self._longest_s = CONNECT_S + settings.timeout_s  # whole call: waiting for a thread, slow responses
        self._pool = ThreadPoolExecutor(settings.pool_size, thread_name_prefix="files")

    async def open(self) -> None:
        """Create the bucket if it is missing."""
        await self._call("", self._ensure_bucket)

    def close(self) -> None:
        """Close connections and threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._http.clear()

    async def put(self, key: str, data: bytes | Path, *, content_type: str, sha256: str | None = None) -> ObjectRef:
        return await self._call(key, lambda: self._put(check_key(key), data, content_type, sha256))

    async def create(self, key: str, data: bytes, *, content_type: str) -> bool:
        return await self._call(key, lambda: self._create(check_key(key), data, content_type))

    async def get(self, key: str, *, limit: int | None = None) -> bytes:
        def read() -> bytes:
            answer = self._s3.get_object(self.bucket, check_key(key))
            try:
                size = int(answer.headers.get("content-length") or 0)
                if limit is not None and size > limit:
                    answer.close()  # an unread response cannot be reused
                    raise ValueError(f"{key} has {size} bytes, more than {limit}")
                return bytes(answer.data)
            finally:
                answer.release_conn()

        return await self._call(key, read)

    async def stream(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        check_key(key)
        if length is not None and length <= 0:
            await self._call(key, lambda: self._s3.stat_object(self.bucket, key))
            return
        try:
            answer = await self._call(
                key, lambda: self._s3.get_object(self.bucket, key, offset=start, length=length or 0)
            )
        except EOFError:
            return
        try:
            while chunk := await self._call(key, lambda: answer.read(CHUNK)):
                yield chunk
            answer.release_conn()
        finally:
            answer.close()

    async def stat(self, key: str) -> ObjectInfo | None:
        try:
            found = await self._call(key, lambda: self._s3.stat_object(self.bucket, check_key(key)))
        except ObjectMissing:
            return None
        return ObjectInfo(
            key=key,
            size=found.size or 0,
            content_type=found.content_type or "application/octet-stream",
            etag=found.etag or "",
            modified=found.last_modified.timestamp() if found.last_modified else 0.0,
            sha256=(found.metadata or {}).get("x-amz-meta-sha256"),
        )

    async def existing(self, keys: Collection[str]) -> set[str]:
        found = await asyncio.gather(*map(self.stat, keys))
        return {one.key for one in found if one is not None}

    async def copy(self, source: str, target: str) -> None:
        check_key(target)
        if source == target:
            await self._call(source, lambda: self._s3.stat_object(self.bucket, check_key(source)))
            return
        origin = CopySource(self.bucket, check_key(source))
        await self._call(source, lambda: self._s3.copy_object(self.bucket, target, origin))

    async def delete(self, key: str) -> None:
        with suppress(ObjectMissing):
            await self._call(key, lambda: self._s3.remove_object(self.bucket, check_key(key)))

    async def list(self, prefix: str, *, after: str | None = None) -> AsyncIterator[ObjectInfo]:
        walk = self._s3.list_objects(
            self.bucket, prefix=check_prefix(prefix) or None, recursive=True, start_after=after or None
        )
        while found := await self._call(prefix, lambda: list(islice(walk, PAGE))):
            for item in found:
                modified = item.last_modified.timestamp() if item.last_modified else 0.0
                yield ObjectInfo(item.object_name, item.size or 0, "", item.etag or "", modified)

    async def presign_get(
        self, key: str, *, expires_s: int, filename: str | None = None, inline: bool = False
    ) -> str | None:
        check_key(key)
        headers: dict[str, str] | None = None
        if filename:  # RFC 6266 with RFC 8187: the name in UTF-8, percent-encoded
            kind = "inline" if inline else "attachment"
            headers = {"response-content-disposition": f"{kind}; filename*=UTF-8''{quote(filename, safe='')}"}
        lifetime = timedelta(seconds=expires_s)
        return await self._call(
            key,
            lambda: str(
                self._signer.presigned_get_object(self.bucket, key, expires=lifetime, response_headers=headers)
            ),
        )

    async def presign_post(
        self, key: str, *, content_type: str, min_bytes: int, max_bytes: int, expires_s: int
    ) -> PostForm | None:
        check_key(key)
        if not self._signs:
            return None
        lifetime = timedelta(seconds=expires_s)
        policy = PostPolicy(self.bucket, datetime.now(UTC) + lifetime)
        policy.add_equals_condition("key", key)
        policy.add_equals_condition("Content-Type", content_type)
        policy.add_content_length_range_condition(min_bytes, max_bytes)
        signed = await self._call(key, lambda: self._signer.presigned_post_policy(policy))
        # The bucket's URL, path-style or virtual-hosted: an object's URL without its key.
        whole = await self._call(
            key, lambda: str(self._signer.presigned_get_object(self.bucket, key, expires=lifetime))
        )
        address = urlsplit(whole)._replace(query="").geturl().removesuffix(quote(key))
        return PostForm(address, {"key": key, "Content-Type": content_type, **signed})

    async def check(self) -> None:
        key = f"probe/{uuid.uuid4()}"
        await self._call(key, self._ensure_bucket)
        await self.put(key, b"probe", content_type="text/plain")
        try:
            if await self.get(key) != b"probe":
                raise DependencyUnavailable(f"{self._where} returned other bytes than were written")
        except ObjectMissing:
            raise DependencyUnavailable(f"{self._where} lost an object just written") from None
        await self.delete(key)

    def _public_client(self, settings: FilesSettings, secret: str | None) -> Minio:
        """Return the client that signs URLs for external clients. It makes no calls, since the region is known."""
        if settings.public_endpoint is None:
            return self._s3
        address = urlsplit(settings.public_endpoint)
        return Minio(
            address.netloc,
            access_key=settings.access_key,
            secret_key=secret,
            secure=address.scheme == "https",
            region=settings.region,
            http_client=self._http,
        )

    async def _call(self, key: str, work: Callable[[], R]) -> R:
        try:
            async with asyncio.timeout(self._longest_s):
                return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except TimeoutError as error:
            raise DependencyUnavailable(f"{self._where} did not answer within {self._longest_s:g} s") from error
        except S3Error as error:
            raise self._translate(key, error) from error
        except (urllib3.exceptions.HTTPError, ServerError, InvalidResponseError) as error:
            raise DependencyUnavailable(f"{self._where}: {error}") from error
        except MinioException as error:
            raise DependencyUnavailable(f"{self._where}: {error}") from error

    def _translate(self, key: str, error: Any) -> Exception:
        status = error.response.status if error.response is not None else 0
        if error.code in _MISSING:
            return ObjectMissing(key)
        if error.code == "InvalidRange":
            return EOFError(key)
        if error.code in _DENIED:
            return AccessDenied(f"{self._where} refuses our credentials: {error.code}")
        if error.code in _UNAVAILABLE or status >= 500 or status == 429:
            return DependencyUnavailable(f"{self._where}: {error.code} {error.message}")
        return ValueError(f"{self._where} refuses {key[:80]!r}: {error.code} {error.message}")

    def _ensure_bucket(self) -> None:
        try:
            if self._s3.bucket_exists(self.bucket):
                return
            self._s3.make_bucket(self.bucket)
        except S3Error as error:
            if error.code in _DENIED:
                raise NotReady(
                    f"{self._where} refuses our credentials for bucket {self.bucket} ({error.code}): "
                    "see DARKROOM_FILES__ACCESS_KEY and DARKROOM_FILES__SECRET_KEY"
                ) from error
            if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise

    def _put(self, key: str, data: bytes | Path, content_type: str, sha256: str | None) -> ObjectRef:
        if isinstance(data, bytes):
            known, size = sha256 or hashlib.sha256(data).hexdigest(), len(data)
            with io.BytesIO(data) as whole:
                self._send(key, whole, size, content_type, known, part=size if size <= ONE_PUT else PART)
        else:
            with open_source(data) as file:
                known = sha256 or hashlib.file_digest(file, "sha256").hexdigest()
                size = file.seek(0, io.SEEK_END)
                file.seek(0)
                self._send(key, file, size, content_type, known, part=PART)
        return ObjectRef(bucket=self.bucket, key=key, sha256=known, size=size, content_type=content_type)

    def _create(self, key: str, data: bytes, content_type: str) -> bool:
        known = hashlib.sha256(data).hexdigest()
        headers = {"Content-Type": content_type, "If-None-Match": "*", "x-amz-meta-sha256": known}
        try:
            # The SDK's own put takes no conditions.
            self._s3._put_object(self.bucket, key, data, headers)
        except S3Error as error:
            if error.code not in ("PreconditionFailed", "ConditionalRequestConflict"):
                raise
            return False
        return True

    def _send(self, key: str, body: io.BufferedIOBase, size: int, content_type: str, sha256: str, *, part: int) -> None:
        self._s3.put_object(
            self.bucket,
            key,
            body,
            size,
            content_type=content_type,
            metadata={"sha256": sha256},
            part_size=max(part, 5 * 1024 * 1024),
            num_parallel_uploads=1,
        )


@asynccontextmanager
async def open_s3_files(settings: FilesSettings) -> AsyncIterator[FileStore]:
    """Open a bucket as an object store; DependencyUnavailable if the server is down, NotReady if it denies access."""
    files = S3Files(settings)
    try:
        await files.open()
        yield files
    finally:
        files.close()
