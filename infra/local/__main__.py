"""`python -m infra.local up --folder DIR [--minio]`: Kafka (and MinIO) until SIGTERM; prints addresses as JSON."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from pathlib import Path

from infra.local.kafka import LocalKafka, archive_classes
from infra.local.minio import LocalMinio
from infra.local.service import FolderInUse, LocalService, ServiceFailed
from infra.local.supervisor import keep_running
from infra.local.tools import InstallFailed, MissingTool, kafka_jars, minio_binary, say_to_stderr


async def up(folder: Path, *, with_minio: bool, kafka_port: int, minio_port: int) -> None:
    """Run the services and restart them with back-off when they exit; return on SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with contextlib.AsyncExitStack() as running:
        services: list[LocalService] = []
        kafka = LocalKafka(folder, port=kafka_port)
        addresses = {}
        if await _started(kafka, running, stopping):
            services.append(kafka)
            addresses["kafka"] = {"bootstrap": kafka.bootstrap, "log": str(kafka.log_file)}
        minio = LocalMinio(folder, port=minio_port)
        if with_minio and await _started(minio, running, stopping):
            services.append(minio)
            addresses["minio"] = {
                "endpoint": minio.endpoint,
                "access_key": minio.access_key,
                "secret_key": minio.secret_key,
                "bucket": minio.bucket,
                "log": str(minio.log_file),
            }
        if stopping.is_set():
            return
        sys.stdout.write(json.dumps(addresses) + "\n")
        sys.stdout.flush()
        watchers = [asyncio.create_task(keep_running(service)) for service in services]
        await stopping.wait()
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)


async def _started(service: LocalService, running: contextlib.AsyncExitStack, stopping: asyncio.Event) -> bool:
    """Start a service; return False if `stopping` is set before it is up."""
    starting = asyncio.ensure_future(running.enter_async_context(service))
    stop = asyncio.ensure_future(stopping.wait())
    await asyncio.wait((starting, stop), return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not starting.done():
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        return False
    await starting
    return True


def main() -> int:
    """Run the command; return 0, or 1 after printing the error."""
    parser = argparse.ArgumentParser(prog="python -m infra.local", description="Kafka and MinIO on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("up", help="run them until SIGTERM; prints their addresses as one JSON line")
    run.add_argument("--folder", type=Path, required=True, help="folder of data and logs")
    run.add_argument("--minio", action="store_true", help="also MinIO")
    run.add_argument("--kafka-port", type=int, default=9092, help="a free port is chosen if it is in use; 0 = any")
    run.add_argument("--minio-port", type=int, default=9000, help="a free port is chosen if it is in use; 0 = any")
    install = commands.add_parser("install", help="download Kafka's jars (and build MinIO) into the cache")
    install.add_argument("--minio", action="store_true", help="also MinIO")
    given = parser.parse_args()
    try:
        if given.command == "install":
            kafka_jars()
            asyncio.run(archive_classes())
            if given.minio:
                minio_binary()
        else:
            asyncio.run(
                up(given.folder, with_minio=given.minio, kafka_port=given.kafka_port, minio_port=given.minio_port)
            )
    except (MissingTool, InstallFailed, FolderInUse, ServiceFailed) as failure:
        say_to_stderr(str(failure))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
