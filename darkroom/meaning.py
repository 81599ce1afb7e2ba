"""Search by meaning: the CLIP encoder for queries, plugged into the query process. The named exception of the rooms."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import structlog

from streams.sandbox import Limits, Sandbox, SandboxError
from streams.settings import ModelsSettings

if TYPE_CHECKING:
    from agents.models.clip_encoder import ClipEncoder, ClipTextEncoder

log = structlog.get_logger(__name__)
CHILD = Limits(memory_mb=1024, cpu_s=10, wall_s=15)
QUERY_IMAGE = {
    "max_bytes": 10_000_000,
    "max_side": 10_000,
    "max_pixels": 40_000_000,
    "max_frames": 100,
    "keep_capture_details": False,
}
T = TypeVar("T")


class QueryEncoder:
    """CLIP for queries. Opens in the background: the query process answers by words until it is there."""

    def __init__(self, settings: ModelsSettings) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="meaning")
        self._text: ClipTextEncoder | None = None
        self._image: ClipEncoder | None = None
        self._sandbox: Sandbox | None = None
        self._reason = "the model is being loaded"

    def available(self) -> tuple[bool, str]:
        """See gateway.ports.TextEncoder."""
        return (True, "CLIP answers") if self._text is not None else (False, self._reason)

    async def load(self) -> None:
        """Load the text tower, or note why it cannot be."""
        try:
            self._text = await self._do(self._load_text)
        except Exception as error:  # whatever it is, search goes on by words, and health says why
            self._reason = str(error)
            log.warning("search by meaning is not available", reason=self._reason)

    async def encode_text(self, text: str) -> list[float]:
        """See gateway.ports.TextEncoder."""
        return await self._do(self._encode_text, text)

    async def encode_image(self, data: bytes) -> list[float]:
        """See gateway.ports.TextEncoder. Decoded where all untrusted images are: in a bounded child process."""
        if self._sandbox is None:
            self._sandbox = await Sandbox("agents.core.sanitize:sanitize_in_child", limits=CHILD).__aenter__()
        try:
            _, (master,) = await self._sandbox.run(dict(QUERY_IMAGE), data)
        except SandboxError as error:
            raise ValueError("the image cannot be decoded") from error
        return await self._do(self._encode_image, master)

    def close(self) -> None:
        """Give the thread back."""
        if self._sandbox is not None:
            self._sandbox.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _do(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def _load_text(self) -> ClipTextEncoder:
        # Only now, and only where the model is wanted: a query process without weights never imports torch.
        from agents.models.clip_encoder import ClipTextEncoder, find_clip  # noqa: PLC0415

        return ClipTextEncoder(find_clip(self._settings), self._settings)

    def _encode_text(self, text: str) -> list[float]:
        if self._text is None:
            raise ValueError(self._reason)
        return [float(value) for value in self._text.encode_texts([text])[0]]

    def _encode_image(self, master: bytes) -> list[float]:
        from PIL import Image  # noqa: PLC0415

        from agents.models.clip_encoder import ClipEncoder, find_clip  # noqa: PLC0415

        if self._image is None:
            self._image = ClipEncoder(find_clip(self._settings), self._settings)
        with Image.open(io.BytesIO(master)) as image:
            return [float(value) for value in self._image.encode_images([image.convert("RGB")])[0]]


@asynccontextmanager
async def open_encoder(settings: ModelsSettings) -> AsyncIterator[QueryEncoder]:
    """Open the encoder; it loads in the background."""
    encoder = QueryEncoder(settings)
    loading = asyncio.create_task(encoder.load())
    try:
        yield encoder
    finally:
        loading.cancel()
        encoder.close()
