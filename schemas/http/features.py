"""HTTP bodies of /api/v1/features: vectors only."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from schemas.values import Value


class FeaturesOf(BaseModel):
    """Request for the vector of a stored image."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_id: str = Field(max_length=64, examples=["019a7c3e-9d2b-7f41-8a55-3c1de0b7a912"])


class FeatureModel(Value):
    """The weights of a vector. Only vectors of the same weights are comparable."""

    name: str = Field(examples=["clip-vit-b-32"])
    weights_sha256: str = Field(examples=["40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"])
    backend: str = Field(examples=["openvino", "torch"])


class Features(Value):
    """The vector of one image."""

    vector: tuple[float, ...] = Field(
        description="of unit length: the scalar product of two is their cosine", examples=[[0.0123, -0.0456, 0.0789]]
    )
    dimensions: int = Field(description="numbers in the vector", examples=[512])
    model: FeatureModel
    duration_ms: int = Field(
        description="milliseconds from the received image to its vector, including the wait", examples=[41]
    )


class FeatureItem(Value):
    """The vector of one image of a batch."""

    index: int = Field(description="index of the file in the request, from 0")
    filename: str | None = None
    vector: tuple[float, ...] = Field(examples=[[0.0123, -0.0456, 0.0789]])


class FeatureError(Value):
    """Why one image of a batch has no vector."""

    index: int = Field(description="index of the file in the request, from 0")
    filename: str | None = None
    code: str = Field(examples=["truncated-image"])
    detail: str


class FeatureBatch(Value):
    """The vectors of several images in request order, without those that failed."""

    items: tuple[FeatureItem, ...]
    errors: tuple[FeatureError, ...] = ()
    dimensions: int = Field(description="numbers in each vector", examples=[512])
    model: FeatureModel
    duration_ms: int = Field(description="milliseconds from the received images to the last vector, including the wait")
