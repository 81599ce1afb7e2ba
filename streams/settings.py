"""Settings every process shares: one frozen class per component, read from DARKROOM_* once at start."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from streams.topics import DELAY_TIERS


class Group(BaseModel):
    """A group of settings; DARKROOM_KAFKA__BOOTSTRAP sets `kafka.bootstrap`."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class KafkaSettings(Group):
    """How to reach Kafka and how topics are made."""

    bootstrap: str = Field("127.0.0.1:9092", description="host:port, comma separated")
    prefix: str = Field("darkroom.", description="before every topic and consumer group name")
    partitions: int = Field(4, ge=1, description="partitions of every keyed topic; set once (24 in production)")
    replication: int = Field(1, ge=1, description="replication factor of created topics (3 in production)")
    min_insync: int = Field(1, ge=1, description="min.insync.replicas of created topics (2 in production)")
    request_timeout_s: float = Field(30.0, gt=0, description="seconds a produce or admin request may take")

    def topic(self, name: str) -> str:
        """Return the name on the broker of a logical topic."""
        return self.prefix + name

    def logical(self, topic: str) -> str:
        """Return the logical name of a topic on the broker."""
        return topic.removeprefix(self.prefix)

    def group(self, agent: str) -> str:
        """Return the consumer group of an agent."""
        return self.prefix + agent


class FilesSettings(Group):
    """Where objects are kept: an S3 endpoint when given, else a directory."""

    endpoint: str | None = Field(None, description="S3 endpoint as host:port; empty = the directory below")
    public_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^/\s?#]+/?$",
        description="URL of the S3 endpoint as clients outside reach it, for what is presigned; empty = the endpoint",
    )
    access_key: str | None = Field(None, description="S3 access key")
    secret_key: SecretStr | None = Field(None, description="S3 secret key")
    secure: bool = Field(False, description="TLS to the endpoint")
    region: str = Field("us-east-1", description="S3 region")
    bucket: str = Field("darkroom", description="the bucket, or the folder's name under the directory")
    directory: Path = Field(Path(".darkroom/objects"), description="root of the embedded object store")
    timeout_s: float = Field(30.0, gt=0, description="seconds one object call may take")
    pool_size: int = Field(16, ge=1, description="parallel connections to the endpoint")


class QdrantSettings(Group):
    """Where the read model is kept: a server when a URL is given, else in this process."""

    url: str | None = Field(None, description="Qdrant server URL; empty = in process")
    api_key: SecretStr | None = Field(None, description="Qdrant API key")
    path: Path = Field(Path(".darkroom/qdrant"), description="folder of the in-process read model")
    collection: str = Field("images", description="collection name")
    timeout_s: float = Field(10.0, gt=0, description="seconds one call may take")


class RetrySettings(Group):
    """Tries in place, then the delay topics, then the dead letters."""

    in_place_tries: int = Field(3, ge=1, description="tries before the event leaves for a delay topic")
    in_place_total_s: float = Field(3.0, ge=0, description="seconds all tries in place may take together")
    backoff_s: float = Field(0.2, gt=0, description="first pause between tries; doubles, with jitter")
    tiers: dict[str, float] = Field(DELAY_TIERS, description="delay topic name -> seconds; names are fixed")


class BreakerSettings(Group):
    """When a dependency that fails is left alone, and how long work waits for it."""

    failures: int = Field(5, ge=1, description="failures in a row after which a dependency is left alone")
    open_s: float = Field(30.0, gt=0, description="seconds it is left alone, before one call asks it again")
    slow_s: float = Field(5.0, gt=0, description="a call given up after so many seconds counts as a failure")
    gate_s: float = Field(
        45.0, ge=0, description="seconds an event waits for a dependency that is left alone, before it is tried anyway"
    )


class LimitSettings(Group):
    """When an agent stops itself, because its dead letters say that something is broken."""

    window: int = Field(100, ge=1, description="events looked back on")
    share: float = Field(0.2, gt=0, le=1, description="of the window; more dead letters than this stop the agent")
    in_a_row: int = Field(50, ge=1, description="dead letters one after the other that stop the agent")


