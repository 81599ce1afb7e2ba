"""Admission of bulk images."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from streams.lanes.admission_control import EXPIRY, FIRST_WINDOW, MIN_WINDOW, Admission, Slot
from streams.settings import LaneSettings

SETTINGS = LaneSettings(target_delay_s=1, max_in_flight=50, beside_interactive=1, quiet_s=10, starve_s=5, slot_s=60)


@dataclass
class Clock:
    """A clock that tests set."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Pipeline:
    """A FIFO pipeline of `rate` images a second, each of which takes at least `alone_s`."""

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
    """Feed a pipeline from an endless lane; return how many images ended."""
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
    """Bulk alone uses at least 90 % of the pipeline's rate with bounded latency."""
    for rate, alone_s in ((1, 0.5), (5, 0.5), (5, 3.0), (20, 1.0)):
        clock = Clock()
        admission = Admission(SETTINGS, clock)
        pipeline = Pipeline(clock, rate, alone_s)
        run(admission, pipeline, 120)
        done = run(admission, pipeline, 100, name="later")
        assert done >= 0.9 * rate * 100, (rate, alone_s, done, admission.window)
        assert admission.window / rate <= 2 * (alone_s + SETTINGS.target_delay_s) + MIN_WINDOW / rate


def test_the_window_follows_a_pipeline_that_becomes_slower() -> None:
    """When the rate falls to a tenth, the window shrinks with it."""
    clock = Clock()
    admission = Admission(SETTINGS, clock)
    run(admission, Pipeline(clock, 20, 0.5), 60)
    assert admission.window >= 20
    run(admission, Pipeline(clock, 2, 0.5), 120, name="slow")
    assert admission.window <= 8


def test_nothing_is_admitted_while_an_interactive_image_is_in_the_pipeline() -> None:
    """No bulk image is admitted between an interactive image's arrival and its outcome."""
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
    """After an interactive outcome the window is small until none arrived for `quiet_s`."""
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
    """Send an interactive image every `gap_s` beside endless bulk; return their p95 latency and the bulk rate."""
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


def test_regular_interactive_images_find_the_pipeline_empty() -> None:
    """One image every two seconds is at most 30 % slower than on an idle system; bulk runs in between."""
    p95_s, bulk_rate = among(2.0)
    assert p95_s <= 1.3 * 0.8
    assert bulk_rate >= 0.4


def test_bulk_has_most_of_the_pipeline_when_interactive_images_are_rare() -> None:
    """With an interactive image every eight seconds bulk gets at least 60 % of the rate."""
    _, bulk_rate = among(8.0)
    assert bulk_rate >= 0.6 * 1.25


def test_endless_interactive_load_leaves_bulk_its_minimum_share() -> None:
    """Under constant interactive load one bulk image is admitted every 2 x `starve_s`."""
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


def test_the_slot_of_an_image_that_never_ends_expires() -> None:
    """A bulk image in a delay topic, or a lost interactive one, blocks admission for at most `slot_s`."""
    clock = Clock()
    admission = Admission(SETTINGS, clock)
    for number in range(int(FIRST_WINDOW)):
        admission.admit(Slot(f"stuck{number}"))
    admission.interactive_seen("lost")
    assert admission.room() == 0
    clock.now += SETTINGS.slot_s
    assert admission.room() == int(FIRST_WINDOW)
    assert (admission.in_flight, admission.interactive) == (0, 0)


def test_a_slot_expires_sooner_once_the_latency_is_known() -> None:
    """After a measurement, an image without an outcome expires after EXPIRY times the usual latency."""
    clock = Clock()
    admission = Admission(SETTINGS, clock)
    admission.admit(Slot("usual"))
    clock.now += 1
    admission.outcome("usual")
    admission.admit(Slot("dropped"))
    clock.now += EXPIRY * (1 + SETTINGS.target_delay_s)
    assert admission.room()
    assert admission.in_flight == 0


def test_a_rerun_ends_with_the_fact_of_its_stage() -> None:
    """A rerun's slot is freed by the fact of its stage and image, and by no other."""
    admission = Admission(SETTINGS, Clock())
    admission.admit(Slot("image", "ocr"))
    admission.free(Slot("image", "resizer"))
    admission.free(Slot("other", "ocr"))
    assert admission.in_flight == 1
    admission.free(Slot("image", "ocr"))
    assert admission.in_flight == 0


def test_an_outcome_read_before_its_upload_is_counted() -> None:
    """If the outcome is read first, the image does not count as in the pipeline."""
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
def test_in_flight_never_exceeds_its_limits(steps: list[tuple[str, int, float]]) -> None:
    """For any traffic, room stays within the window, and beside interactive images within the minimum share."""
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
    """When latency grows twentyfold at the same rate, bulk gets at least 80 % of the rate."""
    clock = Clock()
    admission = Admission(SETTINGS, clock)
    run(admission, Pipeline(clock, 5, 0.4), 60)
    slow = Pipeline(clock, 5, 8.0)
    run(admission, slow, 240, name="slow")
    assert run(admission, slow, 100, name="later") >= 0.8 * 5 * 100
