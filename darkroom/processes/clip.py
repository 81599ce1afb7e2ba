"""CLIP in the query process: encodes search queries, and images for the feature API.

The only module that connects the gateway with agents' models.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import structlog
from pydantic import JsonValue

from gateway.protocols import ModelUnavailable, Undecodable
from schemas.values import ErrorCode, ModelRef
from streams.concurrency.backoff import Backoff
from streams.errors import DependencyUnavailable, NotReady
from streams.sandbox.child_process import Limits
from streams.sandbox.errors import (
    SandboxError,
    SandboxFailed,
    SandboxMemory,
    SandboxNotContained,
    SandboxRefused,
    SandboxTimeout,
    SandboxUnavailable,
)
from streams.sandbox.pool import Sandbox
from streams.settings import ModelsSettings

if TYPE_CHECKING:
    from agents.core.embed import Floats
    from agents.models.clip_encoder import ClipEncoder, ClipTextEncoder

log = structlog.get_logger(__name__)
CHILD = Limits(memory_mb=1024, cpu_s=10, wall_s=15)
RETRY_S, MAX_RETRY_S = 5.0, 300.0  # after a failed load: the first pause, doubled up to the second
TRIES = 2  # sandbox children per image, if the first exits without a result
QUERY_IMAGE: dict[str, JsonValue] = {
    "max_bytes": 10_000_000,
    "max_side": 10_000,
    "max_pixels": 40_000_000,
    "max_frames": 100,
    "pdf_dpi": 100,  # CLIP sees 224 pixels of a side
    "keep_capture_details": False,
}
T = TypeVar("T")


class Decoder:
    """Decodes untrusted images in sandboxed child processes, started on first use."""

    def __init__(self, *, workers: int, max_bytes: int, require_sandbox: bool = False) -> None:
        self._sandbox = Sandbox(
            "agents.core.sanitize:sanitize_in_child", workers=workers, limits=CHILD, require=require_sandbox
        )
        self._limits = {**QUERY_IMAGE, "max_bytes": max_bytes}
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="prepare")
        self._opening = asyncio.Lock()
        self._open = False

    async def start(self) -> None:
        """Start the children now. Raises NotReady if the system cannot confine them, and DependencyUnavailable."""
        try:
            await self._opened()
        except SandboxNotContained as error:
            raise NotReady(str(error)) from error
        except SandboxUnavailable as error:
            raise DependencyUnavailable(str(error)) from error

    async def prepare(self, data: bytes) -> Floats:
        """Return an image as CLIP's input. Raises Undecodable; DependencyUnavailable if no child can be started."""
        try:
            await self._opened()
            _, (master,) = await self._sandbox.run(self._limits, data, tries=TRIES)
        except SandboxUnavailable as error:
            raise DependencyUnavailable(str(error)) from error
        except SandboxError as error:
            raise _undecodable(error) from error
        return await asyncio.get_running_loop().run_in_executor(self._threads, _prepared, master)

    def close(self) -> None:
        """End the children."""
        self._sandbox.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _opened(self) -> None:
        async with self._opening:
            if not self._open:
                await self._sandbox.__aenter__()
                self._open = True


class ImageTower:
    """CLIP's image tower, loaded on first use, in its own thread. A failed load is repeated by a later use."""

    def __init__(self, settings: ModelsSettings) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="image-tower")
        self._loading: asyncio.Task[ClipEncoder] | None = None
        self._backoff = Backoff(RETRY_S, MAX_RETRY_S)
        self._reason = ""  # of the last failure

    async def encoder(self) -> ClipEncoder:
        """Return the encoder. Raises ModelUnavailable. Cancelling a caller does not cancel the loading."""
        if self._loading is None:
            if not self._backoff.is_due():
                raise ModelUnavailable(self._reason)
            self._loading = asyncio.create_task(self._loaded())
        return await asyncio.shield(self._loading)

    async def encode(self, prepared: Sequence[Floats]) -> list[list[float]]:
        """Return the vectors of prepared images. Raises ModelUnavailable."""
        encoder = await self.encoder()
        return await asyncio.get_running_loop().run_in_executor(self._threads, _encoded, encoder, prepared)

    def close(self) -> None:
        """Release the thread."""
        if self._loading is not None:
            self._loading.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _loaded(self) -> ClipEncoder:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._load)
        except Exception as error:
            self._loading, self._reason = None, _reason(error)
            retry_in_s = self._backoff.failed()
            log.warning("CLIP image encoder unavailable", reason=repr(error), retry_in_s=retry_in_s)
            raise ModelUnavailable(self._reason) from error

    def _load(self) -> ClipEncoder:
        # Imported on first use: a query process without weights never imports torch.
        from agents.models.clip_encoder import ClipEncoder, find_clip  # noqa: PLC0415

        return ClipEncoder(find_clip(self._settings), self._settings)


