"""The option `--profile`: which stages run, and their parameters, as JSON."""

from __future__ import annotations

from typing import TypeVar

import typer
from pydantic import ValidationError

from schemas.http.submissions import ProfileRequest

P = TypeVar("P", bound=ProfileRequest)

EXAMPLE = """'{"stages": ["detector"], "parameters": {"detector": {"confidence": 0.6}}}'"""


def read_profile(text: str | None, kind: type[P]) -> P | None:
    """Return the profile in an option's JSON, None without one. Raises typer.BadParameter, naming the field."""
    if text is None:
        return None
    try:
        return kind.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(("profile", *map(str, first["loc"])))
        raise typer.BadParameter(f"{place}: {first['msg']}, for example {EXAMPLE}") from error
