"""A stage is one file and one line: the sharpness stage of CONTRIBUTING.md works in a copy of the project."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[4]
COPIED = ("schemas", "streams", "agents", "gateway", "darkroom", "infra", "k8s", "docs", "tests/__init__.py",
          "tests/support", "CONTRIBUTING.md", "pyproject.toml")  # fmt: skip

PIPELINE = '''
"""Sends an image through sanitizer, sharpness and indexer on an in-memory log; prints what each reader sees."""

import asyncio, json, sys
from contextlib import AsyncExitStack
from pathlib import Path

from agents import pipeline
from gateway.images.lookup import Job
from gateway.images.views import image_details, job_result
from schemas.values import ImageState, Profile, job_id_of
from streams.object_store.factory import open_files
from streams.read_model.factory import open_read_model
from streams.settings import FilesSettings, QdrantSettings, Settings
from streams.stage import Resources
from streams.telemetry.health_board import HealthBoard
from streams.testing.memory_log import MemoryLog, MemoryWorker
from tests.support.image_stages import uploaded
from tests.support.stage_kit import bench, message

IMAGE, FOLDER = Path(sys.argv[1]), Path(sys.argv[2])
NAMES = ("sanitizer", "sharpness", "indexer")


async def main():
    async with AsyncExitStack() as stack:
        files = await stack.enter_async_context(open_files(FilesSettings(directory=FOLDER / "objects")))
        read_model = await stack.enter_async_context(open_read_model(QdrantSettings(path=FOLDER / "qdrant")))
        resources = Resources(Settings(), files, HealthBoard(), read_model=read_model, find_stage=pipeline.stage)
        log = MemoryLog()
        workers = []
        for name in NAMES:
            stage = pipeline.stage(name)
            settings = pipeline.settings_of(stage)
            tools = await stack.enter_async_context(stage.open(settings, resources))
            intake = bench(stage, files, log, settings=settings, tools=tools).intake
            workers.append(MemoryWorker(log, name, [topic.name for topic in stage.consumes], intake))
        event = await uploaded(files, IMAGE.read_bytes(), profile=Profile(stages=("sanitizer", "sharpness")))
        log.append(message(event))
        async with asyncio.timeout(60):
            while (record := await read_model.get(event.image_id)) is None or record.state is ImageState.PROCESSING:
                await asyncio.sleep(0.02)
        for worker in workers:
            await worker.stop()
        job = Job(job_id_of(event.image_id, 1), event.image_id, record, None)
        print(json.dumps({
            "state": record.state,
            "record": record.analysis,
            "lineage": record.stages["sharpness"].lineage,
            "result": job_result(job, record, None, "http://x").model_dump(mode="json")["analysis"],
            "details": image_details(record, "http://x").model_dump(mode="json")["analysis"],
            "dead": [topic for topic in log.topics if topic.endswith(".dead")],
        }))


asyncio.run(main())
'''


def code_blocks(section: str) -> list[str]:
    """Return the code blocks of a section of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    body = text.split(f"## {section}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```\w+\n(.*?)```", body, re.DOTALL)


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project with the stage of CONTRIBUTING.md: one file and one line."""
    folder = tmp_path_factory.mktemp("project")
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    file, line = code_blocks("Add a stage")
    (folder / "agents" / "stages" / "sharpness.py").write_text(file)
    values = folder / "schemas" / "values.py"
    listed = values.read_text().replace('    "embedder",\n', f'    "embedder",\n{line}', 1)
    assert listed != values.read_text()
    values.write_text(listed)
    run(folder, "-m", "darkroom.generate.docs")
    run(folder, "-m", "darkroom.generate.deployment")
    return folder


@pytest.fixture(scope="module")
def seen(project: Path, images_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what readers see of a photo that went through the copy's pipeline."""
    image = min((images_dir / "clip_golden").glob("*.jpg"))
    found: dict[str, Any] = json.loads(run(project, "-c", PIPELINE, str(image), str(tmp_path_factory.mktemp("data"))))
    return found


def test_the_score_reaches_the_read_model(seen: dict[str, Any]) -> None:
    """The indexer stores what the stage declares to record, and its lineage kind; nothing is dead-lettered."""
    assert seen["state"] == "completed"
    assert seen["record"]["sharpness"]["score"] > 0
    assert seen["record"]["sharpness"]["side"] == 512
    assert seen["lineage"] == "analysis"
    assert seen["dead"] == []


def test_clients_see_the_public_keys(seen: dict[str, Any]) -> None:
    """The job result and the image's details return the public key, and no other."""
    score = seen["record"]["sharpness"]["score"]
    assert seen["result"] == seen["details"] == {"sharpness": {"score": score}}


def test_the_stage_is_deployed(project: Path) -> None:
    """Compose has its service, Kubernetes its manifests, Prometheus its target, and the files are sound."""
    compose = yaml.safe_load((project / "infra" / "compose.yaml").read_text())
    assert compose["services"]["sharpness"]["command"] == ["agent", "sharpness"]
    config = yaml.safe_load((project / "infra" / "prometheus" / "prometheus.yml").read_text())
    targets = [name for job in config["scrape_configs"] for sd in job.get("dns_sd_configs", []) for name in sd["names"]]
    assert "sharpness" in targets
    kustomization = yaml.safe_load((project / "k8s" / "base" / "kustomization.yaml").read_text())
    assert "sharpness.yaml" in kustomization["resources"]
    deployment, *_, autoscaler = yaml.safe_load_all((project / "k8s" / "base" / "sharpness.yaml").read_text())
    resources = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert resources == {"requests": {"cpu": "200m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}}
    assert autoscaler["spec"]["metrics"][0]["pods"]["target"]["averageValue"] == "500"
    run(project, "-m", "infra.validate")


def test_the_stage_is_documented(project: Path) -> None:
    """The generated pages have its topics, settings and API values, and name it as a reader of image.sanitized."""
    events = (project / "docs" / "events.md").read_text()
    assert "resizer, ocr, detector, embedder, sharpness, barcodes |" in events
    assert "`DARKROOM_SHARPNESS__SIDE`" in (project / "docs" / "settings.md").read_text()
    openapi = json.loads((project / "docs" / "openapi.json").read_text())
    assert "sharpness" in openapi["components"]["schemas"]["ReprocessRequest"]["properties"]["stage"]["enum"]
    assert "sharpness.dead" in (project / "docs" / "asyncapi.json").read_text()


def test_the_generated_files_of_the_project_are_up_to_date() -> None:
    """The committed deployment files are what the stages of this checkout generate."""
    run(ROOT, "-m", "darkroom.generate.deployment", "--check")
