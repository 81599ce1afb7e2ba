"""The embedded system's connection to a configured Kafka."""

from __future__ import annotations

from darkroom.local.system import kafka_settings


def test_a_configured_kafka_is_connected_to_as_the_processes_do() -> None:
    """Security settings apply to the creation of topics too; empty variables are ignored."""
    found = kafka_settings(
        {
            "DARKROOM_KAFKA__BOOTSTRAP": "kafka.example:9093",
            "DARKROOM_KAFKA__PARTITIONS": "24",
            "DARKROOM_KAFKA__SECURITY_PROTOCOL": "sasl_ssl",
            "DARKROOM_KAFKA__SASL_MECHANISM": "SCRAM-SHA-512",
            "DARKROOM_KAFKA__USERNAME": "operator",
            "DARKROOM_KAFKA__PASSWORD": "a-secret",
            "DARKROOM_KAFKA__CA_FILE": "",
        }
    )
    assert (found.bootstrap, found.partitions, found.security_protocol) == ("kafka.example:9093", 24, "sasl_ssl")
    assert found.password is not None
    assert found.password.get_secret_value() == "a-secret"
    assert found.ca_file is None
