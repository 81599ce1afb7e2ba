"""Every kind of fault by its name in the schedule."""

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
    "brokers-away": faults_kafka.brokers_away,
    "produce-fails": faults_kafka.produce_fails,
    "dead-letters-away": faults_kafka.dead_letters_away,
    "duplicate-flood": faults_kafka.duplicate_flood,
    "reordered-truncated": faults_kafka.reordered_truncated,
    "transaction-holes": faults_kafka.transaction_holes,
    "slow-events": faults.slow_events,
    "store-away": faults.store(Toxin(unavailable=True)),
    "store-killed": faults.store_killed,
    "store-slow": faults.store(Toxin(latency_s=0.7, bytes_per_s=40_000)),
    "store-errors": faults.store(Toxin(error_every=5)),
    "store-resets": faults.store(Toxin(reset_every=5)),
    "store-full": faults.store(Toxin(full=True)),
    "read-model-away": faults.read_model,
    "read-model-slow": faults.read_model,
    "read-model-errors": faults.read_model,
    "decoder-segfault": faults_decoder.segfault,
    "decoder-killed": faults_decoder.killed,
    "memory-bomb": faults_decoder.bombs,
    "endless-decode": faults_decoder.endless,
    "delete-races": faults.delete_races,
    "twins": faults.twins,
}
