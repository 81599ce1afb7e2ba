"""How many bulk images are let into the pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from streams.lanes.admission_control import FIRST_WINDOW, LEAST_WINDOW, SLOW, Admission, Slot
from streams.settings import LaneSettings

SETTINGS = LaneSettings(target_delay_s=1, max_in_flight=50, beside_interactive=1, quiet_s=10, starve_s=5, slot_s=60)


@dataclass
class Clock:
    """A clock that is set by hand."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Pipeline:
    """A pipeline of `rate` images a second, each of which takes `alone_s` however idle it is; first in, first out."""

    clock: Clock
    rate: float
    alone_s: float
    free_at: float = 0.0
    ends: list[tuple[float, str]] = field(default_factory=list)

    def take(self, image_id: str) -> None:
        self.free_at = max(self.free_at, self.clock.now) + 1 / self.rate
        self.ends.append((max(self.free_at, self.clock.now + self.alone_s), image_id))

    def ended(self) -> list[str]:
        found = [image_id for at, image_id in self.ends if at <= self.clock.now]
        self.ends = [(at, image_id) for at, image_id in self.ends if at > self.clock.now]
        return found


def run(admission: Admission, pipeline: Pipeline, seconds: float, *, name: str = "i") -> int:
    """Feed a pipeline for a while from a lane that never runs empty; return how many images ended."""
    done = 0
    for step in range(int(seconds / 0.05)):
        pipeline.clock.now += 0.05
        for image_id in pipeline.ended():
            admission.outcome(image_id)
            done += 1
        for number in range(admission.room()):
            admission.admit(Slot(f"{name}{step}.{number}"))
            pipeline.take(f"{name}{step}.{number}")
    return done


def test_the_window_grows_until_the_pipeline_is_busy_and_no_further() -> None:
    """Bulk alone gets nearly all the pipeline can do, and yet an image is in it little longer than it must."""
    for rate, alone_s in ((1, 0.5), (5, 0.5), (5, 3.0), (20, 1.0)):
        clock = Clock()
        admission = Admission(SETTINGS, clock)
        pipeline = Pipeline(clock, rate, alone_s)
        run(admission, pipeline, 120)
        done = run(admission, pipeline, 100, name="later")
        assert done >= 0.9 * rate * 100, (rate, alone_s, done, admission.window)
        assert admission.window / rate <= 2 * (alone_s + SETTINGS.target_delay_s) + LEAST_WINDOW / rate


def test_the_window_follows_a_pipeline_that_becomes_slower() -> None:
    """When the pipeline loses nine tenths of its rate, the window shrinks until images wait no longer than before."""
    clock = Clock()
    admission = Admission(SETTINGS, clock)
    run(admission, Pipeline(clock, 20, 0.5), 60)
    assert admission.window >= 20
    run(admission, Pipeline(clock, 2, 0.5), 120, name="slow")
    assert admission.window <= 8


def test_nothing_is_admitted_while_an_interactive_image_is_in_the_pipeline() -> None:
    """From the moment an interactive image is seen until its outcome no bulk image joins it."""
    clock = Clock()
    admission = Admission(SETTINGS, clock)
    admission.admit(Slot("bulk"))
    admission.interactive_seen("single")
    assert admission.room() == 0
    admission.outcome("bulk")
    assert admission.room() == 0
    admission.outcome("single")
    assert admission.room() == SETTINGS.beside_interactive


def test_few_are_admitted_while_interactive_images_come() -> None:
    """After an interactive image has ended the window is small until none has come for a while."""
    clock = Clock()
    admission = Admission(SETTINGS, clock)
    run(admission, Pipeline(clock, 20, 0.5), 60)
    wide = admission.window
    admission.interactive_seen("single")
    admission.outcome("single")
    assert admission.window == SETTINGS.beside_interactive < wide
    clock.now += SETTINGS.quiet_s
    assert admission.window == wide


def among(gap_s: float, *, rate: float = 1.25, seconds: float = 240) -> tuple[float, float]:
    """Send an interactive image every `gap_s` beside endless bulk; return their 95 % time and bulk images a second."""
    clock = Clock()
    admission = Admission(SETTINGS, clock)
    pipeline = Pipeline(clock, rate, 1 / rate)
    run(admission, pipeline, 60)
    sent: dict[str, float] = {}
    took: list[float] = []
    bulk = 0
    for step in range(int(seconds / 0.05)):
        clock.now += 0.05
        for image_id in pipeline.ended():
            admission.outcome(image_id)
            if image_id in sent:
                took.append(clock.now - sent[image_id])
            else:
                bulk += 1
        if step % round(gap_s / 0.05) == 0:
            sent[f"single{step}"] = clock.now
            pipeline.take(f"single{step}")
            admission.interactive_seen(f"single{step}")
        for number in range(admission.room()):
            admission.admit(Slot(f"b{step}.{number}"))
            pipeline.take(f"b{step}.{number}")
    return sorted(took)[int(len(took) * 0.95)], bulk / seconds


