"""What infra/compose.yaml may say: the part of the Compose specification we use, and nothing else."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Size = Annotated[str, Field(pattern=r"^\d+[kmg]$")]
Duration = Annotated[str, Field(pattern=r"^(\d+(ms|s|m|h))+$")]
Port = Annotated[str, Field(pattern=r"^127\.0\.0\.1:(\d+|\$\{\w+:-\d+\}):\d+$")]  # never open to the network
Mount = Annotated[str, Field(pattern=r"^(\$\{\w+:-[^}]+\}|[\w./-]+):/[\w./-]*(:ro)?$")]


class _Part(BaseModel):
    """A mapping of the file; an unknown key is a mistake, usually of spelling."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Build(_Part):
    """How an image is built."""

    context: str
    dockerfile: str


class Healthcheck(_Part):
    """How Docker learns whether a container works."""

    test: list[str] | None = None
    interval: Duration | None = None
    timeout: Duration | None = None
    retries: int | None = None
    start_period: Duration | None = None
    disable: bool = False


class Awaited(_Part):
    """What must be true of another service first."""

    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class Logging(_Part):
    """Where logs go."""

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
    environment: dict[str, str] = {}
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
    """The file; keys that start with `x-` are taken away before."""

    name: str
    services: dict[str, Service]
    volumes: dict[str, None]
