"""Annotations: tags, category and metadata that an owner sets on an image, at upload or later."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

MAX_TAGS = 50  # of one image
MAX_WORD = 64  # characters of a tag or a category
WORD_PATTERN = r"^[^\x00-\x20\x7f,](?:[^\x00-\x1f\x7f,]*[^\x00-\x20\x7f,])?$"

Tag = Annotated[str, StringConstraints(min_length=1, max_length=MAX_WORD, pattern=WORD_PATTERN)]
"""One or a few words; no commas, which separate tags in a list, no control characters, no space at the ends."""

Category = Annotated[str, StringConstraints(min_length=1, max_length=MAX_WORD, pattern=WORD_PATTERN)]
"""An image's only category; the syntax is a tag's."""
