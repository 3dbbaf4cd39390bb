"""How often one client may ask for pictures, and who counts as one."""

from __future__ import annotations

import pytest

from launcher.limits import PICTURES, Rate, address
from launcher.schema import Refused


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_so_many_a_minute_and_then_again() -> None:
    clock = Clock()
    rate = Rate(limit=5, period=60, clock=clock)
    rate.take("a", 3)
    clock.now += 10
    rate.take("a", 1)
    with pytest.raises(Refused, match=r"You asked for 4 pictures within 60 s and the limit is 5; try again in 50 s"):
        rate.take("a", 3)
    rate.take("a", 1)  # what was refused does not count
    rate.take("b", 5)  # nor do others
    clock.now += 50
    rate.take("a", 3)
    with pytest.raises(Refused, match=r"asked for 5 pictures.*try again in 10 s"):
        rate.take("a", 1)


def test_who_is_quiet_is_forgotten() -> None:
    clock = Clock()
    rate = Rate(limit=5, period=60, clock=clock)
    for visitor in range(1000):
        clock.now += 1
        rate.take(f"visitor {visitor}", 1)
    assert len(rate._asked) <= 120


def test_only_guests_have_a_limit() -> None:
    rate = Rate.here({})
    for _ in range(100):
        rate.take("a", 3)
    rate = Rate.here({"SPACE_ID": "me/space"})
    rate.take("a", PICTURES)
    with pytest.raises(Refused):
        rate.take("a", 1)


@pytest.mark.parametrize(
    ("peer", "forwarded", "who"),
    [
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.7, 10.1.1.1", "198.51.100.7"),
        ("10.0.0.1", "what is this", "10.0.0.1"),
        ("10.0.0.1", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("testclient", "", "testclient"),
    ],
)
def test_who_asks(peer: str, forwarded: str, who: str) -> None:
    assert address(peer, forwarded) == who
