"""What a process looks at before it starts: unsafe settings and a store that does not let it write."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from agents import pipeline
from agents.models.loading import load
from agents.models.weights import Model, find, manifest
from darkroom.processes.gateway_runtime import check_gateway
from gateway.settings import GatewaySettings
from streams.errors import AccessDenied, DependencyUnavailable, NotReady
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.process.settings_checks import check_safe
from streams.process.startup_checks import check_files
from streams.settings import FilesSettings, ModelsSettings, Settings
from streams.stage import Resources, StageSettings
from streams.telemetry.health_board import HealthBoard

NOBODY = 65534


def changed(**groups: dict[str, Any]) -> Settings:
    """Return the default settings with some of their groups' fields changed."""
    plain = Settings()
    return plain.model_copy(
        update={name: getattr(plain, name).model_copy(update=fields) for name, fields in groups.items()}
    )


@pytest.mark.parametrize("agent", pipeline.STAGES)
def test_what_darkroom_ships_with_is_safe(agent: str) -> None:
    """The defaults of every agent and of the gateways pass."""
    check_safe(Settings(), agent, pipeline.stage(agent).settings())
    check_gateway(Settings(), GatewaySettings())


@pytest.mark.parametrize(
    "groups",
    [
        {"kafka": {"replication": 3, "min_insync": 2}},
        {"worker": {"session_timeout_s": 6.0, "commit_interval_s": 0.2}},
        {"retry": {"tiers": {"30s": 2, "5m": 6, "30m": 60}, "in_place_total_s": 1.0}},
        {"worker": {"drain_s": 15.0, "control_interval_s": 1.0}},
    ],
)
def test_settings_in_use_are_safe(groups: dict[str, dict[str, Any]]) -> None:
    """Production's replication and the short times of tests and of one machine are allowed."""
    check_safe(changed(**groups), "resizer", StageSettings())


@pytest.mark.parametrize(
    ("groups", "named"),
    [
        ({"kafka": {"min_insync": 2}}, "KAFKA__MIN_INSYNC"),
        ({"kafka": {"replication": 3}}, "KAFKA__MIN_INSYNC"),
        ({"worker": {"session_timeout_s": 61.0}}, "WORKER__SESSION_TIMEOUT_S"),
        ({"worker": {"drain_s": 60.0}}, "WORKER__DRAIN_S"),
        ({"worker": {"commit_interval_s": 30.0}}, "WORKER__COMMIT_INTERVAL_S"),
        ({"worker": {"loop_lag_s": 60.0}}, "WORKER__LOOP_LAG_S"),
        ({"worker": {"loop_lag_s": 0.5}}, "WORKER__LOOP_LAG_S"),
        ({"worker": {"control_interval_s": 41.0}}, "WORKER__CONTROL_INTERVAL_S"),
        ({"retry": {"in_place_total_s": 41.0}}, "RETRY__IN_PLACE_TOTAL_S"),
        ({"retry": {"tiers": {"30s": 30, "5m": 20, "30m": 1800}}}, "RETRY__TIERS"),
        ({"retry": {"tiers": {"30s": 30, "1h": 3600}}}, "RETRY__TIERS"),
        ({"retry": {"tiers": {}}}, "RETRY__TIERS"),
        ({"breaker": {"gate_s": 57.0}}, "BREAKER__GATE_S"),
        ({"breaker": {"slow_s": 61.0}, "files": {"timeout_s": 61.0}}, "FILES__TIMEOUT_S"),
        ({"breaker": {"slow_s": 61.0}, "qdrant": {"timeout_s": 61.0}}, "QDRANT__TIMEOUT_S"),
    ],
)
def test_unsafe_settings_are_refused_by_name(groups: dict[str, dict[str, Any]], named: str) -> None:
    """Settings under which events could be lost or work go on for ever are refused, naming the variable to change."""
    with pytest.raises(NotReady, match=f"DARKROOM_{named}"):
        check_safe(changed(**groups), "resizer", StageSettings())


def test_all_that_is_unsafe_is_named_at_once() -> None:
    """Who mends one setting does not find the next only at the next start."""
    with pytest.raises(NotReady) as refused:
        check_safe(changed(kafka={"min_insync": 2}, worker={"drain_s": 70.0}, retry={"tiers": {"30s": 0}}))
    for named in ("KAFKA__MIN_INSYNC", "WORKER__DRAIN_S", "RETRY__TIERS"):
        assert f"DARKROOM_{named}" in str(refused.value)


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ({"delivery_timeout_s": 10.0}, "DELIVERY_TIMEOUT_S"),
        ({"upload_idle_s": 601.0}, "UPLOAD_IDLE_S"),
        ({"storage_timeout_s": 5.0}, "STORAGE_TIMEOUT_S"),
        ({"query_timeout_s": 1.0}, "QUERY_TIMEOUT_S"),
    ],
)
def test_a_gateway_refuses_times_that_do_not_fit(own: dict[str, float], named: str) -> None:
    """A gateway that could refuse what Kafka still takes, or never learn that a store hangs, does not start."""
    with pytest.raises(NotReady, match=f"DARKROOM_GATEWAY__{named}"):
        check_gateway(Settings(), GatewaySettings(**own))


