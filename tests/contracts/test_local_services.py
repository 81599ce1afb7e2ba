"""Local services with a real Kafka, a real MinIO and real processes."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from minio import Minio

from infra.local import ports, tools
from infra.local.kafka import LocalKafka
from infra.local.minio import LocalMinio
from infra.local.process import Child, PidFile, started_at
from infra.local.service import FolderInUse, ServiceFailed
from infra.local.supervisor import Backoff, ChildState, Supervisor, keep_running

pytestmark = pytest.mark.lengthy


async def until_ended(pids: list[int]) -> None:
    """Wait until none of these processes runs, within the test's time limit."""
    while any(started_at(pid) for pid in pids):
        await asyncio.sleep(0.05)


async def until_written(file: Path) -> str:
    """Return a file's text once it has some."""
    while not (file.exists() and file.read_text().endswith("\n")):
        await asyncio.sleep(0.05)
    return file.read_text().strip()


def make_topic(kafka: LocalKafka, name: str) -> None:
    """Create a topic of one partition."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(30)


def produce(kafka: LocalKafka, topic: str, value: bytes) -> None:
    """Write one event and wait for its delivery."""
    refused: list[object] = []
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    producer.produce(topic, value, on_delivery=lambda error, _: refused.append(error) if error else None)
    assert producer.flush(30) == 0
    assert refused == []


def first_event(kafka: LocalKafka, topic: str) -> bytes | None:
    """Read the first event of a topic."""
    consumer = Consumer(
        {"bootstrap.servers": kafka.bootstrap, "group.id": "reader", "auto.offset.reset": "earliest"},
    )
    consumer.subscribe([topic])
    try:
        message = consumer.poll(60)
        assert message is not None and message.error() is None
        value: bytes | None = message.value()
        return value
    finally:
        consumer.close()


def client_of(minio: LocalMinio) -> Minio:
    """Return a client of a MinIO."""
    return Minio(minio.endpoint, access_key=minio.access_key, secret_key=minio.secret_key, secure=False)


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port in use."""
    with socket.socket() as other:
        other.bind((ports.HOST, 0))
        other.listen()
        yield other.getsockname()[1]


def test_kafka_delivers_an_event(kafka: LocalKafka) -> None:
    """A started Kafka stores and returns an event."""
    make_topic(kafka, "carries")
    produce(kafka, "carries", b"hello")
    assert first_event(kafka, "carries") == b"hello"


def test_kafka_creates_no_topic_by_itself(kafka: LocalKafka) -> None:
    """Metadata requests for an unknown topic do not create it."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    admin.list_topics("never-created", timeout=30)
    assert "never-created" not in admin.list_topics(timeout=30).topics


def test_minio_keeps_an_object(minio: LocalMinio) -> None:
    """A started MinIO has its bucket and returns an object."""
    client = client_of(minio)
    client.put_object(minio.bucket, "a/b", io.BytesIO(b"bytes"), 5)
    assert client.get_object(minio.bucket, "a/b").data == b"bytes"


async def test_kafka_keeps_its_data_over_kill_and_stop(tmp_path: Path, taken_port: int) -> None:
    """Kafka avoids a taken port, and its events survive kill -9, a restart, and a stop and start."""
    dashed = "-wAAAAAAAAAAAAAAAAAAAA"  # a valid cluster id that looks like an option
    async with LocalKafka(tmp_path, port=taken_port, cluster_id=dashed) as kafka:
        address, pid = kafka.bootstrap, kafka.pid
        assert address != f"{ports.HOST}:{taken_port}"
        make_topic(kafka, "kept")
        produce(kafka, "kept", b"first")
        kafka.kill()
        assert kafka.pid is None
        await kafka.restart()
        assert kafka.bootstrap == address
        assert kafka.pid not in {None, pid}
        second = kafka.pid
    assert second is not None
    assert started_at(second) is None
    async with LocalKafka(tmp_path, port=0) as kafka:
        assert await asyncio.to_thread(first_event, kafka, "kept") == b"first"


async def test_minio_keeps_its_data_and_keys(tmp_path: Path, taken_port: int) -> None:
    """MinIO avoids a taken port, and its objects and keys survive kill -9, and a stop and start."""
    async with LocalMinio(tmp_path, port=taken_port) as minio:
        assert minio.endpoint != f"{ports.HOST}:{taken_port}"
        client_of(minio).put_object(minio.bucket, "kept", io.BytesIO(b"bytes"), 5)
        minio.kill()
        await minio.restart()
        assert client_of(minio).get_object(minio.bucket, "kept").data == b"bytes"
        keys, pid = (minio.access_key, minio.secret_key), minio.pid
    assert pid is not None
    assert started_at(pid) is None
    async with LocalMinio(tmp_path, port=0) as minio:
        assert (minio.access_key, minio.secret_key) == keys
        assert client_of(minio).get_object(minio.bucket, "kept").data == b"bytes"
    assert (tmp_path / "minio.keys.json").stat().st_mode & 0o077 == 0


async def test_kafka_starts_over_half_formatted_storage(tmp_path: Path) -> None:
    """Storage of an interrupted format is moved aside, and Kafka starts."""
    (tmp_path / "kafka").mkdir()
    (tmp_path / "kafka" / "meta.properties").touch()
    (tmp_path / "kafka" / "bootstrap.checkpoint").write_bytes(b"half")
    (tmp_path / "kafka.unformatted").mkdir()
    output: list[str] = []
    async with LocalKafka(tmp_path, port=0, say=output.append) as kafka:
        make_topic(kafka, "fresh")
    (aside,) = tmp_path.glob("kafka.broken-*")
    assert (aside / "bootstrap.checkpoint").read_bytes() == b"half"
    assert any(str(aside) in line for line in output)


async def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    """A second MinIO in the same folder is refused, and the first keeps running."""
    async with LocalMinio(tmp_path, port=0) as minio:
        with pytest.raises(FolderInUse, match=str(tmp_path)):
            await LocalMinio(tmp_path, port=0).start()
        assert client_of(minio).bucket_exists(minio.bucket)


async def test_a_leftover_process_is_killed(tmp_path: Path) -> None:
    """A process left by an earlier run is killed before a new one starts in its folder."""
    leftover = Child(["sleep", "1000"], log_file=tmp_path / "log")
    PidFile(tmp_path / "minio.pid").write(leftover.pid)
    async with LocalMinio(tmp_path, port=0):
        assert leftover.exit_code == -signal.SIGKILL


async def test_a_reused_pid_is_not_killed(tmp_path: Path) -> None:
    """A process that reuses the pid of the pid file keeps running."""
    unrelated = Child(["sleep", "1000"], log_file=tmp_path / "log")
    (tmp_path / "minio.pid").write_text(f"{unrelated.pid} 1\n")
    async with LocalMinio(tmp_path, port=0):
        assert unrelated.exit_code is None
    unrelated.kill()


async def test_a_service_that_cannot_start_raises_with_its_log(tmp_path: Path) -> None:
    """The error contains the end of Kafka's log, and no process is left."""
    kafka = LocalKafka(tmp_path, port=0, settings={"num.io.threads": "none"})
    with pytest.raises(ServiceFailed, match=r"num\.io\.threads"):
        await kafka.start()
    assert kafka.pid is None


