"""Bodies of search requests and answers."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from schemas.values import Value


class SearchItem(Value):
    """One image a search found."""

    image_id: str
    score: float = Field(ge=0, le=1, description="rank over all ways of searching; 1 = first in each")
    similarity: float | None = Field(None, description="cosine to the query, when found by meaning")
    matched: tuple[str, ...] = Field(description="of: meaning, text, label")
    urls: dict[str, str] = Field(default_factory=dict)
    labels: tuple[str, ...] = ()
    text: str | None = Field(None, description="the beginning of the image's text, or where the words are")
    tags: tuple[str, ...] = Field((), description="what its owner calls it", examples=[["beach", "summer"]])
    category: str | None = Field(None, examples=["holiday"])
    context: dict[str, JsonValue] = Field(default_factory=dict)


class SearchAnswer(Value):
    """What a search found, best first."""

    query: str
    by_meaning: bool = Field(description="whether images were compared by meaning (CLIP)")
    reason: str | None = Field(None, description="why not by meaning")
    items: tuple[SearchItem, ...]


class SearchLike(BaseModel):
    """Search images like one that is already there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_id: str
    limit: int | None = Field(None, ge=1)
