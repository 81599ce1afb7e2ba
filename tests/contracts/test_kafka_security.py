"""Every client on a Kafka with SASL_SSL, mTLS and ACLs: it works with the documented ACLs, or says what is wrong."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.local.kafka import LocalKafka
from infra.local.kafka_security import Secured
from streams.errors import AccessDenied, DependencyUnavailable, NotReady
from streams.kafka.access_check import check_access
from streams.kafka.access_rules import Operation, Resource, Rule, rules_of
from streams.kafka.admin import KafkaAdmin
from streams.kafka.bounded_read import read_topic
from streams.kafka.producer import open_producer
from streams.operations.consumer_lag import Backlog
from streams.settings import KafkaSettings
from streams.topics import AGENTS, FACTS, FETCHED, OUTCOMES, UPLOADED
from tests.contracts.logs import OnKafka
from tests.support.secured_kafka import grant, mtls_fields, sasl_fields, variables
from tests.support.stage_kit import message, uploaded
from tests.support.token_endpoint import token_endpoint

USERS = {name: f"password-of-{name}" for name in ("operator", "gateway", "sanitizer", "stranger")}
EXIT_NOT_READY = 2


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Secured:
    """Return the certificates and users of the module's broker."""
    return Secured(tmp_path_factory.mktemp("certificates"), USERS)


