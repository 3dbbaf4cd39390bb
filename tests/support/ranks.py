"""Ranks without processes: they answer a hub as worker.py does, one message at a time and in any order a test wants."""

from __future__ import annotations

import random
from typing import Any

from distri_engine.config import DistriConfig
from distri_engine.request import GenerationRequest
from launcher import messages as m
from launcher.events import Action, Die, Event, Heard, Send, Submitted, Tick, Write
from launcher.hub import Hub
from launcher.job import Job
from launcher.schema import as_parameters


def make_job(req: str = "r-1", *, steps: int = 4, attempts: int = 0) -> Job:
    """A request as the client makes it."""
    request = GenerationRequest(prompt="x", steps=steps, seed=1, height=64, width=64)
    return Job(id=req, request=as_parameters(request), config=as_parameters(DistriConfig()), attempts=attempts)


class ScriptedRank:
    """One rank's side of the protocol. `fail_at`: the step in which it raises (-1: preparing). `stride`: timesteps that
    a step takes the picture further.
    """

    def __init__(
        self, rank: int, world: int, fail_at: int | None = None, backend: str = "gloo", stride: int = 1
    ) -> None:
        self.rank, self.world, self.fail_at, self.backend, self.stride = rank, world, fail_at, backend, stride
        self.inbox: list[m.Message] = []
        self.req, self.steps, self.step, self.upto = "", 0, -1, -1
        self.final: int | None = None
        self.rests = 0
        self.made: dict[str, int] = {}  # request -> last step made

    def hello(self, **about: Any) -> m.Hello:
        about = {"model": "toy", "backend": self.backend, **about}
        return m.Hello(proto=m.PROTOCOL, rank=self.rank, world=self.world, pid=100 + self.rank, **about)

    def act(self, now: float) -> m.Message | None:
        """Do the next thing and say it; None when there is nothing to do."""
        while self.inbox:
            match self.inbox.pop(0):
                case m.Join(gen=gen):
                    if self.req:
                        self.inbox.insert(0, m.Join(gen=gen))
                        return self._end("error", error="peer failed", at=now)
                    return m.Ready(gen=gen)
                case m.Rest():
                    self.rests += 1
                case m.Prepare(req=req, request=request):
                    if self.fail_at == -1:
                        return m.Prepared(req=req, ok=False, error="no memory")
                    self.req, self.steps, self.step, self.upto = req, request["steps"], -1, -1
                    self.final = None
                    return m.Prepared(req=req, ok=True)
                case m.Run(upto=upto) | m.Lease(upto=upto):
                    self.upto = upto
                case m.Cancel(final=final):
                    self.final = final
        if not self.req:
            return None
        converged = min((self.step + 1) * self.stride, self.steps)
        upcoming = self.step + 1 if converged < self.steps else self.steps
        if upcoming <= self.upto:
            self.step += 1
            if self.step == self.fail_at:
                self.step -= 1
                return self._end("error", error="boom", at=now)
            self.made[self.req] = self.step
            if upcoming < self.steps:
                figures: dict[str, Any] = {"compute_ms": 20.0, "wait_ms": 1.0, "sent_bytes": 1, "memory_mb": 1.0}
                figures["change"] = (self.rank + 1) / 10 if self.step else None
                figures |= {"converged": min(converged + self.stride, self.steps), "evaluations": self.stride}
                return m.Step(req=self.req, step=self.step, phase="sync", **figures)
            first = {"pictures": ("/x.png",), "seconds": {"text": 0.1}} if self.rank == 0 else {}
            self.step -= 1
            return self._end("done", **first)
        if self.final is not None and upcoming > self.final:
            return self._end("cancelled")
        return None

    def _end(self, why: str, **about: Any) -> m.Ended:
        ended = m.Ended(req=self.req, why=why, step=self.step, **about)
        self.req = ""
        return ended


class ScriptedGroup:
    """A hub and its ranks. `log` holds every action but the messages, `died` the reason of the group's end."""

    def __init__(self, world: int = 2, *, seed: int = 0, backlog: tuple[Job, ...] = (), **rank: Any) -> None:
        self.hub = Hub(world=world, nonce="aa", backlog=backlog)
        self.ranks = [ScriptedRank(index, world, **rank) for index in range(world)]
        self.log: list[Write] = []
        self.died = ""
        self.now = 0.0
        self._source = random.Random(seed)

    def feed(self, event: Event) -> list[Action]:
        """One event; messages reach the ranks' inboxes."""
        actions = self.hub.handle(event, self.now)
        for action in actions:
            match action:
                case Send(rank, message):
                    self.ranks[rank].inbox.append(message)
                case Write():
                    self.log.append(action)
                case Die(reason):
                    self.died = self.died or reason
        return actions

    def turn(self) -> bool:
        """Let one rank that has something to say say it; False if none has."""
        for rank in self._source.sample(self.ranks, len(self.ranks)):
            self.now += 0.01
            if (message := rank.act(self.now)) is not None:
                self.feed(Heard(rank.rank, message))
                return True
        return False

    def settle(self) -> None:
        """Until nobody has anything to say."""
        while not self.died and self.turn():
            pass

    def boot(self) -> ScriptedGroup:
        """All ranks loaded and joined."""
        for rank in self.ranks:
            self.feed(Heard(rank.rank, rank.hello()))
        self.settle()
        return self

    def submit(self, job: Job) -> Job:
        self.feed(Submitted(job))
        return job

    def wait(self, seconds: float) -> None:
        """Silence."""
        self.now += seconds
        self.feed(Tick())

    def entries(self, req: str) -> list[str]:
        """What the journal says about a request."""
        return [write.entry for write in self.log if write.job.id == req]
