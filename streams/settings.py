"""Settings shared by all processes: one frozen class per component, read from DARKROOM_* once at start."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from streams.topics import DELAY_TIERS

CLIP_MODEL = "clip-vit-b-32"  # its weights in the manifest of models
# OpenAI trained with QuickGELU; open_clip's plain ViT-B-32 uses the exact GELU, which gives slightly wrong vectors.
CLIP_ARCHITECTURE = "ViT-B-32-quickgelu"


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
    """Where the read model is stored: a server if a URL is given, else in this process.

    Where a parameter of the collection is empty, Darkroom does not set it: Qdrant's default applies, and what an
    operator changed by other means stays.
    """

    url: str | None = Field(
        None, description="Qdrant server URL, http or https, port 6333 unless it names one; empty = in process"
    )
    api_key: SecretStr | None = Field(None, description="Qdrant API key")
    api_key_without_tls: bool = Field(False, description="allow the API key without TLS to another machine")
    ca_file: Path | None = Field(
        None,
        description="PEM file of the CAs that sign the server's certificate; empty = those of the system, with gRPC "
        "those that gRPC brings",
    )
    client_cert_file: Path | None = Field(None, description="PEM file of the client's certificate and its chain (mTLS)")
    client_key_file: Path | None = Field(
        None, description="PEM file of the unencrypted private key of the client's certificate"
    )
    grpc: bool = Field(False, description="call the server by gRPC instead of REST, with the same TLS and API key")
    grpc_port: int = Field(6334, ge=1, le=65535, description="gRPC port of the server")
    path: Path = Field(Path(".darkroom/qdrant"), description="folder of the in-process read model")
    collection: str = Field("images", description="collection name")
    stemming: str = Field(
        "",
        description="language of the word stems that searches compare, such as english; empty = whole words; changed "
        "later, the images are brought up to date in the background",
    )
    timeout_s: float = Field(10.0, gt=0, description="seconds one call may take")
    pool_size: int = Field(16, ge=1, description="parallel connections to the server")
    shards: int | None = Field(
        None, ge=1, description="shards of a created collection, which it keeps; empty = one per node of a cluster"
    )
    replicas: int | None = Field(
        None,
        ge=1,
        description="copies of each shard on the nodes of a cluster; raised later, it applies to new shards, unless "
        "the cluster creates missing copies itself",
    )
    write_consistency: int | None = Field(
        None, ge=1, description="copies that confirm a write before it is answered; at most the replicas"
    )
    vectors_on_disk: bool | None = Field(None, description="read vectors from disk instead of keeping them in memory")
    payload_on_disk: bool | None = Field(
        None, description="read records from disk instead of keeping them in memory; empty = a created collection does"
    )
    quantization: Literal["none", "int8"] | None = Field(
        None, description="search copies of the vectors with one byte per dimension (int8), a quarter of the size"
    )
    quantized_in_memory: bool = Field(
        True, description="keep the int8 copies in memory, also where vectors are on disk"
    )
    rescore: bool = Field(True, description="rank what int8 copies find by the original vectors")
    oversampling: float = Field(
        2.0, ge=1, description="images found by int8 copies for each one of the answer, before they are ranked"
    )
    hnsw_m: int | None = Field(
        None, ge=0, description="links per vector of the HNSW index: more find better and need more memory; 0 = none"
    )
    hnsw_ef_construct: int | None = Field(
        None, ge=4, description="candidates per vector while the HNSW index is built: more find better, built slower"
    )
    hnsw_ef: int | None = Field(
        None, ge=1, description="candidates per search in the HNSW index: more find better, slower"
    )
    full_scan_kb: int | None = Field(
        None, ge=0, description="kB of vectors up to which a search compares all instead of using the index (2 kB each)"
    )
    indexing_threshold_kb: int | None = Field(
        None, ge=0, description="kB of vectors from which a segment gets an HNSW index; 0 = never"
    )


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
    """Where model weights are stored, which CLIP all processes use, and how models run."""

    dir: Path | None = Field(None, description="an operator's own folder of weights, searched first")
    cache: Path = Field(
        default_factory=lambda: Path.home() / ".cache" / "darkroom" / "models",
        description="downloaded and converted weights",
    )
    download: bool = Field(True, description="download missing weights from their official source, verified")
    backend: str = Field("auto", description="auto (OpenVINO on CPU, torch on CUDA), openvino or torch")
    threads: int = Field(0, ge=0, description="CPU threads one model may use; 0 = all cores")
    clip_weights: str | None = Field(
        None,
        description="file in models.dir with the CLIP weights of the embedder, of search by meaning and of feature "
        "extraction; empty = the manifest's",
    )
    clip_architecture: str = Field(
        CLIP_ARCHITECTURE, description="open_clip's name of the architecture of the CLIP weights (512-d)"
    )

    def vector_space(self) -> str:
        """Return the name of the space of CLIP's vectors: only vectors of equal names are comparable."""
        return f"{self.clip_architecture} {self.clip_weights or CLIP_MODEL}"


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
