"""What people watch: history of runs, reports of replicas, failures."""

from datetime import UTC, datetime, timedelta

from tinsmith_common.futures import PromiseKind
from tinsmith_common.stores import Stores
from tinsmith_common.watch import ReplicaReport, Report, Step
from tinsmith_common.watch.history import MAX_POINTS

NOW = datetime(2026, 7, 1, tzinfo=UTC)


def steps(run_id: str, first: int, count: int) -> list[Step]:
    """Steps whose loss is their number."""
    return [
        Step(run_id, n, NOW + timedelta(seconds=n), loss_sum=float(n)) for n in range(first, first + count)
    ]


async def test_steps_are_numbered_by_run_and_come_back_in_order(stores: Stores) -> None:
    await stores.history.add_steps([*steps("a", 1, 2), *steps("b", 1, 1)])
    await stores.history.add_steps(steps("a", 3, 2))
    assert [(step.number, step.loss_sum) for step in await stores.history.steps("a")] == [
        (n, float(n)) for n in range(1, 5)
    ]
    assert [step.number for step in await stores.history.steps("a", after=3)] == [4]
    last = await stores.history.last_steps(["a", "b", "c"])
    assert {run: step.number for run, step in last.items()} == {"a": 4, "b": 1}


async def test_a_long_run_keeps_its_first_its_newest_and_every_second_step_between(stores: Stores) -> None:
    total = MAX_POINTS + 4
    await stores.history.add_steps(steps("a", 1, MAX_POINTS))
    assert len(await stores.history.steps("a")) == MAX_POINTS
    for number in range(MAX_POINTS + 1, total + 1):
        await stores.history.add_steps(steps("a", number, 1))
    kept = await stores.history.steps("a")
    assert [step.number for step in kept] == [*range(1, total, 2), total]
    # A number is the step's own, however many were left out.
    assert all(step.loss_sum == step.number for step in kept)


async def test_a_run_never_has_many_more_rows_than_the_limit(stores: Stores) -> None:
    for begin in range(1, 5 * MAX_POINTS, 250):
        await stores.history.add_steps(steps("a", begin, 250))
        assert len(await stores.history.steps("a")) <= MAX_POINTS + 1


async def test_reports_are_series_of_their_own(stores: Stores) -> None:
    reports = [
        Report("a", name, NOW, value) for name, value in (("reward", 0.5), ("kl", 2.0), ("reward", 1.0))
    ]
    await stores.history.add_reports(reports)
    found = await stores.history.reports("a")
    assert [(item.name, item.number, item.value) for item in found] == [
        ("kl", 1, 2.0),
        ("reward", 1, 0.5),
        ("reward", 2, 1.0),
    ]
    assert await stores.history.reports("b") == ()
    assert await stores.history.reports("a", NOW) == ()
    assert len(await stores.history.reports("a", NOW - timedelta(microseconds=1))) == 3


async def test_what_is_old_is_forgotten(stores: Stores) -> None:
    await stores.history.add_steps(steps("a", 1, 3))
    await stores.history.add_reports([Report("a", "reward", NOW, 1.0)])
    await stores.history.expire(NOW + timedelta(seconds=2))
    assert [step.number for step in await stores.history.steps("a")] == [2, 3]
    assert await stores.history.reports("a") == ()


async def test_a_replica_has_one_report_until_it_is_silent_or_gone(stores: Stores) -> None:
    def report(name: str, after_s: int, value: int) -> ReplicaReport:
        return ReplicaReport(name, "host", NOW, NOW + timedelta(seconds=after_s), {"value": value})

    for item in (report("a", 0, 1), report("b", 0, 2), report("b", 5, 3)):
        await stores.replicas.put(item, NOW - timedelta(seconds=1))
    assert [(item.id, item.report["value"]) for item in await stores.replicas.all()] == [("a", 1), ("b", 3)]
    await stores.replicas.put(report("b", 9, 4), NOW + timedelta(seconds=1))
    assert [(item.id, item.report["value"]) for item in await stores.replicas.all()] == [("b", 4)]
    await stores.replicas.remove("b")
    assert await stores.replicas.all() == ()


async def test_failures_are_the_owner_s_and_the_newest_first(stores: Stores) -> None:
    for index, owner in enumerate(("ann", "ben", "ann")):
        request_id = f"{owner}:{index}"
        await stores.futures.submit(request_id, PromiseKind.OPTIM_STEP, owner)
        await stores.futures.fail(request_id, f"fault {index}", "user")
    await stores.futures.submit("ann:done", PromiseKind.OPTIM_STEP, "ann")
    await stores.futures.resolve("ann:done", b"{}")
    await stores.futures.submit("ann:gone", PromiseKind.OPTIM_STEP, "ann")
    await stores.futures.cancel("ann:gone", "ann")
    assert [item.error for item in await stores.failures.newest("ann", 10)] == ["fault 2", "fault 0"]
    assert [item.owner for item in await stores.failures.newest(None, 2)] == ["ann", "ben"]
