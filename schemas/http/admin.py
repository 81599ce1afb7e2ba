"""Bodies of the admin API: reprocessing jobs and agent pauses."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from schemas.values import REQUIRED_STAGES, Value

_TERM = (
    r"(?:(?:owner|bucket|label)!?=(?:[A-Za-z0-9._-]{1,64}|\"[A-Za-z0-9 ._-]{1,64}\")"
    r"|text~(?:[A-Za-z0-9]{1,64}|\"[A-Za-z0-9 ]{1,64}\")"
    r"|state!?=(?:processing|completed|rejected|failed)"
    r"|stage\.(?:fetcher|sanitizer|resizer|ocr|detector|embedder)!?=(?:done|skipped|rejected|failed)"
    r"|version\.(?:fetcher|sanitizer|resizer|ocr|detector|embedder)(?:!=|<=|>=|=|<|>)[0-9]{1,9}"
    r"|submitted(?:<=|>=|<|>)20[0-9]{2}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_WHERE_PATTERN = f"^(?:{_TERM}(?: and {_TERM})*)?$"


class ReprocessRequest(BaseModel):
    """Ask for one stage to run again."""

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
        description="which images: terms joined by `and`; empty: all",
        examples=["state=completed and version.ocr<2"],
        json_schema_extra={"pattern": _WHERE_PATTERN},
    )
    per_second: float = Field(20.0, ge=0.1, le=200, strict=True, description="images a second at most")
    dry_run: bool = Field(False, strict=True, description="only say which images it would be")


class ReprocessPlan(Value):
    """What a rerun would be."""

    stage: str
    where: str
    images: int = Field(description="how many are selected")
    counted_all: bool = Field(description="false: there are more, counting them takes too long for a request")
    first: tuple[str, ...] = Field(description="the ids of some of them")


class ReprocessView(Value):
    """A rerun, and how far it is."""

    id: str
    stage: str
    where: str
    per_second: float
    state: str = Field(examples=["running", "done", "cancelled", "failed"])
    total: int | None = Field(None, description="images selected; absent while they are counted")
    done: int = Field(description="images whose rerun is on its way, in the bulk lane")
    skipped: int
    reasons: dict[str, int] = Field(default_factory=dict, description="why images were skipped, and how many")
    rate: float = Field(description="images a second, lately")
    eta_s: float | None = Field(None, description="seconds until all are on their way")
    started_at: str
    updated_at: str
    error: str | None = None


class ReprocessList(Value):
    """Every rerun, newest first."""

    jobs: tuple[ReprocessView, ...]


class AgentPause(Value):
    """Why an agent does not consume."""

    reason: str
    by: str = Field(description="the worker that stopped itself, or operator")
    at: str


class AgentView(Value):
    """What an agent says of itself."""

    name: str
    paused: AgentPause | None = None
    degraded: str | None = Field(None, description="what it does without, for instance a model: its stage skips")


class AgentList(Value):
    """Every agent."""

    agents: tuple[AgentView, ...]


class PauseRequest(BaseModel):
    """Ask an agent to take nothing more."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: str = Field(min_length=1, max_length=500, description="shown wherever it is seen that it is paused")