class QueryEncoder:
    """CLIP for queries, loaded in the background: until then search uses words only."""

    def __init__(self, settings: ModelsSettings, tower: ImageTower, *, require_sandbox: bool = False) -> None:
        self._settings = settings
        self._tower = tower
        self._decoder = Decoder(
            workers=1, max_bytes=int(str(QUERY_IMAGE["max_bytes"])), require_sandbox=require_sandbox
        )
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="meaning")
        self._text: ClipTextEncoder | None = None
        self._reason = "the model is loading"

    def available(self) -> tuple[bool, str]:
        """See gateway.protocols.TextEncoder."""
        return (True, "CLIP is loaded") if self._text is not None else (False, self._reason)

    async def start_decoder(self) -> None:
        """Start the children that decode images to search by, instead of on first use. Raises NotReady."""
        await self._decoder.start()

    async def load(self) -> None:
        """Load the text tower; after a failure keep the reason for the health report, and try again after a pause."""
        backoff = Backoff(RETRY_S, MAX_RETRY_S)
        while self._text is None:
            try:
                self._text = await self._do(self._load_text)
            except Exception as error:  # search continues without it, and health reports the reason
                self._reason, retry_in_s = _reason(error), backoff.failed()
                log.warning("search by meaning unavailable", reason=repr(error), retry_in_s=retry_in_s)
                await asyncio.sleep(retry_in_s)

    async def encode_text(self, text: str) -> list[float]:
        """See gateway.protocols.TextEncoder."""
        return await self._do(self._encode_text, text)

    async def encode_image(self, data: bytes) -> list[float]:
        """See gateway.protocols.TextEncoder."""
        prepared = await self._decoder.prepare(data)
        try:
            return (await self._tower.encode([prepared]))[0]
        except ModelUnavailable as error:
            raise DependencyUnavailable(str(error)) from error

    def close(self) -> None:
        """Release the threads and sandbox children."""
        self._decoder.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _do(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def _load_text(self) -> ClipTextEncoder:
        # See ImageTower._load.
        from agents.models.clip_encoder import ClipTextEncoder, find_clip  # noqa: PLC0415

        return ClipTextEncoder(find_clip(self._settings), self._settings)

    def _encode_text(self, text: str) -> list[float]:
        if self._text is None:
            raise ValueError(self._reason)
        return [float(value) for value in self._text.encode_texts([text])[0]]


class ClipFeatures:
    """CLIP for the feature API. See gateway.protocols.FeatureEncoder."""

    def __init__(self, tower: ImageTower, *, decoders: int, max_bytes: int, require_sandbox: bool = False) -> None:
        self._tower = tower
        self._decoder = Decoder(workers=decoders, max_bytes=max_bytes, require_sandbox=require_sandbox)

    async def model(self) -> ModelRef:
        """See gateway.protocols.FeatureEncoder."""
        encoder = await self._tower.encoder()
        return ModelRef(name=encoder.weights.name, sha256=encoder.weights.sha256, backend=encoder.backend)

    async def prepare(self, data: bytes) -> Floats:
        """See gateway.protocols.FeatureEncoder."""
        return await self._decoder.prepare(data)

    async def encode(self, prepared: Sequence[Floats]) -> list[list[float]]:
        """See gateway.protocols.FeatureEncoder."""
        return await self._tower.encode(prepared)

    def close(self) -> None:
        """End the children."""
        self._decoder.close()


@asynccontextmanager
async def open_tower(settings: ModelsSettings) -> AsyncIterator[ImageTower]:
    """Open the image tower; it loads on first use."""
    tower = ImageTower(settings)
    try:
        yield tower
    finally:
        tower.close()


@asynccontextmanager
async def open_encoder(
    settings: ModelsSettings, tower: ImageTower, *, require_sandbox: bool = False
) -> AsyncIterator[QueryEncoder]:
    """Open the query encoder; it loads in the background. With `require_sandbox`, raises NotReady if it is missing."""
    encoder = QueryEncoder(settings, tower, require_sandbox=require_sandbox)
    loading = asyncio.create_task(encoder.load())
    try:
        if require_sandbox:
            await encoder.start_decoder()
        yield encoder
    finally:
        loading.cancel()
        encoder.close()


@asynccontextmanager
async def open_features(
    tower: ImageTower, *, decoders: int, max_bytes: int, require_sandbox: bool = False
) -> AsyncIterator[ClipFeatures]:
    """Open the encoder of the feature API."""
    features = ClipFeatures(tower, decoders=decoders, max_bytes=max_bytes, require_sandbox=require_sandbox)
    try:
        yield features
    finally:
        features.close()


def _reason(error: Exception) -> str:
    """Return why a model is unavailable, without internal details."""
    from agents.models.weights import Unavailable  # noqa: PLC0415

    return str(error) if isinstance(error, Unavailable) else "the model cannot be loaded; see the log"


def _undecodable(error: SandboxError) -> Undecodable:
    if isinstance(error, SandboxRefused) and error.code in set(ErrorCode):
        return Undecodable(ErrorCode(error.code), error.message[:500])
    if isinstance(error, SandboxMemory):
        return Undecodable(
            ErrorCode.DECODE_MEMORY, "Decoding the image exceeds the memory limit. Send a smaller image."
        )
    if isinstance(error, SandboxTimeout):
        return Undecodable(ErrorCode.DECODE_TIMEOUT, "Decoding the image exceeds the time limit. Send a smaller image.")
    if isinstance(error, SandboxFailed):
        log.error("decoding an image failed", error=str(error))
        return Undecodable(ErrorCode.INTERNAL_ERROR, "Decoding failed with an internal error. Try again later.")
    return Undecodable(ErrorCode.DECODER_CRASHED, "The image crashes the decoder. Save it again with an image editor.")


def _prepared(master: bytes) -> Floats:
    from PIL import Image  # noqa: PLC0415

    from agents.core.embed import prepare  # noqa: PLC0415

    with Image.open(io.BytesIO(master)) as image:
        return prepare(image.convert("RGB"))


def _encoded(encoder: ClipEncoder, prepared: Sequence[Floats]) -> list[list[float]]:
    import numpy as np  # noqa: PLC0415

    return [[float(value) for value in row] for row in encoder.encode(np.stack(prepared))]
