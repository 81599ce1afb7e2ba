"""A MinIO server on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from minio import Minio
from minio.error import S3Error

from infra.local import ports, tools
from infra.local.service import LocalService
from infra.local.tools import Say, say_to_stderr


@dataclass(frozen=True, slots=True)
class _Keys:
    access_key: str
    secret_key: str


class LocalMinio(LocalService):
    """One MinIO in `folder`, with `bucket` created. Its keys are random, one pair per folder, in a file of mode 0600.

    If `port` is in use, a free one is chosen (0: any).
    """

    name = "minio"

    def __init__(self, folder: Path, *, port: int = 9000, bucket: str = "darkroom", say: Say = say_to_stderr) -> None:
        super().__init__(folder, say=say)
        self.bucket = bucket
        self._usual_port = port
        self._port = 0
        self._binary = Path()
        self._keys = _Keys("", "")

    @property
    def endpoint(self) -> str:
        """`host:port`, plain HTTP."""
        return f"{ports.HOST}:{self._port}"

    @property
    def access_key(self) -> str:
        """The access key of the root user."""
        return self._keys.access_key

    @property
    def secret_key(self) -> str:
        """The secret key of the root user."""
        return self._keys.secret_key

    async def start(self) -> None:
        """Start MinIO, wait until it is ready, and create the bucket."""
        await super().start()
        try:
            await asyncio.to_thread(self._make_bucket)
        except BaseException:
            await self.stop()
            raise

    def _install(self) -> None:
        self._binary = tools.minio_binary(self._say)

    def _choose_ports(self) -> None:
        self._port = ports.choose(self._usual_port)

    async def _prepare(self) -> None:
        (self.folder / "minio").mkdir(exist_ok=True)
        self._keys = _load_keys(self.folder / "minio.keys.json")

    def _command(self) -> list[str]:
        return [str(self._binary), "server", "--quiet", "--address", self.endpoint, str(self.folder / "minio")]

    def _environment(self) -> Mapping[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("MINIO_")},
            "MINIO_ROOT_USER": self.access_key,
            "MINIO_ROOT_PASSWORD": self.secret_key,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
        }

    async def _answers(self) -> bool:
        async with httpx.AsyncClient(trust_env=False, timeout=2.0) as client:
            try:
                reply = await client.get(f"http://{self.endpoint}/minio/health/ready")
            except httpx.TransportError:
                return False
        return reply.status_code == httpx.codes.OK

    def _make_bucket(self) -> None:
        client = Minio(self.endpoint, access_key=self.access_key, secret_key=self.secret_key, secure=False)
        try:
            client.make_bucket(self.bucket)
        except S3Error as error:
            if error.code != "BucketAlreadyOwnedByYou":
                raise


def _load_keys(file: Path) -> _Keys:
    """Return the folder's keys; create them if the file is missing or truncated."""
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError, KeyError):
        known = json.loads(file.read_text())
        return _Keys(known["access_key"], known["secret_key"])
    keys = _Keys("darkroom", secrets.token_urlsafe(24))
    partial = file.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    partial.write_text(json.dumps(asdict(keys)))
    partial.replace(file)
    return keys
