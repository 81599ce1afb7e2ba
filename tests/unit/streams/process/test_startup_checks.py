"""Start-up checks: unsafe settings and a store that refuses writes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
from schemas.values import STAGES
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
    defaults = Settings()
    return defaults.model_copy(
        update={name: getattr(defaults, name).model_copy(update=fields) for name, fields in groups.items()}
    )


@pytest.mark.parametrize("agent", STAGES)
def test_default_settings_are_safe(agent: str) -> None:
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
    """The replication of production and the short times of tests and single machines pass."""
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
def test_unsafe_settings_are_rejected_by_name(groups: dict[str, dict[str, Any]], named: str) -> None:
    """Settings under which events could be lost or retried endlessly are rejected, naming the variable to change."""
    with pytest.raises(NotReady, match=f"DARKROOM_{named}"):
        check_safe(changed(**groups), "resizer", StageSettings())


def test_all_unsafe_settings_are_named_at_once() -> None:
    """The error names every unsafe setting, not only the first."""
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
        ({"max_spool_bytes": 499_999_999}, "MAX_SPOOL_BYTES"),
        ({"max_upload_bytes": 700_000_001}, "MAX_SPOOL_BYTES"),
    ],
)
def test_a_gateway_rejects_inconsistent_settings(own: dict[str, float], named: str) -> None:
    """A gateway rejects timeouts under which a refused upload could reach Kafka, or a hanging store go undetected.

    And a limit of spooled bytes that the largest upload exceeds.
    """
    with pytest.raises(NotReady, match=f"DARKROOM_GATEWAY__{named}"):
        check_gateway(Settings(), GatewaySettings(**own))


@pytest.mark.parametrize("command", [["agent", "resizer"], ["router"], ["gateway"], ["query"], ["core"]])
def test_every_process_rejects_unsafe_settings(command: list[str], tmp_path: Path) -> None:
    """With unsafe settings every process exits 2 and names the variable in the last line of its log."""
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
def read_only(*folders: Path) -> Iterator[None]:
    """Revoke this process's write permission on folders, also if it runs as root."""
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


async def test_a_read_only_folder_is_rejected(tmp_path: Path) -> None:
    """A read-only object folder prevents the start and names the variable, also when all its folders exist."""
    settings = FilesSettings(directory=tmp_path / "objects", bucket="b")
    (tmp_path / "objects").mkdir()
    with read_only(tmp_path / "objects"), pytest.raises(NotReady, match="DARKROOM_FILES__DIRECTORY"):
        async with open_files(settings):
            pass
    async with open_files(settings) as files:
        await check_files(files, settings)
        parts = [tmp_path / "objects" / "b" / part for part in ("data", "meta", "tmp")]
        with read_only(*parts), pytest.raises(NotReady, match="DARKROOM_FILES__DIRECTORY"):
            await check_files(files, settings)


async def test_a_file_in_place_of_the_folder_is_rejected(tmp_path: Path) -> None:
    """A path that is a file raises NotReady, since a retry would not help."""
    (tmp_path / "objects").write_bytes(b"")
    with pytest.raises(NotReady, match="DARKROOM_FILES__DIRECTORY"):
        async with open_files(FilesSettings(directory=tmp_path / "objects")):
            pass


async def test_a_read_only_bucket_is_rejected() -> None:
    """An account without write permission on the bucket prevents the start; the message names the permission."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
        head = await reader.readuntil(b"\r\n\r\n")
        start, kind = "HTTP/1.1 403 No\r\nConnection: close\r\n", "Content-Type: application/xml\r\n"
        if head.startswith(b"HEAD"):
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        else:
            lines = head.lower().split(b"\r\n")
            await reader.readexactly(next(int(line[15:]) for line in lines if line.startswith(b"content-length:")))
            writer.write(f"{start}{kind}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        settings = FilesSettings(endpoint=endpoint, access_key="a", secret_key=SecretStr("secret-key"), bucket="pets")
        async with open_files(settings) as files:
            with pytest.raises(NotReady, match=r"DARKROOM_FILES__ACCESS_KEY .* pets"):
                await check_files(files, settings)


class FailingStore:
    """A store whose check fails a number of times; it supports nothing else."""

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


async def test_the_store_check_is_retried() -> None:
    """A failed check is retried; repeated failures raise DependencyUnavailable, a refusal raises NotReady at once."""
    await check_files(FailingStore(2, DependencyUnavailable("busy")).store(), FilesSettings(), pause_s=0)
    with pytest.raises(DependencyUnavailable, match="busy"):
        await check_files(FailingStore(9, DependencyUnavailable("busy")).store(), FilesSettings(), pause_s=0)
    once = FailingStore(9, AccessDenied("read-only"))
    with pytest.raises(NotReady, match="read-only"):
        await check_files(once.store(), FilesSettings(), pause_s=0)
    assert once.left == 8


@pytest.mark.parametrize("model", manifest(), ids=lambda model: model.name)
async def test_a_tampered_model_is_not_loaded(model: Model, tmp_path: Path) -> None:
    """A file whose sha256 is not the manifest's is not loaded: its agent skips with a reason, or does not start."""
    (tmp_path / model.file).write_bytes(b"not the weights")
    models = ModelsSettings(dir=tmp_path, cache=tmp_path / "cache", download=False)
    board = HealthBoard()
    resources = Resources(Settings(), FailingStore(0, OSError()).store(), board)
    if model.package is not None:  # a package that contains the right file would replace the wrong one
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