@pytest.mark.parametrize("command", [["agent", "resizer"], ["router"], ["gateway"], ["query"], ["core"]])
def test_every_process_refuses_unsafe_settings(command: list[str], tmp_path: Path) -> None:
    """No process starts on unsafe settings: it exits 2 with the variable in the last line of its log."""
    done = subprocess.run(
        [sys.executable, "-m", "darkroom", *command],
        env={
            **os.environ,
            "DARKROOM_KAFKA__MIN_INSYNC": "2",
            "DARKROOM_KAFKA__REPLICATION": "1",
            "DARKROOM_FILES__DIRECTORY": str(tmp_path),
            "DARKROOM_QDRANT__PATH": str(tmp_path / "qdrant"),
            "DARKROOM_GATEWAY__PORT": "0",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "DARKROOM_KAFKA__MIN_INSYNC" in done.stderr.strip().splitlines()[-1]


@contextmanager
def somebody_else(*folders: Path) -> Iterator[None]:
    """Take the right to write in folders away from this process, also if it is root."""
    modes = [folder.stat().st_mode for folder in folders]
    for folder in folders:
        folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for folder, mode in zip(folders, modes, strict=True):
            folder.chmod(mode)


async def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A read-only folder of objects stops the start and names the variable, also when all folders are there."""
    settings = FilesSettings(directory=tmp_path / "objects", bucket="b")
    (tmp_path / "objects").mkdir()
    with somebody_else(tmp_path / "objects"), pytest.raises(NotReady, match="DARKROOM_FILES__DIRECTORY"):
        async with open_files(settings):
            pass
    async with open_files(settings) as files:
        await check_files(files, settings)
        parts = [tmp_path / "objects" / "b" / part for part in ("data", "meta", "tmp")]
        with somebody_else(*parts), pytest.raises(NotReady, match="DARKROOM_FILES__DIRECTORY"):
            await check_files(files, settings)


async def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    """A path that is a file cannot hold objects: waiting would not help."""
    (tmp_path / "objects").write_bytes(b"")
    with pytest.raises(NotReady, match="DARKROOM_FILES__DIRECTORY"):
        async with open_files(FilesSettings(directory=tmp_path / "objects")):
            pass


async def test_a_bucket_that_cannot_be_written_is_refused() -> None:
    """An account that may look at the bucket but not write in it stops the start; it is said what it needs."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"HEAD"):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    continue
                lines = head.lower().split(b"\r\n")
                await reader.readexactly(next(int(line[15:]) for line in lines if line.startswith(b"content-length:")))
                start = f"HTTP/1.1 403 No\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(start.encode() + body)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        settings = FilesSettings(endpoint=endpoint, access_key="a", secret_key=SecretStr("secret-key"), bucket="pets")
        async with open_files(settings) as files:
            with pytest.raises(NotReady, match=r"DARKROOM_FILES__ACCESS_KEY .* pets"):
                await check_files(files, settings)


class Reluctant:
    """A store of which only the check is asked: it fails so often before it answers."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.left = failures
        self.error = error

    def store(self) -> FileStore:
        found: Any = self
        return found  # type: ignore[no-any-return]

    async def check(self) -> None:
        self.left -= 1
        if self.left >= 0:
            raise self.error


async def test_a_store_that_stumbles_is_asked_again() -> None:
    """One failed answer ends no start; a store that is away does, in the way that is started again."""
    await check_files(Reluctant(2, DependencyUnavailable("busy")).store(), FilesSettings(), pause_s=0)
    with pytest.raises(DependencyUnavailable, match="busy"):
        await check_files(Reluctant(9, DependencyUnavailable("busy")).store(), FilesSettings(), pause_s=0)
    once = Reluctant(9, AccessDenied("read-only"))
    with pytest.raises(NotReady, match="read-only"):
        await check_files(once.store(), FilesSettings(), pause_s=0)
    assert once.left == 8


@pytest.mark.parametrize("model", manifest(), ids=lambda model: model.name)
async def test_a_tampered_model_is_not_loaded(model: Model, tmp_path: Path) -> None:
    """A file that is not the manifest's is never loaded: its agent skips and says why, or refuses to start at all."""
    (tmp_path / model.file).write_bytes(b"not the weights")
    models = ModelsSettings(dir=tmp_path, cache=tmp_path / "cache", download=False)
    board = HealthBoard()
    resources = Resources(Settings(), Reluctant(0, OSError()).store(), board)
    if model.package is not None:  # a package that brings the right file makes up for the wrong one
        model = replace(model, package=None)

    def build() -> Path:
        return find(model.name, models).path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.models.weights.manifest", lambda: (model,))
        loaded = await load(model.stage, model.name, build, resources, required=False)
        assert loaded.model is None
        assert "sha256" in loaded.reason
        assert board.snapshot()[model.stage] == {"state": "degraded", "detail": loaded.reason}
        with pytest.raises(NotReady, match="sha256"):
            await load(model.stage, model.name, build, resources, required=True)
