"""Peers alternate in equal numbers of turns within the budget, with a simulated clock."""

import pytest

from benchmarks.timing import SHORTEST_TURN, Budget, cpu_stopwatch, take_turns

ONE_ROUND = Budget(least=1, least_short=1, most=1)


class Clock:
    """Time passes only while work is done; two processors work on all of it."""

    def __init__(self) -> None:
        self.wall = 0.0
        self.calls: list[str] = []

    def work(self, name: str, seconds: float):
        def compute() -> str:
            self.wall += seconds
            self.calls.append(name)
            return name

        return compute

    def turns(self, budget: Budget, **seconds: float):
        works = {name: self.work(name, taken) for name, taken in seconds.items()}
        watch = cpu_stopwatch(lambda: self.wall, lambda: 2 * self.wall)
        return take_turns(works, watch, budget, now=lambda: self.wall)


@pytest.fixture
def clock():
    return Clock()


def test_a_turn_gives_the_time_of_one_call_by_both_clocks(clock):
    (turn,) = clock.turns(ONE_ROUND, a=0.25)["a"]
    assert (turn.wall, turn.cpu) == (0.25, 0.5)
    assert clock.calls == ["a"]


def test_short_work_is_repeated_within_its_turn(clock):
    short = SHORTEST_TURN / 4
    (turn,) = clock.turns(ONE_ROUND, a=short)["a"]
    assert turn.wall == pytest.approx(short)
    assert clock.calls == ["a"] * 4


def test_peers_alternate_and_have_as_many_turns(clock):
    turns = clock.turns(Budget(seconds=1e9, least_short=3, most=3), a=1.0, b=2.0, c=3.0)
    assert "".join(clock.calls) == "abc" + "cba" + "abc"
    assert {peer: [t.wall for t in of] for peer, of in turns.items()} == {
        "a": [1.0] * 3,
        "b": [2.0] * 3,
        "c": [3.0] * 3,
    }


@pytest.mark.parametrize(
    ("seconds", "rounds"),
    [(0.1, 8), (1.0, 8), (1.5, 7), (2.0, 5), (2.5, 4), (6.0, 3), (60.0, 3)],
    ids=lambda value: f"{value:g}",
)
def test_rounds_follow_the_budget(clock, seconds, rounds):
    # At most eight; five where they fit into ten seconds; three in any case.
    budget = Budget(seconds=10.0, least=3, least_short=5, most=8)
    assert len(clock.turns(budget, a=seconds)["a"]) == rounds


def test_without_peers_there_are_no_turns(clock):
    assert clock.turns(Budget()) == {}
