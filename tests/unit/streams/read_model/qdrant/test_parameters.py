"""Parameters of a collection on a server: created with them, changed to them, searched by them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.conversions.conversion import RestToGrpc
from qdrant_client.grpc import CollectionOperationResponse, GetCollectionInfoResponse
from structlog.testing import capture_logs

from streams.read_model.qdrant.connection import connect
from streams.read_model.qdrant.parameters import (
    apply_parameters,
    collection_parameters,
    search_params,
    vector_parameters,
)
from streams.settings import QdrantSettings
from tests.support.fake_qdrant import Call, grpc_server, rest_server

ALL = QdrantSettings(
    shards=4,
    replicas=3,
    write_consistency=2,
    vectors_on_disk=True,
    payload_on_disk=False,
    quantization="int8",
    hnsw_m=32,
    hnsw_ef_construct=200,
    hnsw_ef=128,
    full_scan_kb=5000,
    indexing_threshold_kb=40000,
)
INT8 = {"scalar": {"type": "int8", "quantile": 0.99, "always_ram": True}}
# What a server of one node answers about a collection that was created without parameters.
CONFIG: dict[str, Any] = {
    "params": {
        "vectors": {"clip": {"size": 512, "distance": "Cosine"}},
        "shard_number": 1,
        "replication_factor": 1,
        "write_consistency_factor": 1,
        "on_disk_payload": True,
    },
    "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000, "max_indexing_threads": 0},
    "optimizer_config": {"default_segment_number": 0, "flush_interval_sec": 5, "indexing_threshold": 10000},
    "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0},
    "quantization_config": None,
}


def info(config: dict[str, Any]) -> dict[str, Any]:
    """Return a collection's description."""
    return {"status": "green", "optimizer_status": "ok", "segments_count": 1, "payload_schema": {}, "config": config}


def updated(config: dict[str, Any], change: dict[str, Any]) -> None:
    """Change a configuration as a server does."""
    config["hnsw_config"].update(change.get("hnsw_config", {}))
    config["optimizer_config"].update(change.get("optimizers_config", {}))
    config["params"].update(change.get("params", {}))
    for name, vector in change.get("vectors", {}).items():
        config["params"]["vectors"][name].update(vector)
    if quantization := change.get("quantization_config"):
        config["quantization_config"] = None if quantization == "Disabled" else quantization


@contextmanager
def collection(config: dict[str, Any]) -> Iterator[tuple[QdrantClient, list[Call]]]:
    """Run a server with one collection; yield a client and the calls."""

    def answer(call: Call) -> tuple[int, Any]:
        if call.name.startswith("PATCH"):
            updated(config, call.body)
        return 200, {"result": info(config) if call.name.startswith("GET") else True, "status": "ok", "time": 0}

    with rest_server(answer) as (url, calls):
        client = connect(QdrantSettings(url=url))
        yield client, calls
        client.close()


def create(client: QdrantClient, settings: QdrantSettings) -> None:
    """Create a collection of one vector."""
    vectors = {"clip": vector_parameters(settings, 512)}
    client.create_collection("images", vectors_config=vectors, **collection_parameters(settings))


def test_by_default_qdrant_decides() -> None:
    """Without settings a collection has one vector by cosine and payload on disk, as it always had."""
    with collection(CONFIG) as (client, calls):
        create(client, QdrantSettings())
    (call,) = calls
    assert call.name == "PUT /collections/images"
    assert call.body == {"vectors": {"clip": {"size": 512, "distance": "Cosine"}}, "on_disk_payload": True}


def test_a_collection_is_created_with_the_parameters_of_the_settings() -> None:
    """Each setting is the argument that Qdrant documents for it."""
    with collection(CONFIG) as (client, calls):
        create(client, ALL)
    assert calls[0].body == {
        "vectors": {"clip": {"size": 512, "distance": "Cosine", "on_disk": True}},
        "shard_number": 4,
        "replication_factor": 3,
        "write_consistency_factor": 2,
        "on_disk_payload": False,
        "hnsw_config": {"m": 32, "ef_construct": 200, "full_scan_threshold": 5000},
        "optimizers_config": {"indexing_threshold": 40000},
        "quantization_config": INT8,
    }


def test_by_grpc_the_parameters_are_the_same() -> None:
    """The message has the values of the JSON."""
    with grpc_server({"Create": lambda _request, _context: CollectionOperationResponse(result=True)}) as (port, calls):
        client = connect(QdrantSettings(url="http://127.0.0.1:9", grpc=True, grpc_port=port))
        create(client, ALL)
        client.close()
    sent = calls[0].body
    assert (sent.shard_number, sent.replication_factor, sent.write_consistency_factor) == (4, 3, 2)
    assert (sent.on_disk_payload, sent.vectors_config.params_map.map["clip"].on_disk) == (False, True)
    assert (sent.hnsw_config.m, sent.hnsw_config.ef_construct, sent.hnsw_config.full_scan_threshold) == (32, 200, 5000)
    assert sent.optimizers_config.indexing_threshold == 40000
    assert sent.quantization_config.scalar.always_ram