@pytest.mark.parametrize("service", [LocalKafka, LocalMinio])
async def test_a_port_taken_before_listening_is_replaced(
    service: type[LocalKafka | LocalMinio], tmp_path: Path, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port taken between choosing and listening is replaced by another."""
    choose, chosen = ports.choose, [taken_port]

    def too_late(usual: int, host: str = ports.HOST, *, taken: set[int] | None = None) -> int:
        return chosen.pop() if chosen else choose(usual, host, taken=taken)

    monkeypatch.setattr(ports, "choose", too_late)
    async with service(tmp_path, port=0) as server:
        assert server.pid is not None
        assert "already in use" in server.log_file.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_no_process_is_left(tmp_path: Path, number: signal.Signals) -> None:
    """`python -m infra.local up` prints its services' addresses, and ends them on every signal."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "infra.local", "up", "--minio"]
    with subprocess.Popen(
        [*command, "--folder", str(tmp_path), "--kafka-port", "0", "--minio-port", "0"],
        cwd=root, stdout=subprocess.PIPE, text=True,
    ) as up:  # fmt: skip
        assert up.stdout is not None
        where = json.loads(await asyncio.to_thread(up.stdout.readline))
        pids = [int((tmp_path / f"{name}.pid").read_text().split()[0]) for name in ("kafka", "minio")]
        assert all(started_at(pid) for pid in pids)
        keys = where["minio"]
        client = Minio(keys["endpoint"], keys["access_key"], keys["secret_key"], secure=False)
        assert client.bucket_exists(keys["bucket"])
        up.send_signal(number)
        code = await asyncio.to_thread(up.wait)
    assert code == (-number if number is signal.SIGKILL else 0)
    await until_ended(pids)


async def test_a_dead_child_is_restarted_with_backoff(tmp_path: Path) -> None:
    """A child that exits at once is restarted after 1, 2, 4 … 30, 30 seconds."""
    pauses: list[float] = []
    enough = asyncio.Event()

    async def record_pause(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 7:
            enough.set()
        await asyncio.sleep(0 if len(pauses) < 7 else 1000)

    async with Supervisor(sleep=record_pause) as supervisor:
        supervisor.start("dies", ["false"], log_file=tmp_path / "log")
        await enough.wait()
        state = supervisor.state("dies")
        assert (state.state, state.restarts, state.exit_code, state.pid) == ("backoff", 6, 1, None)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert supervisor.state("dies").state == "stopped"


async def test_a_healthy_run_resets_the_backoff(tmp_path: Path) -> None:
    """A child that ran longer than the healthy time is restarted after the first pause."""
    pauses: list[float] = []
    times = iter([0.0, 1.0, 1.0, 2.0, 2.0, 62.0, 62.0, 63.0])
    enough = asyncio.Event()

    async def record_pause(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 4:
            enough.set()
            await asyncio.sleep(1000)

    async with Supervisor(sleep=record_pause, clock=lambda: next(times)) as supervisor:
        supervisor.start("dies", ["false"], log_file=tmp_path / "log")
        await enough.wait()
    assert pauses == [1, 2, 1, 2]


async def test_a_killed_child_is_restarted(tmp_path: Path) -> None:
    """A child killed by SIGKILL is restarted with the same command, environment and log."""
    states: list[ChildState] = []
    running_again = asyncio.Event()

    def record(state: ChildState) -> None:
        states.append(state)
        if state.state == "running" and state.restarts == 1:
            running_again.set()

    async with Supervisor(on_change=record, backoff=Backoff(first_s=0.01)) as supervisor:
        log = tmp_path / "log"
        supervisor.start("sleeper", ["sh", "-c", "echo $MARK; exec sleep 1000"], log_file=log, env={"MARK": "here"})
        assert await until_written(log) == "here"
        first = supervisor.state("sleeper").pid
        supervisor.kill("sleeper")
        await running_again.wait()
        assert supervisor.state("sleeper").pid not in {None, first}
        while log.read_text() != "here\nhere\n":
            await asyncio.sleep(0.05)
    assert [state.state for state in states] == ["running", "backoff", "backoff", "running", "stopped"]
    assert states[1].exit_code == -signal.SIGKILL


async def test_a_killed_service_is_restarted(tmp_path: Path) -> None:
    """A supervised service is restarted after SIGKILL, with its address and data."""
    async with LocalMinio(tmp_path, port=0) as minio:
        address, first = minio.endpoint, minio.pid
        client_of(minio).put_object(minio.bucket, "kept", io.BytesIO(b"bytes"), 5)
        keeping = asyncio.create_task(keep_running(minio, backoff=Backoff(first_s=0.01)))
        minio.kill()
        while minio.pid in {None, first}:
            await asyncio.sleep(0.05)
        assert minio.endpoint == address
        assert client_of(minio).get_object(minio.bucket, "kept").data == b"bytes"  # the client retries by itself
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_children_stop_in_reverse_order(tmp_path: Path) -> None:
    """The child started last is stopped first."""
    ended: list[str] = []

    def record(state: ChildState) -> None:
        if state.state == "stopped":
            ended.append(state.name)

    async with Supervisor(on_change=record) as supervisor:
        for name in ("kafka", "agent", "gateway"):
            supervisor.start(name, ["sleep", "1000"], log_file=tmp_path / name)
        while any(state.state != "running" for state in supervisor.states().values()):
            await asyncio.sleep(0.01)
    assert ended == ["gateway", "agent", "kafka"]


async def test_a_child_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    """After the grace period the child and its children are killed."""
    log = tmp_path / "log"
    deaf = "trap '' TERM; sleep 1000 & echo $!; while true; do sleep 1; done"
    async with Supervisor() as supervisor:
        supervisor.start("deaf", ["sh", "-c", deaf], log_file=log, grace_s=0.2)
        grandchild = int(await until_written(log))
    await until_ended([grandchild])
    assert supervisor.state("deaf").exit_code == -signal.SIGKILL


async def test_a_killed_supervisor_leaves_no_child(tmp_path: Path) -> None:
    """Children end with a supervisor killed by SIGKILL."""
    script = (
        "import asyncio, sys; from pathlib import Path; from infra.local.supervisor import Supervisor\n"
        "async def main():\n"
        "    async with Supervisor() as s:\n"
        "        s.start('a', ['sh', '-c', 'echo $$; exec sleep 1000'], log_file=Path(sys.argv[1]))\n"
        "        await s.run()\n"
        "asyncio.run(main())\n"
    )
    log = tmp_path / "log"
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", script, str(log)], cwd=root) as supervisor:
        child = int(await until_written(log))
        supervisor.kill()
    await until_ended([child])


def test_missing_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the missing Java, Maven or Go and how to install it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("DARKROOM_CACHE", str(tmp_path / "cache"))
    for find, missing in ((tools.java, "Java 17"), (tools.kafka_jars, "Maven"), (tools.minio_binary, "Go 1.24")):
        with pytest.raises(tools.MissingTool, match=f"(?s){missing}.*apt-get install"):
            find()


def test_an_old_java_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Java too old for Kafka is refused with its version."""
    old = tmp_path / "java"
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(tools.MissingTool, match=r"needs Java 17 or later; .*11\.0\.2"):
        tools.java()


def test_a_failed_install_leaves_no_partial_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed download raises with Maven's output and removes partial folders, also those of a killed one."""
    broken = tmp_path / "mvn"
    broken.write_text("#!/bin/sh\necho no network here\nexit 1\n")
    broken.chmod(0o755)
    cache = tmp_path / "cache"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    monkeypatch.setenv("DARKROOM_CACHE", str(cache))
    (cache / ".kafka-4.1.0-killed" / "jars").mkdir(parents=True)
    with pytest.raises(tools.InstallFailed, match="no network here"):
        tools.kafka_jars()
    assert [file.name for file in cache.iterdir()] == ["kafka.lock"]