@pytest.fixture(scope="module")
def broker(secured: Secured, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    """Return a Kafka that authenticates and authorizes."""
    server = LocalKafka(tmp_path_factory.mktemp("kafka-secured"), port=0, secured=secured)
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


class World:
    """One topic prefix on the secured broker."""

    def __init__(self, broker: LocalKafka, secured: Secured) -> None:
        self.broker = broker
        self.secured = secured
        self.internal = KafkaSettings(bootstrap=broker.bootstrap, prefix=f"s{uuid.uuid4().hex[:8]}.", partitions=1)

    def settings(self, fields: dict[str, Any], **changes: Any) -> KafkaSettings:
        """Return settings of this prefix with these security fields."""
        own = {"prefix": self.internal.prefix, "partitions": 1, "request_timeout_s": 20}
        return KafkaSettings.model_validate({**own, **fields, **changes})

    def by_password(self, user: str, *, mechanism: str = "SCRAM-SHA-512", **changes: Any) -> KafkaSettings:
        """Return the settings of a user with a password."""
        return self.settings(sasl_fields(self.broker, self.secured, user, mechanism=mechanism), **changes)

    def grant(self, user: str, rules: tuple[Rule, ...]) -> None:
        """Give a user ACLs."""
        grant(self.broker, self.internal, user, rules)

    async def create(self) -> None:
        """Create all topics through the internal listener."""
        await KafkaAdmin(self.internal).create_topics()


@pytest.fixture
def world(broker: LocalKafka, secured: Secured) -> World:
    """Return a new topic prefix."""
    return World(broker, secured)


async def _sent_and_read(gateway: KafkaSettings, reader: KafkaSettings) -> int:
    """Send an event as one user, read the topic as another; return the number of records."""
    async with open_producer(gateway, source="test") as producer:
        await producer.deliver([message(uploaded())])
    return len(await asyncio.to_thread(read_topic, reader, UPLOADED.name))


async def _connected(kafka: KafkaSettings) -> None:
    async with open_producer(kafka, source="test"):
        pass


async def test_every_client_works_with_its_documented_acls(world: World) -> None:
    """Topics are created and checked, events are produced, read back, and lag is read, each as its own user."""
    world.grant("operator", rules_of("operator"))
    operator = world.by_password("operator")
    assert UPLOADED.name in {operator.logical(name) for name in await KafkaAdmin(operator).create_topics()}
    assert not any(state.problem for state in await KafkaAdmin(operator).topic_states())
    world.grant("gateway", rules_of("query"))
    gateway = world.by_password("gateway")
    await check_access(gateway, rules_of("query"))
    assert await _sent_and_read(gateway, gateway) == 1
    assert await KafkaAdmin(gateway).members() == dict.fromkeys(AGENTS, 0)
    assert await Backlog(KafkaAdmin(gateway)).waiting("sanitizer") == 1
    assert await Backlog(KafkaAdmin(gateway)).oldest("sanitizer") is not None


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_each_password_mechanism_is_accepted(world: World, mechanism: str) -> None:
    """aiokafka and confluent-kafka authenticate with every mechanism by password."""
    await world.create()
    world.grant("gateway", rules_of("query"))
    own = world.by_password("gateway", mechanism=mechanism)
    assert await _sent_and_read(own, own) == 1


async def test_a_client_certificate_is_accepted(world: World) -> None:
    """aiokafka and confluent-kafka authenticate with mTLS; the principal is the certificate's common name."""
    await world.create()
    world.grant("gateway", rules_of("query"))
    own = world.settings(mtls_fields(world.broker, world.secured, "gateway"))
    assert await _sent_and_read(own, own) == 1


async def test_a_token_is_accepted(world: World) -> None:
    """aiokafka and confluent-kafka authenticate with a token of the endpoint."""
    await world.create()
    world.grant("gateway", rules_of("query"))
    claims = {"sub": "gateway", "iat": int(time.time()) - 5, "exp": int(time.time()) + 3600}
    parts = (json.dumps(part).encode() for part in ({"alg": "none"}, claims))
    token = ".".join(urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts) + "."
    body = {"access_token": token, "expires_in": 3600, "token_type": "bearer"}
    with token_endpoint(200, lambda _: body) as (url, received):
        fields = {
            **sasl_fields(world.broker, world.secured, "gateway", mechanism="OAUTHBEARER"),
            "username": None,
            "password": None,
            "oauth_token_url": url,
            "oauth_client_id": "gateway",
            "oauth_client_secret": "a-secret",
        }
        own = world.settings(fields)
        assert await _sent_and_read(own, own) == 1
    assert len(received) >= 2, "one token of each library"


async def test_a_wrong_password_is_named_by_every_client(world: World) -> None:
    """Admin client, producer and bounded read say which user was not accepted and which settings to check."""
    wrong = world.by_password("gateway", password="not-the-password", request_timeout_s=5)
    sentence = r"did not accept user gateway \(SCRAM-SHA-512\).*DARKROOM_KAFKA__PASSWORD"
    calls = (
        KafkaAdmin(wrong).topic_states(),
        KafkaAdmin(wrong).members(),
        _connected(wrong),
        asyncio.to_thread(read_topic, wrong, UPLOADED.name),
        check_access(wrong, rules_of("gateway")),
    )
    for error in await asyncio.gather(*calls, return_exceptions=True):  # some wait ten seconds for another broker
        assert isinstance(error, AccessDenied)
        assert re.search(sentence, str(error))
        assert "not-the-password" not in str(error)


async def test_an_unknown_ca_is_named(world: World, tmp_path: Path) -> None:
    """A broker whose certificate is not signed by the CAs of the settings is not connected to."""
    other = Secured(tmp_path, {})
    other.prepare()
    wrong = world.by_password("gateway", ca_file=other.ca_file, request_timeout_s=5)
    for error in await asyncio.gather(KafkaAdmin(wrong).topic_states(), _connected(wrong), return_exceptions=True):
        assert isinstance(error, DependencyUnavailable)
        assert re.search(r"no TLS connection.*DARKROOM_KAFKA__CA_FILE", str(error))


async def test_a_missing_acl_is_named(world: World) -> None:
    """Each missing operation is named before the start, and a denied call names what was denied."""
    await world.create()
    own = world.by_password("stranger", request_timeout_s=5)
    with pytest.raises(AccessDenied, match=r"denies user stranger.*Write on at least one topic"):
        await _connected(own)
    few = (
        Rule(Resource.TOPIC, FACTS.name, (Operation.READ, Operation.DESCRIBE_CONFIGS)),
        Rule(Resource.TOPIC, FETCHED.name, (Operation.WRITE,)),
    )
    world.grant("stranger", few)
    with pytest.raises(NotReady) as error:
        await check_access(own, rules_of("sanitizer"))
    assert f"Read, DescribeConfigs on {own.topic(UPLOADED.name)}" in str(error.value)
    assert f"Write on {own.topic(FACTS.name)}" in str(error.value)
    assert f"Read on {own.group('sanitizer')}" in str(error.value)
    assert "kafka-security.md" in str(error.value)
    with pytest.raises(DependencyUnavailable, match=r"denies user stranger.*image\.uploaded"):
        async with open_producer(own, source="test") as producer:
            await producer.deliver([message(uploaded())])
    with pytest.raises(AccessDenied, match="denies user stranger"):
        await asyncio.to_thread(read_topic, own, OUTCOMES.name)
    with pytest.raises(AccessDenied, match="denies user stranger"):
        await KafkaAdmin(own).members()


async def test_an_agent_works_with_its_documented_acls_only(world: World, tmp_path: Path) -> None:
    """A worker takes an event and emits its fact as a user with the ACLs of the sanitizer, and exits without them."""
    await world.create()
    fields = sasl_fields(world.broker, world.secured, "sanitizer")
    log = OnKafka(world.broker.bootstrap, tmp_path, **variables({**fields, "partitions": 1}))
    log.settings = world.internal
    log.admin = KafkaAdmin(world.internal)
    await log.start(**variables(fields))
    assert await asyncio.wait_for(log.workers.pop().wait(), 120) == EXIT_NOT_READY
    assert "grant the ACLs in docs/kafka-security.md" in (tmp_path / "worker-0.log").read_text()
    world.grant("sanitizer", rules_of("sanitizer"))
    try:
        await log.start(**variables(fields))
        await log.send([message(uploaded())])
        await log.until_idle(120)
        assert len(await log.records(FACTS.name)) == 1
    finally:
        await log.close()
