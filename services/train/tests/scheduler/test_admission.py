"""Bounds of what waits: of a model, of an account, of the service."""

import pytest
from prometheus_client import CollectorRegistry

from tinsmith_common.errors import InvalidInput, Overloaded
from tinsmith_train.scheduler.admission import INCOMPLETE_FACTOR, Admission, Bound, Bounds, Ticket
from tinsmith_train.scheduler.metrics import SchedulerMetrics

LOOSE = Bound(1000, 1_000_000)


def admission(model: Bound = LOOSE, owner: Bound = LOOSE, service: Bound = LOOSE) -> Admission:
    return Admission(Bounds(model, owner, service), SchedulerMetrics(CollectorRegistry()))


def admit(room: Admission, name: str, tokens: int = 0, *, incomplete: bool = False) -> Ticket:
    """Of a model named `owner/model`."""
    return room.admit(name.partition("/")[0], name, tokens, incomplete=incomplete)


def test_operations_and_tokens_are_bounded_and_room_comes_back() -> None:
    room = admission(model=Bound(3, 100))
    tickets = [admit(room, "ann/a", 40), admit(room, "ann/a", 40)]
    with pytest.raises(Overloaded, match=r"80 tokens, of at most 100; this one has 40 .*_PER_MODEL.*later"):
        admit(room, "ann/a", 40)
    tickets.append(admit(room, "ann/a", 20))
    with pytest.raises(Overloaded, match="3 operations, of at most 3"):
        admit(room, "ann/a")
    tickets[0].release()
    tickets[0].release()
    admit(room, "ann/a", 40)
    with pytest.raises(Overloaded):
        admit(room, "ann/a", 1)


def test_an_operation_over_every_bound_is_taken_where_nothing_waits() -> None:
    room = admission(Bound(1, 10), Bound(1, 10), Bound(1, 10))
    for name in ("ann/a", "ann/b", "bob/a"):
        admit(room, name, 1_000_000)


@pytest.mark.parametrize("full", ["ann/a", "ann/b"])
def test_a_full_model_or_account_leaves_others_their_room(full: str) -> None:
    room = admission(model=Bound(5, 10_000), owner=Bound(8, 10_000))
    admit(room, "bob/a")
    for number in range(20):
        try:
            admit(room, "ann/a" if number < 5 else full)
        except Overloaded:
            break
    else:
        pytest.fail("never full")
    for _ in range(4):
        admit(room, "bob/a")


def test_the_service_as_a_whole_is_bounded() -> None:
    room = admission(service=Bound(4, 1_000_000))
    for name in ("ann/a", "bob/a", "cid/a", "dan/a"):
        admit(room, name)
    with pytest.raises(Overloaded, match=r"of all accounts .*_PER_SERVICE"):
        admit(room, "ann/a")
    admit(room, "eve/a")


def test_a_batch_whose_first_chunk_comes_last_may_go_over_the_bound_and_beyond_that_fails_in_its_turn() -> (
    None
):
    """A 429 would be retried for ever: the client sends the first chunk only when the others were taken."""
    room = admission(model=Bound(100, 100))
    for _ in range(INCOMPLETE_FACTOR):
        admit(room, "ann/a", 100, incomplete=True)
    with pytest.raises(InvalidInput, match="send smaller batches"):
        admit(room, "ann/a", 100, incomplete=True)
    room.admit_failed("ann", "ann/a")


def test_refusals_are_counted_by_what_was_full() -> None:
    registry = CollectorRegistry()
    room = Admission(Bounds(Bound(1, 10), LOOSE, LOOSE), SchedulerMetrics(registry))
    admit(room, "ann/a")
    for _ in range(2):
        with pytest.raises(Overloaded):
            admit(room, "ann/a")
    assert registry.get_sample_value("tinsmith_train_refused_operations_total", {"scope": "model"}) == 2


def test_counters_of_models_that_are_gone_are_dropped() -> None:
    room = admission()
    for number in range(1500):
        admit(room, f"ann/{number}").release()
    assert len(room._models) <= 1002  # pyright: ignore[reportPrivateUsage]
