"""The torchrun agent, ended without a traceback and without traces when somebody ends it; on several nodes also what
connects them. Everything else is torch.distributed.run's own: start.py and generate.py run this file with torchrun's
options.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

_log = logging.getLogger("launcher.agent")
_NODE_0_S = 5.0  # a lost node 0 may be felt by torchrun before its connection is seen to be closed


def main() -> None:
    """Run torchrun with this process's arguments. Exit code 128 + signal number if a signal ends it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)  # until torchrun, which takes seconds to import, has its own
    serves = "DISTRI_SERVES" in os.environ
    _find_launcher()
    from launcher import logs

    logs.keep(Path(os.environ["DISTRI_RUN_DIR"]), "agent")
    _log.info("begins")
    others = "DISTRI_NODES" in os.environ
    try:
        from torch.distributed.elastic.multiprocessing import SignalException
        from torch.distributed.run import main as torchrun

        for name in ("torch", "torch.distributed"):  # they have a way to the terminal of their own
            logging.getLogger(name).handlers.clear()
            logging.getLogger(name).propagate = True
        os.environ["DISTRI_AGENT_PID"] = str(os.getpid())  # process.py: ranks do not outlive this process
        try:
            _across_nodes(torchrun) if others else torchrun()
        except SignalException as end:
            _log.info("told to end by signal %d", end.sigval)
            if serves:
                _spare_the_request()
            sys.exit(128 + end.sigval)
    finally:
        if serves:
            shutil.rmtree(os.environ["DISTRI_RUN_DIR"], ignore_errors=True)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _find_launcher() -> None:
    sys.path.append(str(Path(__file__).parents[1]))  # at the end: nothing of ours shadows a module of torchrun's


def _across_nodes(torchrun: Callable[[], None]) -> None:
    """torchrun among the agents of other nodes. When node 0 is lost, this one waits for it and begins again."""
    from launcher import gateway, node_store, store_server
    from launcher.nodes import BACKEND, Nodes, read_token

    nodes, run_dir = Nodes.here(), Path(os.environ["DISTRI_RUN_DIR"])
    assert nodes is not None
    lost, over = threading.Event(), threading.Event()

    def begin_again() -> None:
        lost.set()
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGTERM)  # torchrun ends its ranks

    try:
        token = read_token(nodes.token_file)
        if nodes.rank == 0:
            store_server.serve(run_dir / node_store.SOCKET)
            gateway.Gate(nodes, token, run_dir)
        else:
            gateway.Porch(nodes, token, run_dir).open(begin_again)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    node_store.register(BACKEND, run_dir)
    try:
        torchrun()
    except BaseException as error:
        over.set()
        if nodes.rank == 0 or not lost.wait(0 if _is_signal(error) else _NODE_0_S):
            raise
    if lost.is_set():
        _log.warning("node 0 is gone")
        os.execv(sys.executable, [sys.executable, "-P", *sys.argv])


def _is_signal(error: BaseException) -> bool:
    return hasattr(error, "sigval")


def _spare_the_request() -> None:
    """The ranks are gone: what they worked on is made by the next program, and this attempt is not held against it."""
    from launcher.nodes import Nodes

    if (nodes := Nodes.here()) and nodes.rank > 0:
        return  # the journal is node 0's
    from launcher.files import sweep
    from launcher.journal import Journal, data_folder
    from launcher.png import PICTURES

    with contextlib.suppress(OSError):
        journal = Journal(data_folder())
        journal.spare()
        sweep(journal.folder / PICTURES)


if __name__ == "__main__":
    main()
