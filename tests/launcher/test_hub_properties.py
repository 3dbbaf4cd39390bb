"""The hub and the journal under any order of events: whatever ranks, visitors and the kernel do, and whenever, nothing
that was accepted is lost, and nothing is done twice. Hypothesis looks for the order that breaks it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections import Counter, deque
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from launcher import messages as m
from launcher.events import Die, Event, Heard, Lost, Send, Stop, Submitted, Tick, Write
from launcher.hub import Hub
from launcher.job import FINAL, MAX_ATTEMPTS, Job
from launcher.journal import Journal
from launcher.lease import AHEAD
from tests.support.ranks import ScriptedRank, make_job

RANKS = st.integers(0, 2)


class Wire:
    """The socket of one rank: what is under way in both directions, and the rank at its end."""

    def __init__(self, rank: ScriptedRank) -> None:
        self.rank = rank
        self.down: deque[m.Message] = deque()
        self.up: deque[m.Message | None] = deque([rank.hello()])  # None: the rank is dead
        self.dead = False


class Control(RuleBasedStateMachine):
    """A hub on its journal, and ranks at the ends of wires. After a hub that dies comes another, as with torchrun."""

    @initialize(world=st.integers(1, 3), stride=st.integers(1, 2), backend=st.sampled_from(["gloo", "nccl"]))
    def begin(self, world: int, stride: int, backend: str) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.world, self.about = world, {"stride": stride, "backend": backend}
        self.accepted: list[str] = []
        self.tries: Counter[str] = Counter()
        self.generation, self.now = 0, 0.0
        self.spared = -1  # actions that are still done before rank 0 is killed; -1: it is not
        self.start()
        self.work(20, 0)
        self.submit(6)
        self.submit(3)

    def start(self) -> None:
        """torchrun starts the group, for the first time or again."""
        self.generation += 1
        self.journal = Journal(self.folder)
        backlog = self.journal.recover()
        self.hub = Hub(world=self.world, nonce=f"n{self.generation}", backlog=backlog, started=self.now)
        self.wires = [Wire(ScriptedRank(rank, self.world, **self.about)) for rank in range(self.world)]
        self.over, self.blame, self.troubled = False, False, set[str]()

    def restart(self) -> None:
        self.journal.close()
        self.start()

    # --- what connects them, as hub_io.py does it

    def feed(self, event: Event) -> None:
        self.now += 0.001
        events = deque([event])
        while events and not self.over:
            for action in self.hub.handle(events.popleft(), self.now):
                if self.spared == 0:  # killed between two actions: the rest never happens
                    self.over = True
                    break
                self.spared -= self.spared > 0
                if isinstance(action, Die):
                    assert self.blame, f"it died for nothing: {action.reason}"
                    self.over = True
                    self.speak_to_the_dead()
                    break
                if isinstance(action, Send):
                    if self.send(self.wires[action.rank], action.message):
                        events.append(Lost(action.rank, "takes no messages"))
                elif isinstance(action, Write):
                    self.write(action)
        if self.over:
            self.spared = -1
            self.restart()

    def speak_to_the_dead(self) -> None:
        """A hub that wants to die sends and writes nothing any more, whatever still arrives."""
        assert self.hub.handle(Tick(), self.now) == []
        for rank, wire in enumerate(self.wires):
            for late in wire.up:
                assert self.hub.handle(Lost(rank, "gone") if late is None else Heard(rank, late), self.now) == []

    def send(self, wire: Wire, message: m.Message) -> bool:
        """Put a message on the wire; True if nobody is there to take it."""
        assert not (wire.dead and not wire.up), "a frame to a rank whose death the hub has seen"
        if isinstance(message, m.Run | m.Lease):
            job = self.hub.current
            assert job is not None
            assert job.id == message.req
            finished = [job.ranks[one.rank.rank].finished for one in self.wires]
            if message.upto < job.steps:
                assert message.upto <= min(finished) + AHEAD
            else:
                assert all(rank.converged == job.steps for rank in job.ranks)
        if isinstance(message, m.Prepare):
            assert not wire.rank.req, "two pictures at once"
            assert self.journal.record(message.req) is None, "a picture that has ended"
        if not wire.dead:
            wire.down.append(message)
        return wire.dead

    def write(self, action: Write) -> None:
        {"try": self.journal.tried, "stop": self.journal.stopped, "finished": self.journal.finished}[action.entry](
            action.job
        )
        if action.entry == "try":
            self.tries[action.job.id] += 1
            assert self.tries[action.job.id] <= MAX_ATTEMPTS
        if action.entry == "finished":
            assert action.job.state in FINAL
            self.check_stop(action.job)

    def check_stop(self, job: Job) -> None:
        """Without a fault, all ranks left after the same step."""
        whole = all(rank.left for rank in job.ranks)
        if job.ranks and whole and job.id not in self.troubled and job.state in ("done", "cancelled"):
            assert len({rank.finished for rank in job.ranks}) == 1
            assert len({wire.rank.made.get(job.id) for wire in self.wires}) == 1

    # --- what visitors do

    @rule(steps=st.integers(1, 6))
    def submit(self, steps: int) -> None:
        if len(self.accepted) >= 12:
            return
        job = make_job(f"r-{len(self.accepted)}", steps=steps)
        self.journal.accepted(job)
        self.accepted.append(job.id)
        self.feed(Submitted(job))

    @rule(number=st.integers(0, 12))
    def cancel_any(self, number: int) -> None:
        self.feed(Stop(f"r-{number}"))

    @precondition(lambda self: self.hub.current)
    @rule()
    def cancel(self) -> None:
        assert self.hub.current
        self.feed(Stop(self.hub.current.id))

    # --- what ranks do

    def wire(self, rank: int) -> Wire:
        return self.wires[rank % self.world]

    @rule(rank=RANKS)
    def hear(self, rank: int) -> None:
        """One message arrives at a rank."""
        wire = self.wire(rank)
        if wire.down and not wire.dead:
            wire.rank.inbox.append(wire.down.popleft())

    @rule(rank=RANKS, count=st.integers(1, 4))
    def act(self, rank: int, count: int) -> None:
        """A rank does something with what it has heard."""
        wire = self.wire(rank)
        for _ in range(count):
            if not wire.dead and (message := wire.rank.act(self.now)) is not None:
                if isinstance(message, m.Ended) and message.why == "error":
                    self.troubled.add(message.req)
                    self.blame |= wire.rank.backend == "nccl"
                wire.up.append(message)

    @rule(rank=RANKS, count=st.integers(1, 4))
    def deliver(self, rank: int, count: int) -> None:
        """What a rank said, or that it is dead, arrives at the hub."""
        generation = self.generation
        for _ in range(count):
            wire = self.wire(rank)
            if wire.up and generation == self.generation:
                message = wire.up.popleft()
                who = rank % self.world
                self.feed(Lost(who, "stopped answering") if message is None else Heard(who, message))

    @rule(turns=st.integers(1, 40), seed=st.integers(0, 1000))
    def work(self, turns: int, seed: int) -> None:
        """For a while all goes well, though not at the same speed everywhere."""
        source = random.Random(seed)
        for _ in range(turns):
            rank = source.randrange(self.world)
            self.hear(rank)
            self.hear(rank)
            self.act(rank, 1)
            self.deliver(rank, 1)

    @rule(rank=RANKS, ahead=st.integers(0, 3))
    def fail(self, rank: int, ahead: int) -> None:
        """From now on a rank raises in this step: the next, or a later one; between pictures, in the preparation."""
        one = self.wire(rank).rank
        one.fail_at = one.step + 1 + ahead if one.req else -1

    @rule(rank=RANKS)
    def mend(self, rank: int) -> None:
        self.wire(rank).rank.fail_at = None

    # --- what befalls them

    @rule(rank=RANKS)
    def kill(self, rank: int) -> None:
        wire = self.wire(rank)
        if not wire.dead:
            wire.dead = self.blame = True
            wire.up.append(None)
            wire.down.clear()

    @rule(actions=st.integers(0, 4))
    def kill_hub(self, actions: int) -> None:
        """Rank 0, and the hub with it, is killed soon: perhaps half-way through what it wants to do."""
        self.spared = actions

    @precondition(lambda self: self.spared < 0)
    @rule(rank=RANKS)
    def babble(self, rank: int) -> None:
        """A rank says something that was true long ago."""
        wire = self.wire(rank)
        if not wire.dead:
            self.blame = True
            wire.up.append(m.Ended(req="r-0", why="cancelled", step=0))

    @rule(seconds=st.sampled_from([0.5, 2.5, 3.5, 16.0, 61.0, 121.0]))
    def wait(self, seconds: float) -> None:
        self.blame = True  # whoever is expected to answer seems to hang
        self.now += seconds
        self.feed(Tick())

    # --- what must hold

    @invariant()
    def pages_can_be_drawn(self) -> None:
        self.hub.status()
        for req, job in self.hub.jobs.items():
            update = self.hub.update(req)
            assert update.final == (job.state in FINAL)
        known = {req for req in self.accepted if req in self.hub.jobs or self.journal.record(req)}
        assert known == set(self.accepted)

    def teardown(self) -> None:
        """Once the faults end, every request does: exactly once, also in the file."""
        if not hasattr(self, "folder"):
            return
        self.spared = -1
        for _ in range(5000):
            for rank in range(self.world):
                self.wire(rank).rank.fail_at = None
                self.hear(rank)
                self.act(rank, 1)
                self.deliver(rank, 1)
            if not any(wire.up or wire.down for wire in self.wires) and not self.hub.queue and not self.hub.current:
                break
        assert self.hub.state in ("idle", "dead"), self.hub.state
        self.journal.close()
        lines = [json.loads(line) for line in (self.folder / "journal.jsonl").read_text().splitlines()]
        ends = Counter(line["id"] for line in lines if line["entry"] == "finished")
        assert ends == Counter(self.accepted)
        assert {line["state"] for line in lines if line["entry"] == "finished"} <= set(FINAL)
        shutil.rmtree(self.folder)


Control.TestCase.settings = settings(
    max_examples=250,
    stateful_step_count=60,
    deadline=None,
    database=None,
    derandomize="CI" in os.environ,  # a change is judged by itself; what luck finds, it finds on a desk
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


TestControl = Control.TestCase
