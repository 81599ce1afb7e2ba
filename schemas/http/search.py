"""Bodies of search requests and answers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from schemas.values import Value

Way = Literal["meaning", "text", "label", "filename", "tag", "category", "context", "code"]
"""What of an image matched a search."""


class SearchItem(Value):
    """One image of a search result."""

    image_id: str
    score: float = Field(ge=0, le=1, description="combined rank over all search modes; 1 = first in each")
    similarity: float | None = Field(None, description="cosine to the query, if found by meaning")
    matched: tuple[Way, ...] = Field(description="what of the image matched")
    urls: dict[str, str] = Field(default_factory=dict)
    labels: tuple[str, ...] = ()
    text: str | None = Field(None, description="the part of the image's text that matched; absent if none did")
    tags: tuple[str, ...] = Field((), description="the owner's tags", examples=[["beach", "summer"]])
    category: str | None = Field(None, examples=["holiday"])
    context: dict[str, JsonValue] = Field(default_factory=dict)


class SearchAnswer(Value):
    """Search results, best first."""

    query: str
    by_meaning: bool = Field(description="whether images were compared by meaning (CLIP)")
    reason: str | None = Field(None, description="why images were not compared by meaning")
    items: tuple[SearchItem, ...]


class SearchLike(BaseModel):
    """Search for images similar to a stored one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_id: str
    limit: int | None = Field(None, ge=1)
    min_similarity: float | None = Field(None, ge=-1, le=1, description="minimum cosine to the image")
