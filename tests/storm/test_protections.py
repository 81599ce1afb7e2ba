"""Each protection disabled alone: its fault violates a guarantee, and the checks report that guarantee."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from aiokafka.partitioner import murmur2

from infra.local.kafka import LocalKafka
from schemas.events.envelope import Outgoing
from schemas.events.intake import ImageUploaded
from schemas.values import new_image_id
from streams import topics
from streams.object_store.factory import open_files
from streams.topics import MAX_MESSAGE_BYTES
from tests.storm.books import balance
from tests.storm.cluster import set_topic
from tests.storm.evidence import CommitSample, Evidence
from tests.storm.gathering import gather, outputs_of, sample_commits
from tests.storm.pool import Content, make_pool
from tests.storm.uploads import NUMBER, Sent
from tests.support.deployment import KILLED, LIGHT, Deployment, deployed, until
from tests.support.forked_process import ForkedChild

AGENTS = ("sanitizer", "resizer", "indexer")
PICTURES = 8

pytestmark = [pytest.mark.lengthy, pytest.mark.timeout(280)]


@dataclass
class Bench:
    """A deployment with or without a protection, its images, and the samples of commits."""

    deployment: Deployment
    off: str
    contents: list[Content]
    diary: list[Sent] = field(default_factory=list)
    calm: dict[str, dict[str, str]] = field(default_factory=dict)
    commits: list[CommitSample] = field(default_factory=list)

    def start(self, name: str) -> ForkedChild:
        """Start a process, with the protection disabled if `off` names it."""
        module = self.deployment.module(name)
        if self.off:
            module = ["tests.storm.sabotaged", self.off, *module[1:]]
        child = ForkedChild(module, log_file=self.deployment.log_file(name), env=self.deployment.environment)
        self.deployment.children[name] = child
        return child

    def send(self, *sent: tuple[Content, bytes]) -> list[ImageUploaded]:
        """Publish images as another service does, all to one partition; return their events."""
        events = []
        for content, data in sent:
            number = len(self.diary) + 1
            image_id = next(one for one in iter(new_image_id, "") if murmur2(one.encode()) % 2 == 0)
            event = self.deployment.uploaded(data, profile=LIGHT, image_id=image_id)
            events.append(event.model_copy(update={"context": {NUMBER: number}}))
            sha, at = event.original.sha256, time.time()
            self.diary.append(Sent(number, "event", content.name, content.good, sha, at, 202, image_id))
        self.deployment.publish(topics.UPLOADED, *events)
        return events

    def begin(self) -> list[ImageUploaded]:
        """Start all processes, send each picture once, and record the outputs without faults."""
        for name in ("core", "sanitizer", "resizer"):
            self.start(name)
        events = self.send(*((content, content.data) for content in self.contents))
        self.deployment.until_ended([event.image_id for event in events])
        self.deployment.until_idle(*AGENTS)

        async def read() -> None:
            async with open_files(self.deployment.files) as files:
                for content, event in zip(self.contents, events, strict=True):
                    self.calm[content.name] = await outputs_of(files, "default", event.image_id)

        asyncio.run(read())
        return events

    def unique_pictures(self) -> list[tuple[Content, bytes]]:
        """Return the pictures with unique bytes."""
        return [(content, content.unique(number)) for number, content in enumerate(self.contents)]

    def sanitized(self, events: Sequence[ImageUploaded]) -> int:
        """Return how many of these images have a fact of the sanitizer."""
        done = {
            record.header("ce_subject")
            for record in self.deployment.records(topics.FACTS)
            if record.header("ce_source") == "darkroom/sanitizer"
        }
        return len(done & {event.image_id for event in events})

    def note_commits(self) -> None:
        """Sample the committed offsets."""

        def noted() -> bool:
            sample = asyncio.run(sample_commits(self.deployment.kafka, ["sanitizer", "resizer"]))
            self.commits += [sample] if sample is not None else []
            return sample is not None

        until(noted, "the committed offsets", patience_s=60)

    def broken(self) -> set[str]:
        """Run the checks; return the names of the violated guarantees."""

        async def read() -> Evidence:
            async with open_files(self.deployment.files) as files:
                url = f"http://127.0.0.1:{self.deployment.port}"
                return await gather(self.deployment.kafka, files, url, self.diary, agents=AGENTS)

        evidence = asyncio.run(read())
        evidence.calm = self.calm
        evidence.commits += self.commits
        return {promise.name for promise in balance(evidence) if not promise.kept}


def outputs_refused(bench: Bench) -> None:
    """The broker rejects the sanitizer's output for a time; then the sanitizer is restarted."""
    bench.begin()
    kafka, topic = bench.deployment.kafka, bench.deployment.kafka.topic(topics.SANITIZED.name)
    set_topic(kafka.bootstrap, topic, "max.message.bytes", "10")
    sanitizer = bench.deployment.children.pop("sanitizer")
    bench.send(bench.unique_pictures()[0])
    until(
        lambda: sanitizer.exit_code is not None or bench.deployment.lag("sanitizer") == 0, "the event being processed"
    )
    set_topic(kafka.bootstrap, topic, "max.message.bytes", str(MAX_MESSAGE_BYTES))
    sanitizer.kill()
    bench.start("sanitizer")


