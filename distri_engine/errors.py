"""What callers may want to catch. Wrong input is a plain ValueError; these are the failures that are not the
caller's.
"""


class EngineError(RuntimeError):
    """Base of every failure that the engine reports on purpose."""


class MeshError(EngineError):
    """This rank could not take its place in the group, or the group is gone."""


class ModelError(EngineError):
    """A model folder or id that cannot be opened, or an architecture that cannot be parallelised."""


class UnsupportedError(EngineError, NotImplementedError):
    """A feature of the wrapped pipeline that has no parallel form here; the message names it and the way out."""
