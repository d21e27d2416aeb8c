"""The drill of kills draws what it promises; docs/reliability.md has what it showed, other tests kill for real."""

from collections import Counter

from launch.drills.kill import CASES, FEWER, MOMENTS, draw
from launch.drills.victim import STAGES


def test_every_stage_and_every_case_is_drawn() -> None:
    drawn = draw(50, 0)
    assert set(STAGES) == set(MOMENTS)
    assert min(Counter(kill.stage for kill in drawn).values()) >= 5
    assert min(Counter(kill.case for kill in drawn).values()) >= 5
    assert {kill.case for kill in drawn} == set(CASES)
    assert {kill.rank for kill in drawn} == {0, 1}
    assert all(kill.rank == 0 for kill in drawn if kill.stage == "save")
    assert all(1 <= kill.count <= FEWER.get((kill.case, kill.stage), MOMENTS[kill.stage]) for kill in drawn)
    assert draw(50, 0) == drawn != draw(50, 1)


def test_what_a_worker_does_in_a_stage_is_there() -> None:
    assert all(callable(getattr(owner, name)) for owner, name in STAGES.values())
