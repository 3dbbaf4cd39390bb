"""A process of `python -m launcher benchmark` with the toy engine."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from launcher.benchmark_worker import main  # noqa: E402 - started by its path
from tests.support.toy_app import make_engine  # noqa: E402

if __name__ == "__main__":
    main(make_engine)
