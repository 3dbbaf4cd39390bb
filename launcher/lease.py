"""Which step may start: `grant` is the hub's rule, Lease is where a rank waits for it. Cancelling is the same thing
from the other side: no further grant, and the last one granted becomes the step after which every rank leaves.
"""

from __future__ import annotations

import threading
from collections.abc import Collection

AHEAD = 2  # steps a rank may be ahead of the slowest: hides the hub's round trip, bounds what Stop must wait for


def grant(finished: Collection[int], steps: int) -> int:
    """The highest step that may start when the ranks have finished these steps (-1: none yet).

    Step `steps` is the decode. It is granted only when every rank has finished the last step, so that Stop never
    waits for a decode that had not begun. A rank that needs no further step, whichever its last one was, counts as
    having finished step `steps` - 1.
    """
    slowest = min(finished)
    return steps if slowest >= steps - 1 else min(slowest + AHEAD, steps - 1)


class Lease:
    """One rank's permission to work on one picture. Written by the control thread, awaited by the engine loop."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._upto = -1
        self._final: int | None = None
        self._revoked = False

    def extend(self, upto: int) -> None:
        """Steps up to and including `upto` may start."""
        with self._changed:
            self._upto = max(self._upto, upto)
            self._changed.notify_all()

    def finish(self, final: int) -> None:
        """No step after `final` will ever start; those up to `final` still do, on every rank."""
        with self._changed:
            self._final = final
            self._changed.notify_all()

    def revoke(self) -> None:
        """The group is lost: start nothing more, in step with the others or not."""
        with self._changed:
            self._revoked = True
            self._changed.notify_all()

    @property
    def revoked(self) -> bool:
        """Whether this rank must leave its group."""
        with self._changed:
            return self._revoked

    def may_start(self, step: int) -> bool:
        """Block until it is known whether `step` starts on all ranks (True) or on none (False)."""
        with self._changed:
            self._changed.wait_for(lambda: self._decided(step))
            return not self._revoked and step <= self._upto

    def _decided(self, step: int) -> bool:
        return self._revoked or step <= self._upto or (self._final is not None and step > self._final)