def test_interactive_images_that_come_regularly_find_the_pipeline_empty() -> None:
    """One image every two seconds takes little longer than on an idle system, and bulk has the time between them."""
    p95_s, bulk_rate = among(2.0)
    assert p95_s <= 1.3 * 0.8
    assert bulk_rate >= 0.4


def test_bulk_has_most_of_the_pipeline_when_interactive_images_are_rare() -> None:
    """With an interactive image every eight seconds bulk still gets most of what the pipeline can do."""
    _, bulk_rate = among(8.0)
    assert bulk_rate >= 0.6 * 1.25


def test_endless_interactive_load_leaves_bulk_its_least_share() -> None:
    """However many interactive images are in the pipeline, one bulk image goes on every few seconds."""
    clock = Clock()
    admission = Admission(SETTINGS, clock)
    admitted = 0
    for step in range(1000):
        clock.now += 0.1
        admission.interactive_seen(f"single{step}")
        for _ in range(admission.room()):
            admission.admit(Slot(f"bulk{admitted}"))
            admission.outcome(f"bulk{admitted}")
            admitted += 1
    assert admitted >= 100 / (2 * SETTINGS.starve_s) - 1


def test_an_image_that_never_ends_gives_its_place_up() -> None:
    """A bulk image in a delay topic, or an interactive one that is lost, holds nobody up for longer than a slot."""
    clock = Clock()
    admission = Admission(SETTINGS, clock)
    for number in range(int(FIRST_WINDOW)):
        admission.admit(Slot(f"stuck{number}"))
    admission.interactive_seen("lost")
    assert admission.room() == 0
    clock.now += SETTINGS.slot_s
    assert admission.room() == int(FIRST_WINDOW)
    assert (admission.in_flight, admission.interactive) == (0, 0)


def test_an_image_that_takes_much_longer_than_usual_gives_its_place_up_sooner() -> None:
    """Once it is known how long an image takes, one dropped without an outcome holds its place ten times as long."""
    clock = Clock()
    admission = Admission(SETTINGS, clock)
    admission.admit(Slot("usual"))
    clock.now += 1
    admission.outcome("usual")
    admission.admit(Slot("dropped"))
    clock.now += SLOW * (1 + SETTINGS.target_delay_s)
    assert admission.room()
    assert admission.in_flight == 0


def test_a_rerun_ends_with_the_fact_of_its_stage() -> None:
    """A rerun's place is freed by the fact of that stage of that image, not by another's."""
    admission = Admission(SETTINGS, Clock())
    admission.admit(Slot("image", "ocr"))
    admission.free(Slot("image", "resizer"))
    admission.free(Slot("other", "ocr"))
    assert admission.in_flight == 1
    admission.free(Slot("image", "ocr"))
    assert admission.in_flight == 0


def test_an_outcome_seen_before_its_image_does_not_leave_it_waiting() -> None:
    """When the log shows an interactive image's outcome first, the image does not count as in the pipeline."""
    admission = Admission(SETTINGS, Clock())
    admission.outcome("quick")
    admission.interactive_seen("quick")
    assert admission.interactive == 0
    assert admission.room() > 0


STEPS = st.lists(
    st.tuples(st.sampled_from(["admit", "outcome", "fact", "single", "wait"]), st.integers(0, 30), st.floats(0.01, 20)),
    max_size=200,
)


@given(STEPS)
def test_never_more_in_flight_than_the_most_there_may_be(steps: list[tuple[str, int, float]]) -> None:
    """Over any traffic there is no room beyond the bounds, and none beside interactive images but the least share."""
    clock = Clock()
    admission = Admission(SETTINGS, clock)
    for step, number, seconds in steps:
        if step == "outcome":
            admission.outcome(f"i{number}")
        elif step == "fact":
            admission.free(Slot(f"i{number}", "ocr"))
        elif step == "single":
            admission.interactive_seen(f"i{number}")
        elif step == "wait":
            clock.now += seconds
        else:
            room = admission.room()
            before = admission.in_flight
            if admission.interactive:
                assert room <= (0 if before else 1)
            assert room + before <= max(admission.window, before, 1)
            for n in range(room):
                admission.admit(Slot(f"i{number}.{n}", "ocr" if number % 2 else ""))
            assert admission.in_flight <= SETTINGS.max_in_flight
        assert admission.window >= 1


def test_a_pipeline_that_becomes_slower_but_not_busier_is_still_filled() -> None:
    """When each image comes to take ten times as long beside others as before, bulk still gets most of the rate."""
    clock = Clock()
    admission = Admission(SETTINGS, clock)
    run(admission, Pipeline(clock, 5, 0.4), 60)
    slow = Pipeline(clock, 5, 8.0)
    run(admission, slow, 240, name="slow")
    assert run(admission, slow, 100, name="later") >= 0.8 * 5 * 100
