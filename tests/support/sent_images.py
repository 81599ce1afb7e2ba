"""Images sent through a deployment, and the check of every fault test: the results equal those without a fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from schemas.events.outcomes import ImageCompleted
from streams import topics
from tests.support.deployment import Deployment

LIGHT_AGENTS = ("sanitizer", "resizer", "indexer")

Calm = Mapping[str, Mapping[str, str]]


@dataclass(slots=True)
class Sent:
    """Images sent, and the name of each by its id."""

    deployment: Deployment
    images: Mapping[str, bytes]
    names: dict[str, str] = field(default_factory=dict)

    def send(self, times: int = 1) -> list[str]:
        """Store every image and publish its ImageUploaded event; return the ids."""
        events = [(name, self.deployment.uploaded(data)) for _ in range(times) for name, data in self.images.items()]
        self.names |= {event.image_id: name for name, event in events}
        self.deployment.publish(topics.UPLOADED, *(event for _, event in events))
        return [event.image_id for _, event in events]

    def check(self, calm: Calm, agents: Sequence[str] = LIGHT_AGENTS) -> None:
        """Wait for all outcomes; assert one completion each, the files of a calm run, and no dead letters."""
        ids = list(self.names)
        self.deployment.until_ended(ids)
        self.deployment.until_idle(*agents)
        outcomes = self.deployment.outcomes()
        assert {image_id: len(outcomes[image_id]) for image_id in ids} == dict.fromkeys(ids, 1)
        assert {kind for image_id in ids for _, kind in outcomes[image_id]} == {ImageCompleted.type}
        assert {i: self.deployment.objects(i) for i in ids} == {i: dict(calm[name]) for i, name in self.names.items()}
        letters = [letter for agent in agents for letter in self.deployment.records(topics.dead_topic(agent))]
        assert not {letter.header("ce_subject") for letter in letters} & set(ids)
