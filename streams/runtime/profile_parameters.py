"""Parameters of a profile: what an event asks of single stages. A stage refuses what its own model does not allow."""

from __future__ import annotations

from typing import Any

from pydantic import JsonValue, ValidationError

from schemas.events.envelope import Event
from schemas.values import STAGES, ErrorCode
from streams.stage import Reject, Stage


def refused_parameters(stage: Stage[Any, Any, Any], event: Event) -> Reject | None:
    """Return why a stage cannot honour the parameters of an event's profile, None if it can.

    Names of stages are checked by every stage, parameters by the stage they are for. A stage that reports no failures
    consumes facts, which repeat the profile of an event that was refused before.
    """
    parameters = event.profile.parameters
    if not parameters or not stage.reports_failures:
        return None
    unknown = next((name for name in parameters if name not in STAGES), None)
    if unknown is not None:
        known = ", ".join(STAGES)
        return _refusal(f"profile.parameters names the stage {unknown[:64]!r}; the stages are {known}.")
    return _refused_own(stage, parameters.get(stage.name))


def _refused_own(stage: Stage[Any, Any, Any], own: dict[str, JsonValue] | None) -> Reject | None:
    if not own:
        return None
    if stage.parameters is None:
        return _refusal(f"profile.parameters: {stage.name} takes no parameters.")
    try:
        stage.parameters.model_validate(own)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in ("profile.parameters", stage.name, *first["loc"]))
        if first["type"] == "extra_forbidden":
            known = ", ".join(stage.parameters.model_fields)
            return _refusal(f"{place[:200]} is no parameter; {stage.name} takes {known}.")
        return _refusal(f"{place[:200]}: {first['msg']}.")
    return None


def _refusal(message: str) -> Reject:
    return Reject(ErrorCode.PARAMETERS_NOT_ALLOWED, message)
