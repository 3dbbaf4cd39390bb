"""What the group did, counted for Prometheus: requests, seconds, every rank's compute and wait. Who may read it is the
page's business; the hub's loop tells it what happens.
"""

from __future__ import annotations

from collections.abc import Iterable

from launcher import messages as m
from launcher.job import Job
from launcher.schema import Record, Status

STEP_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
STAGE_S = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counters of a hub. Those of requests begin with `ended`, what ended under this program's earlier groups; those of
    steps begin at zero with every group, which Prometheus knows how to read.
    """

    def __init__(self, ended: Iterable[Record] = ()) -> None:
        # Rank 0 alone needs it.
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

        disable_created_metrics()
        self._registry = registry = CollectorRegistry()
        self._ended = Counter("distri_requests", "Requests that ended, by how", ["state"], registry=registry)
        self._stages = Histogram(
            "distri_stage_seconds", "Seconds of a picture", ["stage", "method"], buckets=STAGE_S, registry=registry
        )
        self._compute = Histogram(
            "distri_step_compute_seconds", "Own work in a step", ["rank"], buckets=STEP_S, registry=registry
        )
        self._wait = Histogram(
            "distri_step_wait_seconds", "Wait for peers in a step", ["rank"], buckets=STEP_S, registry=registry
        )
        self._memory = Gauge("distri_memory_bytes", "Memory after the last step", ["rank"], registry=registry)
        self._queue = Gauge("distri_queue_length", "Requests that wait", registry=registry)
        self._restarts = Gauge("distri_restarts", "How often the group was started again", registry=registry)
        for state in ("done", "cancelled", "failed"):
            self._ended.labels(state)  # a rate needs a zero to start from
        for record in ended:
            self.finished(record)

    def step(self, rank: int, step: m.Step) -> None:
        """A rank has finished a step."""
        self._compute.labels(rank).observe(step.compute_ms / 1000)
        self._wait.labels(rank).observe(step.wait_ms / 1000)
        self._memory.labels(rank).set(step.memory_mb * 2**20)

    def finished(self, job: Job | Record) -> None:
        """A request has ended, as `job.state` says."""
        self._ended.labels(job.state).inc()
        if job.report is not None:
            for stage in ("text", "denoise", "decode", "save"):
                self._stages.labels(stage, job.config["parallelism"]).observe(job.report["seconds"][stage])

    def text(self, status: Status) -> bytes:
        """All of it in Prometheus' text format."""
        from prometheus_client import generate_latest

        self._queue.set(status.queue)
        self._restarts.set(status.restarts)
        return bytes(generate_latest(self._registry))
