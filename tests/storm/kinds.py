"""The fault functions by their names in the schedule."""

from __future__ import annotations

from tests.storm import faults, faults_decoder, faults_kafka
from tests.storm.faults import Kind
from tests.support.tcp_proxy import Toxin

KINDS: dict[str, Kind] = {
    "kill": faults.kill,
    "terminate": faults.terminate,
    "zombie": faults.zombie,
    "rebalance-storm": faults.rebalance_storm,
    "leader-killed": faults_kafka.leader_killed,
    "rolling-restart": faults_kafka.rolling_restart,
    "brokers-down": faults_kafka.brokers_down,
    "produce-fails": faults_kafka.produce_fails,
    "dead-letters-rejected": faults_kafka.dead_letters_rejected,
    "duplicate-flood": faults_kafka.duplicate_flood,
    "reordered-truncated": faults_kafka.reordered_truncated,
    "transaction-markers": faults_kafka.transaction_markers,
    "slow-events": faults.slow_events,
    "store-down": faults.store(Toxin(unavailable=True)),
    "store-killed": faults.store_killed,
    "store-slow": faults.store(Toxin(latency_s=0.7, bytes_per_s=40_000)),
    "store-errors": faults.store(Toxin(error_every=5)),
    "store-resets": faults.store(Toxin(reset_every=5)),
    "store-full": faults.store(Toxin(full=True)),
    "read-model-down": faults.read_model,
    "read-model-slow": faults.read_model,
    "read-model-errors": faults.read_model,
    "decoder-segfault": faults_decoder.segfault,
    "decoder-killed": faults_decoder.killed,
    "memory-bomb": faults_decoder.bombs,
    "endless-decode": faults_decoder.endless,
    "delete-races": faults.delete_races,
    "twins": faults.twins,
}