def killed_with_work_open(bench: Bench) -> None:
    """One decoding hangs while others finish; then the worker is killed and restarted."""
    bench.begin()
    sanitizer = bench.deployment.children["sanitizer"]
    child = next(
        child
        for child in psutil.Process(sanitizer.pid).children(recursive=True)
        if "streams.sandbox.child" in child.cmdline()
    )
    os.kill(child.pid, signal.SIGSTOP)
    events = bench.send(*bench.unique_pictures())
    until(lambda: bench.sanitized(events) == len(events) - 1, "all others being done")
    # Without the ledger the worker commits now, within a few commit intervals.
    until_quiet_for(bench, 1.5)
    bench.note_commits()
    sanitizer.kill()
    assert sanitizer.exit_code == KILLED
    bench.start("sanitizer")


def until_quiet_for(bench: Bench, seconds: float) -> None:
    """Wait until the lag is unchanged for `seconds`."""
    since, lag = time.monotonic(), bench.deployment.lag("sanitizer")
    while time.monotonic() - since < seconds:
        if (now := bench.deployment.lag("sanitizer")) != lag:
            since, lag = time.monotonic(), now
        time.sleep(0.1)


def events_of_a_deleted_image(bench: Bench) -> None:
    """Of two images of the same bytes one is deleted; then their upload events are repeated."""
    first, *_ = bench.begin()
    bench.deployment.until_ended([bench.send((bench.contents[0], bench.contents[0].data))[0].image_id])
    with bench.deployment.client() as client:
        client.delete(first.image_id)
    bench.diary[0].deleted = "yes"
    deleted = "darkroom.image.deleted.v1"
    until(lambda: deleted in {kind for _, kind in bench.deployment.outcomes()[first.image_id]}, "the deletion")
    bench.deployment.until_idle(*AGENTS)
    records = bench.deployment.records(topics.UPLOADED)
    bench.deployment.produce(Outgoing(record.topic, record.key, record.value, record.headers) for record in records)


def same_bytes_again(bench: Bench) -> None:
    """Send every picture a second time."""
    bench.begin()
    events = bench.send(*((content, content.data) for content in bench.contents))
    bench.deployment.until_ended([event.image_id for event in events])


# protection: its fault, and the guarantees violated without it
SCENARIOS: dict[str, tuple[Callable[[Bench], None], set[str]]] = {
    "awaited-delivery": (outputs_refused, {"every accepted upload ends once"}),
    "ledger": (
        killed_with_work_open,
        {
            "every accepted upload ends once",
            "offsets are committed after the work",
            "every object belongs to an image",  # the original of an unknown image
        },
    ),
    "generation-fence": (
        events_of_a_deleted_image,
        {
            "nothing older than the newest generation is visible",
            "every object belongs to an image",
            "every accepted upload ends once",  # it has the outcomes deleted and completed
        },
    ),
    "compute-once-keys": (same_bytes_again, {"equal work is done once"}),
}


@pytest.fixture(scope="module")
def pictures(images_dir: Path) -> list[Content]:
    """Return small drawn pictures, each with different pixels."""
    pool = make_pool(images_dir, fresh=PICTURES)
    return [pool.contents[name] for name in pool.fresh]


def _violations(
    kafka: LocalKafka, folder: Path, off: str, scenario: Callable[[Bench], None], pool: list[Content]
) -> set[str]:
    with deployed(kafka.bootstrap, folder, agents=AGENTS) as deployment:
        bench = Bench(deployment, off, pool)
        scenario(bench)
        deployment.until_idle(*AGENTS)
        return bench.broken()


@pytest.mark.parametrize("protection", SCENARIOS)
def test_a_disabled_protection_is_detected(
    protection: str, kafka: LocalKafka, pictures: list[Content], tmp_path: Path
) -> None:
    """With one protection disabled, its fault violates exactly the expected guarantees."""
    scenario, promises = SCENARIOS[protection]
    broken = _violations(kafka, tmp_path, protection, scenario, pictures)
    assert broken == promises


@pytest.mark.parametrize("protection", SCENARIOS)
def test_with_all_protections_no_guarantee_is_violated(
    protection: str, kafka: LocalKafka, pictures: list[Content], tmp_path: Path
) -> None:
    """With all protections enabled, the same faults violate no guarantee."""
    scenario, _ = SCENARIOS[protection]
    assert _violations(kafka, tmp_path, "", scenario, pictures) == set()
