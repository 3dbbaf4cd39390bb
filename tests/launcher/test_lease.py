"""Leases: how far ranks may run ahead, and that every rank leaves after the same step."""

from __future__ import annotations

import random
import threading
import time

import pytest

from launcher.lease import AHEAD, Lease, grant


def test_nobody_gets_further_ahead_than_allowed_and_the_decode_waits_for_all() -> None:
    assert grant([-1, -1], 10) == AHEAD - 1
    assert grant([3, 5], 10) == 3 + AHEAD
    assert grant([8, 9], 10) == 9
    assert grant([9, 9], 10) == 10
    assert grant([-1], 1) == 0
    assert grant([0], 1) == 1


def test_waiting_ends_with_a_grant() -> None:
    lease = Lease()
    threading.Timer(0.1, lease.extend, [2]).start()
    begin = time.monotonic()
    assert lease.may_start(2)
    assert time.monotonic() - begin > 0.05
    assert lease.may_start(0)


def test_cancel_lets_granted_steps_finish_and_starts_no_other() -> None:
    lease = Lease()
    lease.extend(3)
    lease.finish(3)
    assert [lease.may_start(step) for step in range(6)] == [True] * 4 + [False] * 2


def test_cancel_before_the_first_step() -> None:
    lease = Lease()
    threading.Timer(0.05, lease.finish, [-1]).start()
    assert not lease.may_start(0)
    assert not lease.revoked


def test_a_revoked_lease_allows_nothing() -> None:
    lease = Lease()
    lease.extend(5)
    lease.revoke()
    assert not lease.may_start(0)
    assert lease.revoked


@pytest.mark.parametrize("seed", range(20))
def test_all_ranks_leave_after_the_same_step_whenever_cancel_comes(seed: int) -> None:
    source = random.Random(seed)
    leases, last, lock = [Lease() for _ in range(3)], [-1, -1, -1], threading.Lock()
    upto, final = [1], [None]

    def work(rank: int) -> None:
        while leases[rank].may_start(last[rank] + 1):
            time.sleep(source.random() * 0.002)
            with lock:
                last[rank] += 1
                if final[0] is None and (more := grant(last, 1000)) > upto[0]:
                    upto[0] = more
                    for lease in leases:
                        lease.extend(more)

    for lease in leases:
        lease.extend(1)
    threads = [threading.Thread(target=work, args=[rank]) for rank in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(source.random() * 0.05)
    with lock:
        final[0] = upto[0]  # type: ignore[call-overload]
        for lease in leases:
            lease.finish(upto[0])
    for thread in threads:
        thread.join(10)
    assert set(last) == {final[0]}
