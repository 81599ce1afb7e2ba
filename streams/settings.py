"""Settings shared by all processes: one frozen class per component, read from DARKROOM_* once at start."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from streams.topics import DELAY_TIERS


class Group(BaseModel):
    """A group of settings; DARKROOM_KAFKA__BOOTSTRAP sets `kafka.bootstrap`."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class KafkaSettings(Group):
    """Connection to Kafka, and how topics are created."""

    bootstrap: str = Field("127.0.0.1:9092", description="host:port, comma separated")
    prefix: str = Field("darkroom.", description="prefix of every topic and consumer group name")
    partitions: int = Field(4, ge=1, description="partitions of every keyed topic; set once (24 in production)")
    replication: int = Field(1, ge=1, description="replication factor of created topics (3 in production)")
    min_insync: int = Field(1, ge=1, description="min.insync.replicas of created topics (2 in production)")
    request_timeout_s: float = Field(30.0, gt=0, description="seconds a produce or admin request may take")
    security_protocol: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = Field(
        "plaintext", description="TLS (ssl) and authentication (sasl) of every connection to the brokers"
    )
    ca_file: Path | None = Field(
        None, description="PEM file of the CAs that sign the brokers' certificates; empty = those of the system"
    )
    client_cert_file: Path | None = Field(None, description="PEM file of the client's certificate and its chain (mTLS)")
    client_key_file: Path | None = Field(None, description="PEM file of the private key of the client's certificate")
    client_key_password: SecretStr | None = Field(None, description="password of the private key, if it is encrypted")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = Field(
        None, description="how the brokers authenticate clients, with sasl_ssl and sasl_plaintext"
    )
    username: str | None = Field(None, description="user of PLAIN and SCRAM")
    password: SecretStr | None = Field(None, description="password of PLAIN and SCRAM")
    password_without_tls: bool = Field(
        False, description="allow PLAIN and OAUTHBEARER, which send a secret, without TLS to another machine"
    )
    oauth_token_url: str | None = Field(
        None,
        pattern=r"^https?://[^/\s?#@]+(/[^\s#]*)?$",
        description="token endpoint of OAUTHBEARER (OAuth 2.0 client credentials, RFC 6749 section 4.4)",
    )
    oauth_client_id: str | None = Field(None, description="client id at the token endpoint")
    oauth_client_secret: SecretStr | None = Field(None, description="client secret at the token endpoint")
    oauth_scope: str | None = Field(None, description="scope that is requested from the token endpoint")
    oauth_ca_file: Path | None = Field(
        None, description="PEM file of the CAs of the token endpoint; empty = those of the system"
    )

    def topic(self, name: str) -> str:
        """Return a logical topic's name on the broker."""
        return self.prefix + name

    def logical(self, topic: str) -> str:
        """Return the logical name of a broker's topic."""
        return topic.removeprefix(self.prefix)

    def group(self, agent: str) -> str:
        """Return the consumer group of an agent."""
        return self.prefix + agent


class FilesSettings(Group):
    """Where objects are stored: an S3 endpoint if given, else a directory."""

    endpoint: str | None = Field(None, description="S3 endpoint as host:port; empty = the directory below")
    public_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^/\s?#]+/?$",
        description="URL of the S3 endpoint for external clients, used in presigned URLs; empty = the endpoint",
    )
    access_key: str | None = Field(None, description="S3 access key")
    secret_key: SecretStr | None = Field(None, description="S3 secret key")
    secure: bool = Field(False, description="TLS to the endpoint")
    region: str = Field("us-east-1", description="S3 region")
    bucket: str = Field("darkroom", description="the bucket, or the folder's name under the directory")
    other_buckets: tuple[str, ...] = Field(
        (), description="further names that events may use for the bucket, such as its name before a migration"
    )
    directory: Path = Field(Path(".darkroom/objects"), description="root of the embedded object store")
    timeout_s: float = Field(30.0, gt=0, description="seconds one object call may take")
    pool_size: int = Field(16, ge=1, description="parallel connections to the endpoint")


class QdrantSettings(Group):
    """Where the read model is stored: a server if a URL is given, else in this process."""

    url: str | None = Field(None, description="Qdrant server URL; empty = in process")
    api_key: SecretStr | None = Field(None, description="Qdrant API key")
    path: Path = Field(Path(".darkroom/qdrant"), description="folder of the in-process read model")
    collection: str = Field("images", description="collection name")
    timeout_s: float = Field(10.0, gt=0, description="seconds one call may take")


class RetrySettings(Group):
    """Tries in place, then the delay topics, then the dead letters."""

    in_place_tries: int = Field(3, ge=1, description="tries before the event moves to a delay topic")
    in_place_total_s: float = Field(3.0, ge=0, description="seconds all tries in place may take together")
    backoff_s: float = Field(0.2, gt=0, description="first pause between tries; doubles, with jitter")
    tiers: dict[str, float] = Field(DELAY_TIERS, description="delay topic name -> seconds; names are fixed")


