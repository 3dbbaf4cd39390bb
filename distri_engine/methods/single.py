"""One device makes the picture: the oracle of every other method."""

from __future__ import annotations

from distri_engine.methods.base import WholePicture


class Single(WholePicture):
    """The whole picture, unpatched."""

    alone = True
