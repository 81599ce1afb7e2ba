"""Calls of the admin API by operator commands: adds the token, ends the command with a readable error."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import httpx
import typer
from pydantic import BaseModel, ValidationError

from schemas.http.problems import ProblemBody

ADMIN = "/api/v1/admin"
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        envvar=["DARKROOM_GATEWAY__ADMIN_TOKEN", "DARKROOM_TOKEN", "DARKROOM_API_KEY"],
        show_default=False,
        help="A JWT or an API key with the scope admin, or the admin token.",
    ),
]
M = TypeVar("M", bound=BaseModel)


def call(
    url: str,
    method: str,
    path: str,
    *kinds: type[M],
    token: str | None = None,
    json: dict[str, Any] | None = None,
    params: dict[str, str] | None = None,
    timeout_s: float = 60.0,
) -> M:
    """Return the response parsed as the first model in `kinds` that matches; exit with the reason otherwise."""
    try:
        answer = httpx.request(
            method,
            url.rstrip("/") + ADMIN + path,
            json=json,
            params=params,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(timeout_s, connect=10),
        )
    except httpx.HTTPError as error:
        raise SystemExit(
            f"Darkroom at {url} does not answer: {error}. Check the URL, or start it with `make up`."
        ) from error
    if answer.is_success:
        for kind in kinds:
            try:
                return kind.model_validate_json(answer.content)
            except ValidationError:
                continue
        raise SystemExit(f"Darkroom at {url} sent an unexpected response. Use the same version of client and gateway.")
    try:
        raise SystemExit(ProblemBody.model_validate_json(answer.content).detail)
    except ValidationError:
        raise SystemExit(f"Darkroom at {url} answered with status {answer.status_code}") from None
