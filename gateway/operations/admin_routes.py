"""Admin endpoints for operators: rerun a stage, pause and resume agents."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated

import structlog
from fastapi import Path, Request, Response
from pydantic import ValidationError

from gateway.access.identity import Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.http.json_bodies import described, read_json
from gateway.http.problems import Problem, documented, invalid_model
from gateway.operations.reconcile_routes import add_reconcile
from gateway.protocols import FindParameters, Reconciling
from gateway.settings import GatewaySettings
from schemas.http.admin import (
    AgentList,
    AgentPause,
    AgentView,
    PauseRequest,
    ReprocessList,
    ReprocessPlan,
    ReprocessRequest,
    ReprocessView,
)
from schemas.http.problems import ProblemCode, ProblemItem
from schemas.values import Profile
from streams.concurrency.timeouts import bounded
from streams.object_store.protocol import FileStore
from streams.operations.agent_pauses import Control
from streams.operations.image_filter import WrongFilter
from streams.operations.reprocess_jobs import ReprocessJob, ReprocessJobs, drafted, selected
from streams.operations.rerun_events import WrongProfile
from streams.read_model.protocol import ReadModel
from streams.topics import AGENTS

log = structlog.get_logger(__name__)

COUNT_S = 15.0  # time limit of a dry run's count
SHOWN = 10  # image ids in a dry run's response

AgentName = Annotated[str, Path(description=f"One of: {', '.join(AGENTS)}.")]


@dataclass(frozen=True, slots=True)
class Admin:
    """The endpoints for operators."""

    settings: GatewaySettings
    files: FileStore
    read_model: ReadModel
    reconciling: Reconciling | None = None  # None: this process has no reconciler
    parameters_of: FindParameters | None = None  # None: only the stages check parameters

    def routes(self) -> Routes:
        """Return the routes."""
        problems = documented(ProblemCode.UNAUTHORIZED, ProblemCode.FORBIDDEN, ProblemCode.DEPENDENCY_UNAVAILABLE)
        not_found = documented(ProblemCode.NOT_FOUND)
        routes = Routes("/api/v1/admin", tags=["admin"], responses=problems)
        routes.add_api_route(
            "/reprocess",
            self.reprocess,
            methods=["POST"],
            status_code=202,
            dependencies=[requires(Scope.ADMIN)],
            summary="Run a stage again",
            response_model=ReprocessView | ReprocessPlan,
            openapi_extra=described(ReprocessRequest),
            response_model_exclude_none=True,
            responses={
                200: {"model": ReprocessPlan, "description": "a dry run"},
                **documented(ProblemCode.INVALID_FIELD),
            },
        )
        routes.add_api_route(
            "/reprocess",
            self.jobs,
            dependencies=[requires(Scope.ADMIN)],
            summary="List reruns",
            response_model_exclude_none=True,
        )
        routes.add_api_route(
            "/reprocess/{job_id}",
            self.job,
            dependencies=[requires(Scope.ADMIN)],
            summary="Get a rerun's progress",
            response_model_exclude_none=True,
            responses=not_found,
        )
        routes.add_api_route(
            "/reprocess/{job_id}/cancel",
            self.cancel,
            methods=["POST"],
            dependencies=[requires(Scope.ADMIN)],
            summary="Stop a rerun",
            response_model_exclude_none=True,
            responses=not_found,
        )
        if self.reconciling is not None:
            add_reconcile(routes, self.reconciling)
        routes.add_api_route(
            "/agents",
            self.agents,
            dependencies=[requires(Scope.ADMIN)],
            summary="List agents and pauses",
            response_model_exclude_none=True,
        )
        routes.add_api_route(
            "/agents/{name}/pause",
            self.pause,
            methods=["POST"],
            dependencies=[requires(Scope.ADMIN)],
            summary="Pause an agent",
            openapi_extra=described(PauseRequest),
            response_model_exclude_none=True,
            responses=not_found,
        )
        routes.add_api_route(
            "/agents/{name}/resume",
            self.resume,
            methods=["POST"],
            dependencies=[requires(Scope.ADMIN)],
            summary="Resume an agent",
            response_model_exclude_none=True,
            responses=not_found,
        )
        return routes

    async def reprocess(self, request: Request, response: Response) -> ReprocessView | ReprocessPlan:
        """Rerun a stage in the bulk lane, at a limited rate, behind new uploads. Unchanged results are reused."""
        requested = await read_json(request, ReprocessRequest, self.settings)
        draft = await self._draft(requested)
        if requested.dry_run:
            response.status_code = 200
            return await self._plan(draft)
        job = await bounded(ReprocessJobs(self.files).start(draft), self.settings.storage_timeout_s)
        log.info("rerun created", job=job.id, stage=job.stage, where=job.where, per_second=job.per_second)
        response.headers["Location"] = f"{request.url.path}/{job.id}"
        return view(job)

    async def jobs(self) -> ReprocessList:
        """List reruns, newest first: all running ones, and the last hundred that ended."""
        jobs = await bounded(ReprocessJobs(self.files).all(), self.settings.storage_timeout_s)
        return ReprocessList(jobs=tuple(map(view, jobs)))

    async def job(self, job_id: str) -> ReprocessView:
        """Return the numbers of selected, sent and skipped images, the rate, and the estimated time left."""
        return _found(await bounded(ReprocessJobs(self.files).get(job_id), self.settings.storage_timeout_s))

    async def cancel(self, job_id: str) -> ReprocessView:
        """Cancel a rerun. Images already sent are still processed; an ended rerun is unchanged."""
        return _found(await bounded(ReprocessJobs(self.files).cancel(job_id), self.settings.storage_timeout_s))

    async def agents(self) -> AgentList:
        """List agents, with their pause or degradation."""
        control = Control(self.files)
        paused = {mark.agent: mark for mark in await bounded(control.all(), self.settings.storage_timeout_s)}
        degraded = await bounded(control.degraded(), self.settings.storage_timeout_s)
        return AgentList(
            agents=tuple(
                AgentView(
                    name=name,
                    paused=AgentPause.model_validate(mark.model_dump()) if (mark := paused.get(name)) else None,
                    degraded=degraded.get(name),
                )
                for name in AGENTS
            )
        )

    async def pause(self, name: AgentName, request: Request) -> AgentList:
        """Pause an agent: it finishes events in progress and consumes no more; its events wait in Kafka."""
        requested = await read_json(request, PauseRequest, self.settings)
        control = Control(self.files)
        await bounded(
            control.pause(_known_agent(name), requested.reason, by="operator"), self.settings.storage_timeout_s
        )
        log.warning("agent paused", agent=name, reason=requested.reason)
        return await self.agents()

    async def resume(self, name: AgentName) -> AgentList:
        """Resume an agent. No effect on one that is not paused."""
        await bounded(Control(self.files).resume(_known_agent(name)), self.settings.storage_timeout_s)
        log.warning("agent resumed", agent=name)
        return await self.agents()

    async def _draft(self, requested: ReprocessRequest) -> ReprocessJob:
        """Return the requested job, checked. Raises Problem."""
        profile = requested.profile.as_profile() if requested.profile is not None else None
        try:
            draft = drafted(requested.stage, requested.where, requested.per_second, profile)
        except WrongFilter as error:
            raise _invalid("where", error) from None
        except WrongProfile as error:
            raise _invalid(error.field, error) from None
        except ValueError as error:
            raise _invalid("stage", error) from None
        if profile is not None and self.parameters_of is not None:
            await asyncio.to_thread(_check_parameters, profile, self.parameters_of)
        return draft

    async def _plan(self, draft: ReprocessJob) -> ReprocessPlan:
        count, first, counted_all = 0, [], True
        try:
            async with asyncio.timeout(COUNT_S):
                async for record in selected(draft, self.read_model):
                    count += 1
                    if count <= SHOWN:
                        first.append(record.image_id)
        except TimeoutError:
            counted_all = False
        return ReprocessPlan(
            stage=draft.stage, where=draft.where, images=count, counted_all=counted_all, first=tuple(first)
        )


def view(job: ReprocessJob) -> ReprocessView:
    """Return the public view of a rerun."""
    eta_s = round(job.eta_s, 1) if job.eta_s is not None else None
    fields = job.model_dump() | {"state": job.state.value, "eta_s": eta_s, "rate": round(job.rate, 2)}
    return ReprocessView.model_validate(fields)


def _check_parameters(profile: Profile, parameters_of: FindParameters) -> None:
    """Raise Problem for parameters that their stage does not take. Blocks."""
    for stage, own in profile.parameters.items():
        model = parameters_of(stage)
        if model is None and own:
            raise _invalid(f"profile.parameters.{stage}", ValueError(f"{stage} takes no parameters"))
        try:
            if model is not None:
                model.model_validate(own)
        except ValidationError as error:
            raise invalid_model(error, "profile", "parameters", stage) from None


def _invalid(field: str, error: ValueError) -> Problem:
    return Problem(ProblemCode.INVALID_FIELD, str(error), (ProblemItem(field=field, detail=str(error)),))


def _found(job: ReprocessJob | None) -> ReprocessView:
    if job is None:
        raise Problem(ProblemCode.NOT_FOUND, "No rerun has this id.")
    return view(job)


def _known_agent(agent: str) -> str:
    if agent not in AGENTS:
        raise Problem(ProblemCode.NOT_FOUND, f"The agent must be one of: {', '.join(AGENTS)}.")
    return agent
