"""A system started by `darkroom up --minio`: Kafka, MinIO, and each agent as a process."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from confluent_kafka import Producer
from minio import Minio

from gateway.client import Darkroom, Refused, Unreachable
from infra.local.ports import choose
from schemas.http.jobs import JobResult
from schemas.values import ImageState, job_id_of

PATIENCE_S = 240.0  # upper bound of any wait, on a slow and busy machine


def until(happened: Callable[[], bool], what: str, *, patience_s: float = PATIENCE_S) -> None:
    """Wait until a condition is true; fail with its description after `patience_s`."""
    deadline = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < deadline, f"not within {patience_s:.0f} s: {what}"
        time.sleep(0.1)


@dataclass(slots=True)
class RunningSystem:
    """A running system, with clients of its gateway, Kafka and MinIO."""

    process: subprocess.Popen[bytes]
    url: str
    folder: Path
    environment: Mapping[str, str]  # settings to reach its Kafka and MinIO
    client: Darkroom

    @property
    def bootstrap(self) -> str:
        """The bootstrap address of its Kafka."""
        return self.environment["DARKROOM_KAFKA__BOOTSTRAP"]

    def objects(self) -> Minio:
        """Return a MinIO client."""
        env = self.environment
        return Minio(
            env["DARKROOM_FILES__ENDPOINT"],
            access_key=env["DARKROOM_FILES__ACCESS_KEY"],
            secret_key=env["DARKROOM_FILES__SECRET_KEY"],
            secure=False,
        )

    def stored(self, prefix: str = "") -> list[str]:
        """Return the keys of all objects under a prefix."""
        return [str(found.object_name) for found in self.objects().list_objects("darkroom", prefix, recursive=True)]

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a `darkroom` command against the system."""
        environment = {**self.environment, "DARKROOM_URL": self.url, "COLUMNS": "240"}
        return subprocess.run(
            [sys.executable, "-m", "darkroom", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def agent(self, name: str) -> psutil.Process:
        """Return the supervised process of an agent, not its sandbox children."""
        for child in psutil.Process(self.process.pid).children():
            if child.cmdline()[-2:] == ["agent", name]:
                return child
        raise AssertionError(f"no process of {name}")

    def processes(self) -> list[psutil.Process]:
        """Return the system's process and all its descendants."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def publish(self, data: bytes, content_type: str = "image/jpeg") -> str:
        """Store bytes and produce `image.uploaded` as another service does; return the image id."""
        digest, image_id = hashlib.sha256(data).hexdigest(), _uuid7()
        key = f"originals/default/{digest[:2]}/{digest}"
        store = self.objects()
        with _Reader(data) as body:
            store.put_object("darkroom", key, body, len(data), content_type=content_type)
        original = {"bucket": "darkroom", "key": key, "sha256": digest, "size": len(data), "content_type": content_type}
        event = {"image_id": image_id, "original": original, "filename": "from-elsewhere", "bucket": "elsewhere"}
        producer = Producer({"bootstrap.servers": self.bootstrap, "partitioner": "murmur2_random"})
        producer.produce(
            "darkroom.image.uploaded",
            key=image_id,
            value=json.dumps(event),
            headers={
                "ce_specversion": "1.0",
                "ce_id": str(uuid.uuid4()),
                "ce_type": "darkroom.image.uploaded.v1",
                "ce_source": "another-service",
                "content-type": "application/json",
            },
        )
        assert producer.flush(30) == 0, "Kafka did not confirm the event"
        return image_id

    def ended(self, image_id: str) -> JobResult:
        """Wait until an image has ended; the gateway may not know it yet."""
        job_id = job_id_of(image_id, 1)

        def final() -> bool:
            try:
                return self.client.status(job_id).status is not ImageState.PROCESSING
            except Refused as error:
                assert error.code == "not-found"
                return False

        until(final, f"the end of {image_id}")
        return self.client.result(job_id)


def _uuid7() -> str:
    value = (time.time_ns() // 1_000_000 & (1 << 48) - 1) << 80 | uuid.uuid4().int & ((1 << 80) - 1)
    value = value & ~(0xF << 76) | 0x7 << 76
    return str(uuid.UUID(int=value & ~(0x3 << 62) | 0x2 << 62))


class _Reader:
    """A bytes reader for the MinIO client."""

    def __init__(self, data: bytes) -> None:
        self._left = memoryview(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._left.release()

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        taken = bytes(self._left if size < 0 else self._left[:size])
        self._left = self._left[len(taken) :]
        return taken


@dataclass(frozen=True, slots=True)
class Launched:
    """A system that is starting."""

    process: subprocess.Popen[bytes]
    url: str
    log_file: Path  # the output of `darkroom up`
    environment: Mapping[str, str]


def launch(folder: Path, models: Path, cache: Path, **more: str) -> Launched:
    """Start the system with the weights in `models`, converted into `cache`."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    environment = {
        **own,
        "DARKROOM_MODELS__DIR": str(models),
        "DARKROOM_MODELS__DOWNLOAD": "false",
        "DARKROOM_MODELS__CACHE": str(cache),
        "DARKROOM_LIMITS__UPLOADS": "none",
        "DARKROOM_GATEWAY__MOST_LATE_S": "60",  # a slow machine must not shed test requests
        **more,
    }
    port = choose(0)
    log_file = folder / "up.log"
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "darkroom", "up", "--port", str(port), "--folder", str(folder), "--minio"],
            env=environment,
            stdout=log,
            stderr=log,
        )
    return Launched(process, f"http://127.0.0.1:{port}", log_file, environment)


@contextmanager
def started(folder: Path, models: Path, cache: Path, **more: str) -> Iterator[RunningSystem]:
    """Start the system, wait until it is ready, and stop it with SIGTERM at exit."""
    launched = launch(folder, models, cache, **more)
    process, log_file = launched.process, launched.log_file
    try:
        with Darkroom(launched.url, timeout_s=60) as client:
            until(lambda: _ready(process, client, log_file), "readiness")
            yield RunningSystem(
                process, launched.url, folder, {**launched.environment, **_addresses(folder, log_file)}, client
            )
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> int:
    """Send SIGTERM and return the exit code; kill the process after 120 s. Stopping twice is harmless."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(120)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def _ready(process: subprocess.Popen[bytes], client: Darkroom, log_file: Path) -> bool:
    assert process.poll() is None, log_file.read_text()
    try:
        return client.health().ready
    except (Unreachable, Refused):
        return False


def _addresses(folder: Path, log_file: Path) -> dict[str, str]:
    text = log_file.read_text()
    keys = json.loads((folder / "minio" / "minio.keys.json").read_text())
    return {
        "DARKROOM_KAFKA__BOOTSTRAP": re.findall(r"Kafka answers at (\S+)", text)[-1],
        "DARKROOM_FILES__ENDPOINT": re.findall(r"MinIO answers at (\S+)", text)[-1],
        "DARKROOM_FILES__ACCESS_KEY": keys["access_key"],
        "DARKROOM_FILES__SECRET_KEY": keys["secret_key"],
    }


@dataclass(slots=True)
class MemoryWatch:
    """Samples the resident memory of a process within the block."""

    find: Callable[[], psutil.Process]
    pids: set[int] = field(default_factory=set)
    peak: int = 0  # bytes
    samples: int = 0
    _stopped: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(0.1):
            try:
                process = self.find()
                self.peak = max(self.peak, process.memory_info().rss)
            except (AssertionError, psutil.Error):  # between a crash and the restart, which shows in `pids`
                continue
            self.pids.add(process.pid)
            self.samples += 1
