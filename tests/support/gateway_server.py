"""An embedded gateway as a process on a free local port: `python -m tests.support.gateway_server FOLDER`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from gateway.operations.health import Parts, files_part, read_model_part
from streams.object_store.factory import open_files
from streams.process.http_server import serving
from streams.read_model.factory import open_read_model
from streams.settings import FilesSettings, QdrantSettings, TelemetrySettings
from streams.telemetry.logs import configure_logs
from tests.support.gateway_components import Encoder, Sink, settings


async def serve(folder: Path) -> None:
    """Serve until killed; the first line on stdout is the port."""
    async with (
        open_files(FilesSettings(directory=folder / "objects")) as files,
        open_read_model(QdrantSettings(path=folder / "qdrant")) as read_model,
    ):
        readiness = Parts({"storage": files_part(files), "read-model": read_model_part(read_model)}, timeout_s=5)
        app = embedded_app(
            settings(),
            QueryComponents(files=files, events=Sink(), read_model=read_model, encoder=Encoder(), readiness=readiness),
        )
        async with serving(app, "127.0.0.1", 0) as port:
            print(port, flush=True)  # noqa: T201 - the parent process reads it
            await asyncio.Event().wait()


if __name__ == "__main__":
    configure_logs(TelemetrySettings(log_level="WARNING"), process="gateway")  # to stderr: stdout is for the port
    asyncio.run(serve(Path(sys.argv[1])))
