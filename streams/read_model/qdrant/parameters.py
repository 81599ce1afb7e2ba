"""What the settings ask of a collection on a server: when it is created, later, and in a search.

An empty setting changes nothing. Checked against qdrant-client's models and servers that record the calls, not against
a Qdrant server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import structlog
from pydantic import BaseModel
from qdrant_client import QdrantClient, models

from streams.settings import QdrantSettings

log = structlog.get_logger(__name__)

QUANTILE = 0.99  # of the values that int8 spreads over its range; Qdrant's documentation recommends it


class CollectionParameters(TypedDict):
    """Arguments of `create_collection`, without the vectors; None = Qdrant's default."""

    shard_number: int | None
    replication_factor: int | None
    write_consistency_factor: int | None
    on_disk_payload: bool
    hnsw_config: models.HnswConfigDiff | None
    optimizers_config: models.OptimizersConfigDiff | None
    quantization_config: models.ScalarQuantization | None


def collection_parameters(settings: QdrantSettings) -> CollectionParameters:
    """Return the arguments of `create_collection` that the settings decide; see `vector_parameters` for the vectors."""
    hnsw, optimizers = _hnsw(settings), _optimizers(settings)
    return CollectionParameters(
        shard_number=settings.shards,
        replication_factor=settings.replicas,
        write_consistency_factor=settings.write_consistency,
        on_disk_payload=settings.payload_on_disk is not False,
        hnsw_config=models.HnswConfigDiff(**hnsw) if hnsw else None,
        optimizers_config=models.OptimizersConfigDiff(**optimizers) if optimizers else None,
        quantization_config=_int8(settings) if settings.quantization == "int8" else None,
    )


def vector_parameters(settings: QdrantSettings, size: int) -> models.VectorParams:
    """Return the parameters of a named vector of float32, compared by cosine."""
    return models.VectorParams(size=size, distance=models.Distance.COSINE, on_disk=settings.vectors_on_disk)


def search_params(settings: QdrantSettings) -> models.SearchParams:
    """Return how a vector search uses the index and the int8 copies.

    Below `full_scan_kb` Qdrant compares all vectors by itself, so nothing asks for an exact search here.
    """
    quantization = None
    if settings.quantization == "int8":
        quantization = models.QuantizationSearchParams(rescore=settings.rescore, oversampling=settings.oversampling)
    return models.SearchParams(hnsw_ef=settings.hnsw_ef, quantization=quantization)


def apply_parameters(client: QdrantClient, name: str, settings: QdrantSettings) -> None:
    """Give an existing collection the parameters that differ from the settings, and log them.

    Qdrant rebuilds segments and indexes in the background where that is necessary. The number of shards cannot be
    changed: a difference is logged.
    """
    config = client.get_collection(name).config
    if changes := _changes(config, settings):
        client.update_collection(name, **changes)
        log.info("collection parameters changed", collection=name, **_logged(changes))
    if settings.shards not in (None, config.params.shard_number):
        log.warning(
            "the shards of an existing collection cannot be changed",
            collection=name,
            shards=config.params.shard_number,
            configured=settings.shards,
        )


def _changes(config: models.CollectionConfig, settings: QdrantSettings) -> dict[str, Any]:
    """Return the arguments of `update_collection` for what differs."""
    changes: dict[str, Any] = {}
    if hnsw := _differing(_hnsw(settings), config.hnsw_config):
        changes["hnsw_config"] = models.HnswConfigDiff(**hnsw)
    if optimizers := _differing(_optimizers(settings), config.optimizer_config):
        changes["optimizers_config"] = models.OptimizersConfigDiff(**optimizers)
    if params := _differing(_changeable_params(settings), config.params):
        changes["collection_params"] = models.CollectionParamsDiff(**params)
    if vectors := _vectors(config.params.vectors, settings.vectors_on_disk):
        changes["vectors_config"] = vectors
    quantization = _quantization(config.quantization_config, settings)
    if quantization is not None:
        changes["quantization_config"] = quantization
    return changes


def _hnsw(settings: QdrantSettings) -> dict[str, Any]:
    return _given(m=settings.hnsw_m, ef_construct=settings.hnsw_ef_construct, full_scan_threshold=settings.full_scan_kb)


def _optimizers(settings: QdrantSettings) -> dict[str, Any]:
    return _given(indexing_threshold=settings.indexing_threshold_kb)


def _changeable_params(settings: QdrantSettings) -> dict[str, Any]:
    return _given(
        replication_factor=settings.replicas,
        write_consistency_factor=settings.write_consistency,
        on_disk_payload=settings.payload_on_disk,
    )


def _given(**values: float | None) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _differing(wanted: Mapping[str, Any], current: BaseModel) -> dict[str, Any]:
    return {name: value for name, value in wanted.items() if getattr(current, name) != value}


def _vectors(current: object, on_disk: bool | None) -> dict[str, models.VectorParamsDiff]:
    """Return the change of each named vector whose place differs; a vector without a place is in memory."""
    if on_disk is None or not isinstance(current, dict):
        return {}
    return {
        name: models.VectorParamsDiff(on_disk=on_disk)
        for name, vector in current.items()
        if bool(vector.on_disk) != on_disk
    }


def _quantization(
    current: models.QuantizationConfig | None, settings: QdrantSettings
) -> models.ScalarQuantization | models.Disabled | None:
    """Return the change of the quantization, if any."""
    if settings.quantization is None:
        return None
    if settings.quantization == "none":
        return None if current is None else models.Disabled.DISABLED
    wanted = _int8(settings)
    if isinstance(current, models.ScalarQuantization):
        same_type = current.scalar.type == wanted.scalar.type
        if same_type and bool(current.scalar.always_ram) == wanted.scalar.always_ram:
            return None
    return wanted


def _int8(settings: QdrantSettings) -> models.ScalarQuantization:
    return models.ScalarQuantization(
        scalar=models.ScalarQuantizationConfig(
            type=models.ScalarType.INT8, quantile=QUANTILE, always_ram=settings.quantized_in_memory
        )
    )


def _logged(changes: Mapping[str, Any]) -> dict[str, object]:
    return {name: _plain(change) for name, change in changes.items()}


def _plain(change: object) -> object:
    if isinstance(change, dict):
        return {name: _plain(inner) for name, inner in change.items()}
    return change.model_dump(mode="json", exclude_none=True) if isinstance(change, BaseModel) else str(change)