def test_an_existing_collection_gets_what_differs_once() -> None:
    """All but the shards is changed and logged; a second start finds nothing to change."""
    config = copy.deepcopy(CONFIG)
    with collection(config) as (client, calls), capture_logs() as logs:
        apply_parameters(client, "images", ALL)
        apply_parameters(client, "images", ALL)
    assert [call.name.split()[0] for call in calls] == ["GET", "PATCH", "GET"]
    assert calls[1].body == {
        "vectors": {"clip": {"on_disk": True}},
        "params": {"replication_factor": 3, "write_consistency_factor": 2, "on_disk_payload": False},
        "hnsw_config": {"m": 32, "ef_construct": 200, "full_scan_threshold": 5000},
        "optimizers_config": {"indexing_threshold": 40000},
        "quantization_config": INT8,
    }
    changed, *shards = logs
    assert changed["event"] == "collection parameters changed"
    assert changed["hnsw_config"] == {"m": 32, "ef_construct": 200, "full_scan_threshold": 5000}
    assert {(line["event"], line["shards"], line["configured"]) for line in shards} == {
        ("the shards of an existing collection cannot be changed", 1, 4)
    }


def test_without_settings_an_existing_collection_stays_as_an_operator_made_it() -> None:
    """A collection that was tuned by other means is not set back to the defaults."""
    config = copy.deepcopy(CONFIG)
    updated(config, {"hnsw_config": {"m": 64}, "params": {"on_disk_payload": False}, "quantization_config": INT8})
    with collection(config) as (client, calls), capture_logs() as logs:
        apply_parameters(client, "images", QdrantSettings())
    assert [call.name for call in calls] == ["GET /collections/images"]
    assert logs == []


@pytest.mark.parametrize(
    ("current", "fields", "sent"),
    [
        (INT8, {"quantization": "none"}, "Disabled"),
        (None, {"quantization": "none"}, None),
        (INT8, {"quantization": "int8"}, None),
        (INT8, {"quantization": "int8", "quantized_in_memory": False}, {**INT8["scalar"], "always_ram": False}),
        ({"binary": {"always_ram": True}}, {"quantization": "int8"}, INT8["scalar"]),
    ],
)
def test_quantization_is_switched(current: Any, fields: dict[str, Any], sent: Any) -> None:
    """Off, on, to other memory, and from another kind; an equal one is not sent, as Qdrant would compute it again."""
    config = copy.deepcopy(CONFIG)
    config["quantization_config"] = current
    with collection(config) as (client, calls):
        apply_parameters(client, "images", QdrantSettings(**fields))
    bodies = [call.body["quantization_config"] for call in calls if call.name.startswith("PATCH")]
    assert bodies == ([] if sent is None else ["Disabled"] if sent == "Disabled" else [{"scalar": sent}])


def test_vectors_are_moved_to_memory_and_stay_there() -> None:
    """A vector without a place is in memory already."""
    config = copy.deepcopy(CONFIG)
    with collection(config) as (client, calls):
        apply_parameters(client, "images", QdrantSettings(vectors_on_disk=False))
        updated(config, {"vectors": {"clip": {"on_disk": True}}})
        apply_parameters(client, "images", QdrantSettings(vectors_on_disk=False))
    assert [call.body for call in calls if call.body] == [{"vectors": {"clip": {"on_disk": False}}}]


def test_by_grpc_a_collection_is_compared_and_changed_alike() -> None:
    """Equal parameters are recognised in the message too; one that differs is sent alone."""
    config = copy.deepcopy(CONFIG)
    updated(config, {"hnsw_config": {"m": 32}, "quantization_config": INT8})
    found = RestToGrpc.convert_collection_info(models.CollectionInfo.model_validate(info(config)))
    answers = {
        "Get": lambda _request, _context: GetCollectionInfoResponse(result=found),
        "Update": lambda _request, _context: CollectionOperationResponse(result=True),
    }
    with grpc_server(answers) as (port, calls):
        own = QdrantSettings(url="http://127.0.0.1:9", grpc=True, grpc_port=port, hnsw_m=32, quantization="int8")
        client = connect(own)
        apply_parameters(client, "images", own)
        assert [call.name for call in calls] == ["Get"]
        apply_parameters(client, "images", own.model_copy(update={"hnsw_m": 24}))
        client.close()
    sent = calls[-1].body
    assert sent.hnsw_config.m == 24
    assert [name.name for name, _ in sent.ListFields()] == ["collection_name", "hnsw_config"]


def test_a_search_ranks_what_the_copies_find_by_the_original_vectors() -> None:
    """With int8 a search asks for more candidates and rescores them; without settings nothing is asked for."""
    assert search_params(QdrantSettings()) == models.SearchParams()
    assert search_params(ALL) == models.SearchParams(
        hnsw_ef=128, quantization=models.QuantizationSearchParams(rescore=True, oversampling=2.0)
    )
    fast = QdrantSettings(quantization="int8", rescore=False, oversampling=1.0)
    assert search_params(fast).quantization == models.QuantizationSearchParams(rescore=False, oversampling=1.0)
