"""Bodies of search requests and answers."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from schemas.values import Value


class SearchItem(Value):
    """One image of a search result."""

    image_id: str
    score: float = Field(ge=0, le=1, description="combined rank over all search modes; 1 = first in each")
    similarity: float | None = Field(None, description="cosine to the query, if found by meaning")
    matched: tuple[str, ...] = Field(description="any of: meaning, text, label")
    urls: dict[str, str] = Field(default_factory=dict)
    labels: tuple[str, ...] = ()
    text: str | None = Field(None, description="beginning of the image's text, or the part with the query's words")
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
