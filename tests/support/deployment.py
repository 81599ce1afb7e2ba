"""Worker processes on a real Kafka for fault tests: start, kill, stop, produce, and read the results."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import psutil
from confluent_kafka import Producer

from gateway.client import Darkroom, Refused, Unreachable
from infra.local.ports import choose
from schemas.events.envelope import Event, Outgoing, Record
from schemas.events.intake import ImageUploaded
from schemas.http.jobs import JobResult, JobStatus
from schemas.values import ImageState, ObjectRef, Profile, job_id_of, new_image_id
from streams import topics
from streams.errors import DependencyUnavailable
from streams.kafka.admin import KafkaAdmin
from streams.kafka.bounded_read import read_topic
from streams.object_store.factory import open_files
from streams.object_store.keys import original_key
from streams.object_store.protocol import FileStore, ObjectMissing
from streams.settings import FilesSettings, KafkaSettings
from streams.topics import Topic, agent_topics
from tests.support.forked_process import ForkedChild

PATIENCE_S = 180.0  # upper bound of any wait, on a slow and busy machine
POLL_S = 0.2  # a poll of Kafka or the gateway costs up to 50 ms of CPU, which the processes under test need
KILLED = -signal.SIGKILL

LIGHT = Profile(stages=("sanitizer", "resizer"))  # no stage with a model
WITH_OBJECTS = Profile(stages=("sanitizer", "detector"))


def until(happened: Callable[[], bool], what: str, *, patience_s: float = PATIENCE_S) -> None:
    """Wait until a condition is true; fail with its description after `patience_s`."""
    deadline = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < deadline, f"not within {patience_s:.0f} s: {what}"
        time.sleep(POLL_S)


@dataclass
class Deployment:
    """A set of topics, an object store, and the processes on them. `deployed(…)` ends the processes."""

    kafka: KafkaSettings
    files: FilesSettings
    folder: Path
    environment: Mapping[str, str]
    port: int
    children: dict[str, ForkedChild] = field(default_factory=dict)
    supervised: bool = False  # an exited process is restarted instead of failing the test

    @cached_property
    def admin(self) -> KafkaAdmin:
        """An admin client of the broker."""
        return KafkaAdmin(self.kafka)

    @cached_property
    def _polled(self) -> Darkroom:
        """The client of all polls of this deployment: making one costs more than a request."""
        return self.client()

    # Processes

    def command(self, name: str) -> list[str]:
        """Return the command of a process; see `module`."""
        return [sys.executable, "-m", *self.module(name)]

    def module(self, name: str) -> list[str]:
        """Return the module and arguments of a process: an agent, a second instance (`resizer#2`), or another."""
        process, _, _ = name.partition("#")
        return ["darkroom", *(["agent"] if process in topics.AGENTS else []), process]

    def start(self, *names: str, strike: str = "", **more: str) -> None:
        """Start processes; `strike` is the point:passage at which each kills itself with SIGKILL."""
        environment = {**self.environment, **more, **({"DARKROOM_STRIKE": strike} if strike else {})}
        for name in names:
            self.children[name] = ForkedChild(self.module(name), log_file=self.log_file(name), env=environment)

    def log_file(self, name: str) -> Path:
        """Return the log file of a process."""
        return self.folder / f"{name}.log"

    def until_killed(self, *names: str) -> None:
        """Wait until each process was killed at its strike point."""
        for name in names:
            code = self.children[name].wait_blocking(PATIENCE_S)
            assert code == KILLED, f"{name} ended with {code}: {self.log_file(name).read_text()[-2000:]}"

    def terminate(self, name: str) -> int:
        """Send SIGTERM; return the exit code."""
        child = self.children.pop(name)
        child.signal(signal.SIGTERM)
        return child.wait_blocking(90)

    def until_ready(self, *agents: str, members: int = 1) -> None:
        """Wait until the group of each agent has `members` members with open tools."""

        def joined() -> bool:
            self.check_alive()
            try:
                found = asyncio.run(self.admin.members(agents))
            except DependencyUnavailable:
                return False
            return all(found.get(agent, 0) >= members for agent in agents)

        until(joined, f"{members} workers of {', '.join(agents)}")

    def check_alive(self) -> None:
        """Fail if a process has exited without being killed; restart it instead if the deployment is supervised."""
        for name, child in list(self.children.items()):
            if self.supervised and child.exit_code is not None:
                self.start(name)
            ended = not self.supervised and child.exit_code not in (None, KILLED)
            assert not ended, f"{name} ended with {child.exit_code}: {self.log_file(name).read_text()[-3000:]}"

    def close(self) -> None:
        """Kill all running processes; fail if one of theirs outlives them."""
        begun = [process for child in self.children.values() for process in _descendants(child.pid)]
        for child in self.children.values():
            child.kill()
        self.children.clear()
        self._polled.close()
        _, left = psutil.wait_procs(begun, timeout=10)
        assert not left, f"left behind: {left}"

    # Events

    def produce(self, messages: Iterable[Outgoing]) -> None:
        """Produce messages as another service does, and wait until Kafka confirms them."""
        settings = {"bootstrap.servers": self.kafka.bootstrap, "partitioner": "murmur2_random"}
        # Kafka limits the size of a batch, not of a message: a full one of the default size is refused as a whole.
        bounds = {"message.max.bytes": 1_000_000, "batch.size": 100_000}
        producer = Producer({**settings, **bounds, "enable.idempotence": True})
        refused: list[str] = []

        def confirmed(error: object, _: object) -> None:
            if error is not None:
                refused.append(str(error))

        for message in messages:
            producer.produce(
                self.kafka.topic(message.topic),
                key=message.key,
                value=message.value,
                headers=list(message.headers),
                on_delivery=confirmed,
            )
        assert producer.flush(60) == 0, "Kafka did not confirm the events"
        assert not refused, f"Kafka refused {len(refused)} events: {refused[0]}"

    def publish(self, topic: Topic, *events: Event) -> None:
        """Produce events as another service does."""
        self.produce(message_of(topic, event) for event in events)

    def records(self, topic: str | Topic) -> list[Record]:
        """Return all records of a topic, oldest first."""
        name = topic if isinstance(topic, str) else topic.name
        for _ in range(20):
            try:
                return read_topic(self.kafka, name)
            except DependencyUnavailable:  # a broker that just restarted
                time.sleep(0.5)
        return read_topic(self.kafka, name)

    def lag(self, agent: str) -> int:
        """Return an agent's lag over its topics; -1 while the coordinator is unavailable."""
        consumed = [topic.name for topic in topics.PIPELINE if agent in topic.readers]
        try:
            return asyncio.run(self.admin.lag(agent, [*consumed, topics.retry_topic(agent)]))
        except DependencyUnavailable:  # the coordinator of a new group may be loading
            return -1

    def until_idle(self, *agents: str) -> None:
        """Wait until these agents have no lag."""

        def idle() -> bool:
            self.check_alive()
            return all(self.lag(agent) == 0 for agent in agents)

        until(idle, f"{', '.join(agents)} without lag")

    # Objects

    def uploaded(self, data: bytes, *, profile: Profile = LIGHT, image_id: str | None = None) -> ImageUploaded:
        """Store bytes as an original; return its ImageUploaded event without producing it."""
        digest = hashlib.sha256(data).hexdigest()
        key = original_key("default", digest)
        original = ObjectRef(bucket=self.files.bucket, key=key, sha256=digest, size=len(data))
        self.put(key, data)
        return ImageUploaded(image_id=image_id or new_image_id(), profile=profile, original=original)

    def put(self, key: str, data: bytes) -> None:
        """Write an object."""

        async def write(files: FileStore) -> None:
            await files.put(key, data, content_type="application/octet-stream")

        self._with_files(write)

    def delete(self, key: str) -> None:
        """Remove an object."""

        async def remove(files: FileStore) -> None:
            await files.delete(key)

        self._with_files(remove)

    def objects(self, image_id: str) -> dict[str, str]:
        """Return the sha256 of every stored file of an image, by its name within the image."""
        found: dict[str, str] = {}

        async def read(files: FileStore) -> None:
            async for info in files.list(f"images/{image_id[-2:]}/{image_id}/"):
                with suppress(ObjectMissing):  # removed since it was listed
                    found[info.key.rsplit("/", 1)[-1]] = hashlib.sha256(await files.get(info.key)).hexdigest()

        self._with_files(read)
        return found

    def read(self, key: str) -> bytes:
        """Return an object."""
        found: list[bytes] = []

        async def get(files: FileStore) -> None:
            found.append(await files.get(key))

        self._with_files(get)
        return found[0]

    def keys(self, prefix: str) -> set[str]:
        """Return the keys of all objects under a prefix."""
        found: set[str] = set()

        async def walk(files: FileStore) -> None:
            async for info in files.list(prefix):
                found.add(info.key)

        self._with_files(walk)
        return found

    def _with_files(self, work: Callable[[FileStore], object]) -> None:
        async def run() -> None:
            async with open_files(self.files) as files:
                await work(files)  # type: ignore[misc]

        asyncio.run(run())

    # Results

    def client(self) -> Darkroom:
        """Return a client of the core's gateway."""
        return Darkroom(f"http://127.0.0.1:{self.port}", timeout_s=30)

    def status(self, image_id: str) -> JobStatus | None:
        """Return the status of an image; None while the core does not know it or does not answer."""
        try:
            return self._polled.status(job_id_of(image_id, 1))
        except (Refused, Unreachable):
            return None

    def state(self, image_id: str) -> ImageState | None:
        """Return the state of an image; None while it is unknown."""
        status = self.status(image_id)
        return status.status if status is not None else None

    def result(self, image_id: str) -> JobResult:
        """Return the result of an image that has ended."""
        return self._polled.result(job_id_of(image_id, 1))

    def until_ended(self, image_ids: Sequence[str], state: ImageState = ImageState.COMPLETED) -> None:
        """Wait until each image has ended; fail if one ends in another state."""
        left = set(image_ids)

        def ended() -> bool:
            self.check_alive()
            for image_id in list(left):
                status = self.status(image_id)
                if status is None or status.status is ImageState.PROCESSING:
                    return False
                assert status.status is state, f"{image_id} is {status.status}: {status.error} {status.stages}"
                left.discard(image_id)
            return True

        until(ended, f"the end of {len(image_ids)} images")

    def outcomes(self) -> dict[str, set[tuple[str, str]]]:
        """Return the distinct outcomes of every image: (ce_id, ce_type)."""
        found: dict[str, set[tuple[str, str]]] = {}
        for record in self.records(topics.OUTCOMES):
            about = found.setdefault(record.header("ce_subject") or "", set())
            about.add((record.header("ce_id") or "", record.header("ce_type") or ""))
        return found

    def check_ended_once(self, image_ids: Sequence[str]) -> None:
        """Assert that exactly these images have an outcome, and each completed once."""
        found = self.outcomes()
        assert set(found) == set(image_ids)
        assert [sorted(kind for _, kind in found[image_id]) for image_id in image_ids] == [
            ["darkroom.image.completed.v1"]
        ] * len(image_ids)


