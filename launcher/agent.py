"""The torchrun agent, ended without a traceback when somebody ends it. Everything else is torch.distributed.run's own:
start.py runs this file with torchrun's options.
"""

from __future__ import annotations

import logging
import os
import sys


def main() -> None:
    """Run torchrun with this process's arguments. Exit code 128 + signal number if a signal ends it."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.run import main as torchrun

    logging.disable(logging.WARNING)  # errors stay; that it ends its workers when it is told to end is no news
    os.environ["DISTRI_AGENT_PID"] = str(os.getpid())  # process.py: ranks do not outlive this process
    try:
        torchrun()
    except SignalException as end:
        sys.exit(128 + end.sigval)


if __name__ == "__main__":
    main()
