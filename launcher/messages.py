"""What the hub and the ranks tell each other: one dataclass a message, every field checked on both sides. Standard
library and the engine's torch-free checks only; how frames travel is wire.py's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

from distri_engine.config import check_bool, check_int
from distri_engine.request import MAX_STEPS

PROTOCOL = 1

Check = Callable[[str, Any], Any]  # (field name, value); raises ValueError


def _whole(low: int, high: int) -> Check:
    return lambda name, value: check_int(name, value, low, high)


def _text(limit: int) -> Check:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, str) or len(value) > limit:
            raise ValueError(f"{name} is not a text of at most {limit} characters")

    return check


def _form(pattern: str) -> Check:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(f"{name} {value!r:.80} is not of the form {pattern}")

    return check


def _number(name: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1e15:
        raise ValueError(f"{name} {value!r:.80} is not a number from 0")


def _number_if_known(name: str, value: Any) -> None:
    if value is not None:
        _number(name, value)


def _object(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")


def _seconds(name: str, value: Any) -> None:
    if value is not None:
        _object(name, value)
        for key, number in value.items():
            _number(f"{name}.{key:.20}", number)


def _list(name: str, value: Any, length: int, check: Check) -> None:
    if not isinstance(value, (list, tuple)) or len(value) > length:
        raise ValueError(f"{name} is not a list of at most {length}")
    for item in value:
        check(name, item)


def _paths(name: str, value: Any) -> None:
    _list(name, value, 64, _text(4096))


def _box(name: str, value: Any) -> None:
    if value is not None:
        _list(name, value, 4, _whole(0, 10**6))
        if len(value) != 4:
            raise ValueError(f"{name} is not left, top, right, bottom")


Name = Annotated[str, _form(r"[0-9a-z-]{1,40}")]  # of a request or of a generation
StepIndex = Annotated[int, _whole(-1, MAX_STEPS)]  # -1: before the first; `steps`: the decode
Flag = Annotated[bool, check_bool]
Amount = Annotated[float, _number]
MaybeAmount = Annotated[float | None, _number_if_known]
Reason = Annotated[str, _text(1000)]
Parameters = Annotated[dict[str, Any], _object]


@dataclass(frozen=True, kw_only=True)
class Message:
    """Base of all messages. Raises ValueError if a field does not hold what its annotation asks for."""

    _checks: ClassVar[dict[str, Check]]

    def __init_subclass__(cls) -> None:
        hints = get_type_hints(cls, include_extras=True)
        cls._checks = {name: get_args(hint)[1] for name, hint in hints.items() if get_origin(hint) is Annotated}

    def __post_init__(self) -> None:
        for name, check in self._checks.items():
            check(name, getattr(self, name))

    def frame(self) -> dict[str, Any]:
        """The message as wire.py sends it."""
        return {"type": type(self).__name__.upper(), **{f.name: getattr(self, f.name) for f in fields(self)}}


@dataclass(frozen=True, kw_only=True)
class Join(Message):
    """Hub: leave the group you are in, whatever you do there, and join this generation of it."""

    gen: Name


@dataclass(frozen=True, kw_only=True)
class Rest(Message):
    """Hub: nothing to do for a while; leave the group. A JOIN comes before the next picture."""


@dataclass(frozen=True, kw_only=True)
class Prepare(Message):
    """Hub: do what is local for this picture; start no step."""

    req: Name
    request: Parameters
    config: Parameters


@dataclass(frozen=True, kw_only=True)
class Run(Message):
    """Hub: every rank is prepared, and steps up to `upto` may start."""

    req: Name
    upto: StepIndex


@dataclass(frozen=True, kw_only=True)
class Lease(Message):
    """Hub: steps up to `upto` may start."""

    req: Name
    upto: StepIndex


@dataclass(frozen=True, kw_only=True)
class Cancel(Message):
    """Hub: leave after step `final`, which every rank still makes; -1: before the first."""

    req: Name
    final: StepIndex


@dataclass(frozen=True, kw_only=True)
class Hello(Message):
    """Rank: the weights are loaded (or cannot be: `error`), and this is who I am."""

    proto: Annotated[int, _whole(0, 1000)]
    rank: Annotated[int, _whole(0, 4095)]
    world: Annotated[int, _whole(1, 4096)]
    pid: Annotated[int, _whole(1, 2**31)]
    error: Reason = ""
    torch: Annotated[str, _text(100)] = ""
    threads: Annotated[int, _whole(1, 65536)] = 1
    device: Annotated[str, _text(200)] = "CPU"  # for people
    device_kind: Annotated[str, _form("cpu|cuda")] = "cpu"
    backend: Annotated[str, _form("gloo|nccl")] = "gloo"
    model: Reason = ""  # for people
    path: Annotated[str, _text(4096)] = ""
    demo: Flag = False
    default_size: Annotated[int, _whole(1, 10**6)] = 1024
    size_multiple: Annotated[int, _whole(1, 10**6)] = 32
    max_pixels: Annotated[int, _whole(1, 10**12)] = 2**24


@dataclass(frozen=True, kw_only=True)
class Ready(Message):
    """Rank: I am in generation `gen` of the group."""

    gen: Name


@dataclass(frozen=True, kw_only=True)
class Prepared(Message):
    """Rank: ready for the first step; or not, why, and I have dropped the picture."""

    req: Name
    ok: Flag
    error: Reason = ""
    memory_mb: Amount = 0.0
    box: Annotated[tuple[int, int, int, int] | None, _box] = None
    branch: Annotated[str, _form("both|unconditional|conditional|none")] = "both"


@dataclass(frozen=True, kw_only=True)
class Step(Message):
    """Rank: this step is finished. Carries figures only; tensors travel over the process group.

    A step takes the picture one timestep further, or several; when all are `converged`, the decode is next.
    """

    req: Name
    step: Annotated[int, _whole(0, MAX_STEPS)]
    converged: Annotated[int, _whole(1, MAX_STEPS)]  # timesteps that are done
    evaluations: Annotated[int, _whole(0, MAX_STEPS)]  # timesteps on which this rank ran the UNet
    phase: Annotated[str, _form("sync|stale")]
    compute_ms: Amount
    wait_ms: Amount
    sent_bytes: Annotated[int, _whole(0, 2**50)]
    memory_mb: Amount
    buffer_mb: Amount = 0.0
    load: MaybeAmount = None
    change: MaybeAmount = None


@dataclass(frozen=True, kw_only=True)
class Ended(Message):
    """Rank: I have left this picture, and no transfer of mine is in flight any more."""

    req: Name
    why: Annotated[str, _form("done|cancelled|error")]
    step: StepIndex  # the last finished step
    error: Reason = ""
    at: Amount = 0.0  # seconds since 1970, as on all machines: of several errors the earliest is the one that began it
    pictures: Annotated[tuple[str, ...], _paths] = ()  # rank 0: the files, safely on disk
    seconds: Annotated[dict[str, float] | None, _seconds] = None  # rank 0: text, denoise, decode, save


TO_RANK = (Join, Rest, Prepare, Run, Lease, Cancel)
FROM_RANK = (Hello, Ready, Prepared, Step, Ended)


def parse(frame: Mapping[str, Any], kinds: Iterable[type[Message]]) -> Message:
    """The message in a frame. Raises ValueError for a type not in `kinds`, or a missing, unknown or wrong field."""
    name = frame.get("type")
    kind = next((kind for kind in kinds if kind.__name__.upper() == name), None)
    if kind is None:
        raise ValueError(f"unexpected message {name!r:.80}")
    body = {key: value for key, value in frame.items() if key != "type"}
    if unknown := sorted(body.keys() - {spec.name for spec in fields(kind)}):
        raise ValueError(f"{name} has an unknown field {unknown[0]!r:.80}")
    try:
        return kind(**body)
    except TypeError as error:
        raise ValueError(f"{name} is incomplete: {error}") from None