def message_of(topic: Topic, event: Event) -> Outgoing:
    """Return an event as a message of another service."""
    return Outgoing(topic.name, event.key(), event.body(), event.headers(source="another-service"))


@contextmanager
def deployed(
    bootstrap: str,
    folder: Path,
    *,
    files: FilesSettings | None = None,
    agents: Sequence[str] = topics.AGENTS,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Deployment]:
    """Create topics for these agents under a unique prefix; kill the processes at exit and assert that none is left.

    `settings` are additional DARKROOM_ variables of every process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kafka = KafkaSettings(bootstrap=bootstrap, prefix=f"t{uuid.uuid4().hex[:8]}.", partitions=2)
    files = files or FilesSettings(directory=folder / "objects")
    port = choose(0)
    own = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    environment = {
        **own,
        "DARKROOM_KAFKA__BOOTSTRAP": bootstrap,
        "DARKROOM_KAFKA__PREFIX": kafka.prefix,
        "DARKROOM_KAFKA__PARTITIONS": str(kafka.partitions),
        **_files_environment(files),
        "DARKROOM_QDRANT__PATH": str(folder / "qdrant"),
        "DARKROOM_GATEWAY__PORT": str(port),
        "DARKROOM_LIMITS__UPLOADS": "none",
        "DARKROOM_GATEWAY__MOST_LATE_S": "60",  # a slow machine must not shed test requests
        "DARKROOM_WORKER__LOOP_LAG_S": "30",  # nor end a process that waits for a core
        "DARKROOM_MODELS__DOWNLOAD": "false",
        "DARKROOM_MODELS__THREADS": "1",  # several agents and deployments share the cores
        "DARKROOM_MODELS__CACHE": str(folder / "models"),
        "DARKROOM_WORKER__SESSION_TIMEOUT_S": "6",
        "DARKROOM_WORKER__COMMIT_INTERVAL_S": "0.2",
        "DARKROOM_TELEMETRY__LOG_FORMAT": "json",
        **(settings or {}),
    }
    wanted = [*topics.PIPELINE, topics.SCHEDULER_DEAD, *(topic for agent in agents for topic in agent_topics(agent))]
    asyncio.run(KafkaAdmin(kafka).create_topics(wanted))
    deployment = Deployment(kafka, files, folder, environment, port)
    try:
        yield deployment
    finally:
        deployment.close()


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _files_environment(files: FilesSettings) -> dict[str, str]:
    found = {
        "ENDPOINT": files.endpoint,
        "ACCESS_KEY": files.access_key,
        "SECRET_KEY": files.secret_key.get_secret_value() if files.secret_key else None,
        "BUCKET": files.bucket,
        "DIRECTORY": str(files.directory),
        "TIMEOUT_S": str(files.timeout_s),
    }
    return {f"DARKROOM_FILES__{name}": value for name, value in found.items() if value}
