"""The pipeline of an image, in order: start reading here.

    image.uploaded / image.fetched
      └─ sanitizer   is it acceptable? a safe, upright, metadata-free master
           ├─ resizer    thumbnail, medium, large, original
           ├─ ocr        its text
           ├─ detector   its objects
           ├─ embedder   its CLIP vector
           └─ barcodes   its barcodes, if its profile asks for them
                └─ indexer   every fact into the read model; says how the image ended
    image.fetch-requested
      └─ fetcher     brings the original from a URL

Stages are imported by name, on demand: a sanitizer process never imports a detector's libraries. The names are
`schemas.values.STAGES`; the file of each is `agents/stages/<name>.py`, and its `STAGE` declares everything else.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pydantic import create_model
from pydantic_settings import BaseSettings, SettingsConfigDict

from schemas.values import STAGES
from streams.stage import Stage, StageSettings


def stage(name: str) -> Stage[Any, Any, Any]:
    """Return a stage by name. Raises KeyError for an unknown name."""
    if name not in STAGES:
        raise KeyError(name)
    found: Stage[Any, Any, Any] = import_module(f"agents.stages.{name}").STAGE
    return found


class _Environment(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="DARKROOM_", env_nested_delimiter="__", frozen=True, extra="ignore", env_ignore_empty=True
    )


def settings_of(stage: Stage[Any, Any, Any]) -> StageSettings:
    """Read a stage's settings from DARKROOM_<STAGE>__*. Raises pydantic.ValidationError."""
    fields: dict[str, Any] = {stage.name: (stage.settings, stage.settings())}
    environment = create_model("Environment", __base__=_Environment, **fields)()
    found: StageSettings = getattr(environment, stage.name)
    return found
