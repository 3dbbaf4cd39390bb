"""A rank of `python -m launcher generate`, or with the argument coco of that command, with the toy engine."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from launcher import coco, generate  # noqa: E402 - torchrun starts this file by its path
from launcher.errand import be_rank  # noqa: E402
from tests.support.toy_app import make_engine  # noqa: E402

if __name__ == "__main__":
    be_rank(coco.make if sys.argv[1:] == ["coco"] else generate.make, make_engine)
