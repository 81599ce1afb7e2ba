"""Sandbox children that are killed, crash or freeze while a sanitizer works: no valid image is rejected."""

from __future__ import annotations

import contextlib
import io
import signal
from collections.abc import Callable, Iterator

import psutil
import pytest
from PIL import Image

from infra.local.kafka import LocalKafka
from schemas.values import ErrorCode, ImageState
from streams import topics
from tests.support.deployment import Deployment, deployed, until
from tests.support.sent_images import LIGHT_AGENTS, Calm, Sent

pytestmark = pytest.mark.lengthy

DECODING_RSS = 110_000_000  # bytes of a child with the pixels in memory; about 70 million when idle


@pytest.fixture(scope="module")
def deployment(kafka: LocalKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Return the running light agents, with a short timeout for decoding."""
    settings = {"DARKROOM_SANITIZER__CONCURRENCY": "1", "DARKROOM_SANITIZER__DECODE_WALL_S": "15"}
    settings |= {"DARKROOM_SANITIZER__BUFFER": "4"}
    with deployed(
        kafka.bootstrap, tmp_path_factory.mktemp("decoders"), agents=LIGHT_AGENTS, settings=settings
    ) as deployment:
        deployment.start("sanitizer", "resizer", "core")
        deployment.until_ready(*LIGHT_AGENTS)
        yield deployment


def _slow_picture(seed: int) -> bytes:
    """Return an image that takes seconds to decode."""
    stream = io.BytesIO()
    tile = Image.effect_noise((500, 500), 40 + seed).convert("RGB")
    tile.resize((5000, 5000), Image.Resampling.NEAREST).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _decoders(deployment: Deployment) -> list[psutil.Process]:
    """Return the sanitizer's children."""
    return psutil.Process(deployment.children["sanitizer"].pid).children(recursive=True)


def _when_busy(deployment: Deployment, strike: Callable[[psutil.Process], None]) -> None:
    """Apply `strike` to a child that is decoding."""

    def struck() -> bool:
        deployment.check_alive()
        for child in _decoders(deployment):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.memory_info().rss > DECODING_RSS and child.status() != psutil.STATUS_STOPPED:
                    strike(child)
                    return True
        return False

    until(struck, "a child decoding")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGSTOP])
def test_one_failed_child_rejects_no_image(number: signal.Signals, deployment: Deployment) -> None:
    """A child that crashes, is killed or freezes once while decoding is replaced, and its image completes."""
    event = deployment.uploaded(_slow_picture(number))
    deployment.publish(topics.UPLOADED, event)
    _when_busy(deployment, lambda child: child.send_signal(number))
    deployment.until_ended([event.image_id])
    expected = "sandbox child exited without a result; retrying in a new child"
    assert expected in deployment.log_file("sanitizer").read_text()
    assert deployment.result(event.image_id).stages["sanitizer"].attempts == 1


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGSEGV, ErrorCode.DECODER_CRASHED),
        (signal.SIGKILL, ErrorCode.DECODE_MEMORY),
        (signal.SIGSTOP, ErrorCode.DECODE_TIMEOUT),
    ],
)
def test_an_image_that_fails_two_children_is_rejected(
    number: signal.Signals, code: ErrorCode, deployment: Deployment, images: dict[str, bytes], calm: Calm
) -> None:
    """An image whose child crashes, is killed or times out twice is rejected with that code; later images complete."""
    event = deployment.uploaded(_slow_picture(number + 100))
    deployment.publish(topics.UPLOADED, event)
    struck: set[int] = set()

    def strike(child: psutil.Process) -> None:
        struck.add(child.pid)
        child.send_signal(number)

    while len(struck) < 2:
        _when_busy(deployment, strike)
    deployment.until_ended([event.image_id], ImageState.REJECTED)
    error = deployment.result(event.image_id).error
    assert error is not None
    assert error.code == code
    sent = Sent(deployment, images)
    sent.send()
    sent.check(calm)
