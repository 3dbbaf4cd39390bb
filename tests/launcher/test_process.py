"""A rank's first statement: it never outlives the agent that started it, not even one that died before it woke up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from launcher.process import AGENT_PID, reason

ROOT = Path(__file__).parents[2]
RANK = [sys.executable, "-c", "from launcher.process import die_with_agent; die_with_agent(); print('alive')"]


def run(agent: int) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, AGENT_PID: str(agent)}
    return subprocess.run(RANK, cwd=ROOT, env=env, capture_output=True, text=True, timeout=30)


def test_a_rank_whose_agent_is_gone_ends_at_once() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    ended = run(gone.pid)
    assert (ended.returncode, ended.stdout) == (1, "")


def test_a_rank_whose_agent_lives_goes_on() -> None:
    assert run(os.getpid()).stdout == "alive\n"


def test_freed_memory_serves_again() -> None:
    script = (
        "import resource; from launcher.process import keep_freed_memory; keep_freed_memory()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "step = lambda: [bytearray(8 << 20) for _ in range(6)]\n"
        "step(); before = faults(); step(); step()\n"
        "print(faults() - before)"
    )
    told = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30)
    # All pages of both steps by default: 24,576 of 4 KiB.
    assert int(told.stdout) < (8 << 20) / os.sysconf("SC_PAGE_SIZE")


def test_an_exception_is_told_in_one_line() -> None:
    assert reason(ValueError("height 3 is odd\nsecond line")) == "height 3 is odd"
    assert reason(RuntimeError("boom\nC++ frames")) == "RuntimeError: boom"
    assert reason(KeyError()) == "KeyError: KeyError"
    assert len(reason(ValueError("x" * 9999))) == 500
