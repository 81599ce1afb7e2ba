"""`darkroom demo`: sends photos through an embedded system with every agent, and prints the results."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import shutil
import sys
import tempfile
import time
from pathlib import Path

from PIL import ExifTags, Image, ImageDraw, ImageFont
from rich.console import Console

from darkroom.commands.submit import IMAGE_SUFFIXES, send_all, sources_of
from darkroom.commands.tables import answer_lines, reason_lines, results_table
from darkroom.local.system import RunningSystem, SystemPlan, running_system
from darkroom.local.up import CANNOT_START, say
from gateway.client import AsyncDarkroom
from schemas.values import REQUIRED_STAGES, StageState
from streams.process.signals import until_signal

DRAWN_TEXT = "DARKROOM READS THIS SIGN"
PATIENCE_S = 600.0
SEARCHES = ("bus", "reads this sign", "person")
ORIENTATION_6 = 6  # EXIF: upright after a rotation by 90° clockwise


def draw_sign() -> bytes:
    """Return a PNG with a sentence on it."""
    image = Image.new("RGB", (1200, 500), "#f4efe6")
    draw = ImageDraw.Draw(image)
    draw.rectangle((30, 30, 1170, 470), outline="#204060", width=12)
    draw.text((600, 180), DRAWN_TEXT, fill="#101820", font=ImageFont.load_default(64), anchor="mm")
    draw.text(
        (600, 320), "invoice 2026-1187, total 42.50", fill="#101820", font=ImageFont.load_default(48), anchor="mm"
    )
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def draw_turned() -> bytes:
    """Return a JPEG as of a rotated camera: rotated pixels, EXIF orientation 6, and a GPS position."""
    upright = Image.new("RGB", (600, 900), "#3a5f8c")
    draw = ImageDraw.Draw(upright)
    draw.ellipse((150, 100, 450, 400), fill="#f2c14e")
    draw.text((300, 650), "UP IS UP", fill="white", font=ImageFont.load_default(96), anchor="mm")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = ORIENTATION_6
    exif[ExifTags.Base.Model] = "Demo Camera"
    exif[ExifTags.IFD.GPSInfo] = {1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)}
    stream = io.BytesIO()
    upright.rotate(90, expand=True).save(stream, "JPEG", quality=90, exif=exif)
    return stream.getvalue()


def gather(folder: Path, own: Path | None) -> list[str]:
    """Write the demo images into a folder; return the sources to send."""
    if own is not None:
        return sources_of([str(own)])
    spec = importlib.util.find_spec("ultralytics")
    photos = sorted((Path(spec.origin).parent / "assets").glob("*.jpg")) if spec and spec.origin else []
    for photo in photos:
        shutil.copy(photo, folder / photo.name)
    (folder / "sign.png").write_bytes(draw_sign())
    turned = draw_turned()
    (folder / "turned-with-gps.jpg").write_bytes(turned)
    (folder / "broken-on-purpose.jpg").write_bytes(turned[: len(turned) // 3])
    return [str(path) for path in sorted(folder.iterdir())]


async def run_demo(own: Path | None, folder: Path, *, minio: bool) -> int:
    """Run the demo; return 0 only if every image ended in a final state."""
    # Start from an empty folder, so that only images of this run are shown.
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    signalled = asyncio.create_task(until_signal())
    unlimited = {"DARKROOM_LIMITS__UPLOADS": "none"}  # a folder of own images may exceed the upload limit
    plan = SystemPlan(folder, port=0, minio=minio, environment=unlimited)
    running = asyncio.create_task(_run(own, plan))
    await asyncio.wait({signalled, running}, return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return 130
    signalled.cancel()
    try:
        return await running
    except CANNOT_START as error:
        say(str(error))
        return 1


async def _run(own: Path | None, plan: SystemPlan) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        sources = await asyncio.to_thread(gather, Path(scratch), own)
        if not sources:
            say(f"No images in {own}. Allowed: a folder or a file with {', '.join(sorted(IMAGE_SUFFIXES))}.")
            return 1
        began = time.monotonic()
        async with running_system(plan, say) as system:
            await system.until_ready(say)
            say(f"System ready after {time.monotonic() - began:.0f} s at {system.url}")
            return await _show(system, sources)


async def _show(system: RunningSystem, sources: list[str]) -> int:
    console = Console(width=max(Console().width, 120))
    last = ""

    def moved(line: str, done: int, total: int) -> None:
        nonlocal last
        if line != last:
            last = line
            say(f"{line}   ended {done}/{total}")

    async with AsyncDarkroom(system.url) as client:
        say(f"Sending {len(sources)} images")
        try:
            shown, rejected = await send_all(client, sources, bucket="demo", patience_s=PATIENCE_S, moved=moved)
        except TimeoutError:
            say(f"Not every image ended within {PATIENCE_S:.0f} s; logs are in {system.folder / 'logs'}")
            return 1
        console.print(results_table(shown))
        print("\n".join(reason_lines(shown)))
        for source, reason in rejected.items():
            print(f"rejected on upload: {Path(source).name}: {reason}")
        names = {row.result.image_id: row.name for row in shown}
        print("\nSearches:")
        for words in SEARCHES:
            answer = await client.search(words)
            print("\n".join(answer_lines(answer, names)))
        if not answer.by_meaning:
            print(f"   (by words only; not by meaning: {answer.reason})")
        skipped = {
            name: stage.message or stage.reason or ""
            for row in shown
            for name, stage in row.result.stages.items()
            if stage.state is StageState.SKIPPED
        }
        print("\nModels:" if skipped else "\nModels: all available")
        for name in [stage for stage in REQUIRED_STAGES if stage in skipped]:
            print(f"   {name} skipped: {skipped[name]}")
    sys.stdout.flush()
    return 0
