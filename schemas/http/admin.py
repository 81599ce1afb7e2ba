"""Bodies of the admin API: reprocessing jobs and agent pauses."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from schemas.http.submissions import ProfileRequest, StageName
from schemas.values import REQUIRED_STAGES, Profile, Value

_TERM = (
    r"(?:(?:owner|bucket|label)!?=(?:[A-Za-z0-9._-]{1,64}|\"[A-Za-z0-9 ._-]{1,64}\")"
    r"|text~(?:[A-Za-z0-9]{1,64}|\"[A-Za-z0-9 ]{1,64}\")"
    r"|state!?=(?:processing|completed|rejected|failed)"
    r"|stage\.(?:fetcher|sanitizer|resizer|ocr|detector|embedder)!?=(?:pending|done|skipped|rejected|failed)"
    r"|version\.(?:fetcher|sanitizer|resizer|ocr|detector|embedder)(?:!=|<=|>=|=|<|>)[0-9]{1,9}"
    r"|submitted(?:<=|>=|<|>)20[0-9]{2}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_WHERE_PATTERN = f"^(?:{_TERM}(?: and {_TERM})*)?$"


class RerunProfile(ProfileRequest):
    """Parameters of one rerun, and stages that it adds."""

    stages: tuple[StageName, ...] = Field(
        (),
        max_length=len(REQUIRED_STAGES),
        description="also run for the images that never passed them; none is removed",
        examples=[["detector"]],
    )

    def as_profile(self) -> Profile:
        """Return the profile of a job: the added stages alone, each once, in pipeline order."""
        return Profile(
            stages=tuple(name for name in REQUIRED_STAGES if name in self.stages), parameters=self.parameters
        )


class ReprocessRequest(BaseModel):
    """Request to run one stage again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str = Field(
        description=f"one of {', '.join(REQUIRED_STAGES)}",
        max_length=64,
        examples=["ocr"],
        json_schema_extra={"enum": list(REQUIRED_STAGES)},
    )
    where: str = Field(
        "",
        max_length=2000,
        description="images to select: terms joined by `and`; empty: all",
        examples=["state=completed and version.ocr<2"],
        json_schema_extra={"pattern": _WHERE_PATTERN},
    )
    per_second: float = Field(20.0, ge=0.1, le=200, strict=True, description="at most this many images per second")
    dry_run: bool = Field(False, strict=True, description="only report the selected images")
    profile: RerunProfile | None = Field(
        None, description="parameters in place of those of each image, for this rerun, and stages to add"
    )


class ReprocessPlan(Value):
    """The selection of a rerun that was not started."""

    stage: str
    where: str
    images: int = Field(description="number of selected images")
    counted_all: bool = Field(description="false: there are more than could be counted within the request")
    first: tuple[str, ...] = Field(description="ids of some selected images")


class ReprocessView(Value):
    """A rerun and its progress."""

    id: str
    stage: str
    where: str
    per_second: float
    profile: Profile | None = Field(None, description="the parameters and added stages of the request")
    state: str = Field(examples=["running", "done", "cancelled", "failed"])
    total: int | None = Field(None, description="images selected; absent while they are counted")
    done: int = Field(description="images whose rerun was submitted to the bulk lane")
    skipped: int
    reasons: dict[str, int] = Field(default_factory=dict, description="skipped images by reason")
    rate: float = Field(description="recent images per second")
    eta_s: float | None = Field(None, description="seconds until all are submitted")
    started_at: str
    updated_at: str
    error: str | None = None


class ReprocessList(Value):
    """All reruns, newest first."""

    jobs: tuple[ReprocessView, ...]


class AgentPause(Value):
    """Why an agent is paused."""

    reason: str
    by: str = Field(description="the worker that paused itself, or operator")
    at: str


class AgentView(Value):
    """An agent's state."""

    name: str
    paused: AgentPause | None = None
    degraded: str | None = Field(None, description="missing dependency, e.g. a model: its stage skips")


class AgentList(Value):
    """All agents."""

    agents: tuple[AgentView, ...]


class PauseRequest(BaseModel):
    """Request to pause an agent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: str = Field(min_length=1, max_length=500, description="shown with the pause")