class WorkerSettings(Group):
    """What bounds one worker process."""

    http_host: str = Field("127.0.0.1", description="address of health and metrics (0.0.0.0 in containers)")
    http_port: int = Field(0, ge=0, description="port of health and metrics; 0 = any free one, written to the log")
    drain_s: float = Field(40.0, gt=0, description="seconds SIGTERM waits for work in flight")
    session_timeout_s: float = Field(30.0, gt=0, description="Kafka session timeout: takeover after kill -9")
    rebalance_timeout_s: float = Field(60.0, gt=0, description="Kafka rebalance timeout")
    max_poll_interval_s: float = Field(600.0, gt=0, description="Kafka max.poll.interval")
    commit_interval_s: float = Field(1.0, gt=0, description="seconds between offset commits")
    loop_lag_s: float = Field(10.0, gt=0, description="watchdog: event loop stuck this long = exit")
    state_dir: Path = Field(
        Path("/tmp/darkroom-state"),  # noqa: S108 - asking for the temporary folder would write, where one may not
        description="folder for crash markers; must outlive the process, need not outlive the machine",
    )
    crash_limit: int = Field(2, ge=2, description="deaths of its worker that make an event a dead letter")
    control_interval_s: float = Field(3.0, gt=0, description="seconds between looks whether the agent may consume")
    stuck_fetch_s: float = Field(120.0, gt=0, description="watchdog: lag but no fetch this long = exit")


class ModelsSettings(Group):
    """Where weights are looked for and how they are run."""

    dir: Path | None = Field(None, description="an operator's own folder of weights, looked at first")
    cache: Path = Field(
        default_factory=lambda: Path.home() / ".cache" / "darkroom" / "models",
        description="downloaded and converted weights",
    )
    download: bool = Field(True, description="download what is missing from its official source, verified")
    backend: str = Field("auto", description="auto (OpenVINO on CPU, torch on CUDA), openvino or torch")
    threads: int = Field(0, ge=0, description="CPU threads one model may use; 0 = all cores")


class LaneSettings(Group):
    """How many images of the bulk lane are let into the pipeline, beside those that are waited for."""

    target_delay_s: float = Field(
        2.5, gt=0, description="seconds of work the bulk lane keeps in the pipeline: what a single upload waits"
    )
    max_in_flight: int = Field(200, ge=2, description="bulk images in the pipeline at most, whatever its rate")
    beside_interactive: int = Field(1, ge=1, description="the same, while interactive images came lately")
    quiet_s: float = Field(10.0, ge=0, description="seconds without an interactive image after which none is expected")
    starve_s: float = Field(
        5.0,
        gt=0,
        description="seconds after which one bulk image goes on, interactive ones or not; twice that, beside one",
    )
    slot_s: float = Field(60.0, gt=0, description="seconds after which an image counts as no longer in the pipeline")
    read_ahead: int = Field(20_000, ge=1, description="events read ahead to find the next owner's")
    read_ahead_bytes: int = Field(64_000_000, ge=1_000_000, description="bytes of them at most")


class TelemetrySettings(Group):
    """Logs."""

    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")
    log_format: str = Field("auto", description="json, console, or auto (console on a terminal)")


class Settings(BaseSettings):
    """Everything above, from the environment. Invalid settings exit 2 and name the variable."""

    model_config = SettingsConfigDict(
        env_prefix="DARKROOM_", env_nested_delimiter="__", frozen=True, extra="ignore", env_ignore_empty=True
    )

    kafka: KafkaSettings = KafkaSettings()
    files: FilesSettings = FilesSettings()
    qdrant: QdrantSettings = QdrantSettings()
    retry: RetrySettings = RetrySettings()
    breaker: BreakerSettings = BreakerSettings()
    limit: LimitSettings = LimitSettings()
    worker: WorkerSettings = WorkerSettings()
    models: ModelsSettings = ModelsSettings()
    lanes: LaneSettings = LaneSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