class BreakerSettings(Group):
    """When a circuit breaker opens, and how long events wait for it to close."""

    failures: int = Field(5, ge=1, description="failures in a row that open the circuit breaker of a dependency")
    open_s: float = Field(30.0, gt=0, description="seconds a breaker stays open before one call probes the dependency")
    slow_s: float = Field(5.0, gt=0, description="a call cancelled after so many seconds counts as a failure")
    gate_s: float = Field(
        45.0, ge=0, description="seconds an event waits for an open breaker before it is processed anyway"
    )


class LimitSettings(Group):
    """How many dead letters stop an agent."""

    window: int = Field(100, ge=1, description="number of most recent events considered")
    share: float = Field(0.2, gt=0, le=1, description="share of dead letters in the window above which the agent stops")
    in_a_row: int = Field(50, ge=1, description="consecutive dead letters that stop the agent")


class WorkerSettings(Group):
    """Addresses and limits of one worker process."""

    http_host: str = Field("127.0.0.1", description="address of health and metrics (0.0.0.0 in containers)")
    http_port: int = Field(0, ge=0, description="port of health and metrics; 0 = any free one, written to the log")
    drain_s: float = Field(40.0, gt=0, description="seconds to finish events in flight after SIGTERM")
    session_timeout_s: float = Field(30.0, gt=0, description="Kafka session timeout, seconds: takeover after kill -9")
    rebalance_timeout_s: float = Field(60.0, gt=0, description="Kafka rebalance timeout")
    max_poll_interval_s: float = Field(600.0, gt=0, description="Kafka max.poll.interval")
    commit_interval_s: float = Field(1.0, gt=0, description="seconds between offset commits")
    loop_lag_s: float = Field(10.0, gt=0, description="watchdog: seconds of a blocked event loop before exit")
    state_dir: Path = Field(
        Path("/tmp/darkroom-state"),  # noqa: S108 - tempfile.gettempdir() writes, which may not be permitted
        description="folder for crash markers; must outlive the process, need not outlive the machine",
    )
    crash_limit: int = Field(2, ge=2, description="worker crashes after which an event is dead-lettered")
    control_interval_s: float = Field(3.0, gt=0, description="seconds between checks whether the agent is paused")
    stuck_fetch_s: float = Field(120.0, gt=0, description="watchdog: seconds of lag without a fetch before exit")


class ModelsSettings(Group):
    """Where model weights are stored, and how models run."""

    dir: Path | None = Field(None, description="an operator's own folder of weights, searched first")
    cache: Path = Field(
        default_factory=lambda: Path.home() / ".cache" / "darkroom" / "models",
        description="downloaded and converted weights",
    )
    download: bool = Field(True, description="download missing weights from their official source, verified")
    backend: str = Field("auto", description="auto (OpenVINO on CPU, torch on CUDA), openvino or torch")
    threads: int = Field(0, ge=0, description="CPU threads one model may use; 0 = all cores")


class SandboxSettings(Group):
    """How the children that decode clients' images are confined."""

    require: bool = Field(
        False,
        description="refuse to start where the system lacks a part of the confinement, such as Landlock or seccomp",
    )


class LaneSettings(Group):
    """How many images of the bulk lane are in the pipeline, next to interactive ones."""

    target_delay_s: float = Field(
        2.5, gt=0, description="seconds of bulk work kept in the pipeline: the delay it adds to a single upload"
    )
    max_in_flight: int = Field(200, ge=2, description="maximum of bulk images in the pipeline, whatever its rate")
    beside_interactive: int = Field(1, ge=1, description="the same, while interactive images arrive")
    quiet_s: float = Field(10.0, ge=0, description="seconds without an interactive image that end that limit")
    starve_s: float = Field(
        5.0,
        gt=0,
        description="seconds after which one bulk image is admitted despite interactive ones; doubled beside another",
    )
    slot_s: float = Field(60.0, gt=0, description="seconds after which an image no longer counts as in the pipeline")
    read_ahead: int = Field(20_000, ge=1, description="events read ahead to find those of other owners")
    read_ahead_bytes: int = Field(64_000_000, ge=1_000_000, description="maximum bytes of events read ahead")


class TelemetrySettings(Group):
    """Logs."""

    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")
    log_format: str = Field("auto", description="json, console, or auto (console on a terminal)")


class Settings(BaseSettings):
    """All groups, read from the environment. Invalid settings exit 2 and name the variable."""

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
    sandbox: SandboxSettings = SandboxSettings()
    lanes: LaneSettings = LaneSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
