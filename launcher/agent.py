"""The torchrun agent, ended without a traceback and without traces when somebody ends it. Everything else is
torch.distributed.run's own: start.py and generate.py run this file with torchrun's options.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn


def main() -> None:
    """Run torchrun with this process's arguments. Exit code 128 + signal number if a signal ends it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)  # until torchrun, which takes seconds to import, has its own
    serves = "DISTRI_SERVES" in os.environ
    try:
        from torch.distributed.elastic.multiprocessing import SignalException
        from torch.distributed.run import main as torchrun

        logging.disable(logging.WARNING)  # errors stay; that it ends its workers when it is told to end is no news
        os.environ["DISTRI_AGENT_PID"] = str(os.getpid())  # process.py: ranks do not outlive this process
        try:
            torchrun()
        except SignalException as end:
            if serves:
                _spare_the_request()
            sys.exit(128 + end.sigval)
    finally:
        if serves:
            shutil.rmtree(os.environ["DISTRI_RUN_DIR"], ignore_errors=True)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _spare_the_request() -> None:
    """The ranks are gone: what they worked on is made by the next program, and this attempt is not held against it."""
    sys.path.append(str(Path(__file__).parents[1]))  # at the end: nothing of ours shadows a module of torchrun's
    from launcher.files import sweep
    from launcher.journal import Journal, data_folder
    from launcher.png import PICTURES

    with contextlib.suppress(OSError):
        journal = Journal(data_folder())
        journal.spare()
        sweep(journal.folder / PICTURES)


if __name__ == "__main__":
    main()
