"""The subset of the Compose specification that infra/compose.yaml may use."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Size = Annotated[str, Field(pattern=r"^\d+[kmg]$")]
Duration = Annotated[str, Field(pattern=r"^(\d+(ms|s|m|h))+$")]
Port = Annotated[str, Field(pattern=r"^127\.0\.0\.1:(\d+|\$\{\w+:-\d+\}):\d+$")]  # loopback only
Mount = Annotated[str, Field(pattern=r"^(\$\{\w+:-[^}]+\}|[\w./-]+):/[\w./-]*(:ro)?$")]


_SECRET = re.compile(r"(PASSWORD|SECRET|SECRET_KEY|TOKEN)$")
_REQUIRED = re.compile(r"\$\{\w+:\?[^}]+\}")
_OPTIONAL = re.compile(r"(DARKROOM_KAFKA__\w+)=\$\{\1:-\}")  # not needed to connect to the Kafka of the file


def _without_known_secrets(environment: dict[str, str]) -> dict[str, str]:
    for name, value in environment.items():
        known = not _REQUIRED.fullmatch(value) and not _OPTIONAL.fullmatch(f"{name}={value}")
        if _SECRET.search(name) and known:
            raise ValueError(f"{name} must come from a required variable, ${{VARIABLE:?…}}, without a default")
    return environment


Environment = Annotated[dict[str, str], AfterValidator(_without_known_secrets)]
"""Variables of a container. No secret has a value that is known to others."""


class _Part(BaseModel):
    """A mapping of the file; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Build(_Part):
    """The build of an image."""

    context: str
    dockerfile: str


class Healthcheck(_Part):
    """The health check of a container."""

    test: list[str] | None = None
    interval: Duration | None = None
    timeout: Duration | None = None
    retries: int | None = None
    start_period: Duration | None = None
    disable: bool = False


class Awaited(_Part):
    """The condition of a dependency before a service starts."""

    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class Logging(_Part):
    """The log driver of a container."""

    driver: str
    options: dict[str, str]


class Service(_Part):
    """One container."""

    image: Annotated[str, Field(pattern=r"^(darkroom:(slim|ml)|[\w./-]+:(v|RELEASE\.)?\d[\w.-]+)$")]  # a fixed version
    restart: Literal["no", "always", "on-failure", "unless-stopped"]
    mem_limit: Size
    security_opt: list[Literal["no-new-privileges:true"]] = Field(min_length=1)
    logging: Logging
    build: Build | None = None
    command: list[str] | None = None
    environment: Environment = {}
    ports: list[Port] = []
    volumes: list[Mount] = []
    tmpfs: list[str] = []
    init: bool = False
    read_only: bool = False
    cap_drop: list[Literal["ALL"]] = []
    stop_grace_period: Duration | None = None
    healthcheck: Healthcheck | None = None
    depends_on: dict[str, Awaited] | list[str] = {}


class Compose(_Part):
    """The file, without its `x-` extension keys."""

    name: str
    services: dict[str, Service]
    volumes: dict[str, None]
