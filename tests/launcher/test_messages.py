"""Messages between hub and ranks: they survive the wire, and nothing malformed becomes one."""

from __future__ import annotations

import contextlib
import random

import pytest

from distri_engine.config import DistriConfig
from distri_engine.request import GenerationRequest
from launcher import messages as m
from launcher import schema, wire

SAMPLES = [
    m.Join(gen="ab12-1"),
    m.Rest(),
    m.Prepare(req="r-1", request={"prompt": "x"}, config={}),
    m.Run(req="r-1", upto=1),
    m.Lease(req="r-1", upto=7),
    m.Cancel(req="r-1", final=-1),
    m.Hello(proto=1, rank=0, world=2, pid=77, torch="2.13", model="demo", path="/x"),
    m.Ready(gen="ab12-1"),
    m.Prepared(req="r-1", ok=True, memory_mb=12.5, box=(0, 0, 256, 128)),
    m.Prepared(req="r-1", ok=False, error="no memory"),
    m.Step(
        req="r-1",
        step=0,
        converged=1,
        evaluations=1,
        phase="stale",
        compute_ms=1,
        wait_ms=0.5,
        sent_bytes=10,
        memory_mb=1.0,
        load=97.0,
        change=0.25,
    ),
    m.Ended(req="r-1", why="done", step=7, pictures=("/x.png",), seconds={"text": 0.1}),
    m.Ended(req="r-1", why="error", step=3, error="boom", at=5.5),
]


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_wire(message: m.Message) -> None:
    again = m.parse(wire.decode(wire.encode(message.frame())), (*m.TO_RANK, *m.FROM_RANK))
    assert type(again) is type(message)
    assert wire.encode(again.frame()) == wire.encode(message.frame())


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: type(message).__name__)
def test_no_field_may_be_missing_wrong_or_unknown(message: m.Message) -> None:
    kinds = (*m.TO_RANK, *m.FROM_RANK)
    frame = message.frame()
    for name in frame:
        for wrong in (object(), [[]], True, -(10**20), "x" * 5000, float("nan"), float("inf")):
            if name in ("ok", "demo") and wrong is True:
                continue
            with pytest.raises(ValueError):
                m.parse({**frame, name: wrong}, kinds)
    with pytest.raises(ValueError, match="unknown field"):
        m.parse({**frame, "extra": 1}, kinds)
    if len(frame) > 1:
        with pytest.raises(ValueError, match="incomplete"):
            m.parse({"type": frame["type"]}, kinds)


def test_a_message_of_the_other_direction_is_refused() -> None:
    with pytest.raises(ValueError, match="unexpected"):
        m.parse(m.Join(gen="a").frame(), m.FROM_RANK)
    with pytest.raises(ValueError, match="unexpected"):
        m.parse(m.Ready(gen="a").frame(), m.TO_RANK)


def test_random_frames_never_do_anything_but_raise_valueerror() -> None:
    source = random.Random(2)
    values = [None, True, 0, -1, 10**30, 1.5, "", "done", "x" * 9999, [], [1, 2, 3, 4], {}, {"a": 1}]
    for _ in range(3000):
        frame = source.choice(SAMPLES).frame()
        for _ in range(source.randrange(1, 4)):
            frame[source.choice([*frame, "type", "?"])] = source.choice(values)
        with contextlib.suppress(ValueError):
            m.parse(frame, m.FROM_RANK)


def test_parameters_come_back_as_they_were() -> None:
    request = GenerationRequest(prompt="a Möwe", steps=9, seed=3, height=64, width=96, scheduler="euler")
    config = DistriConfig(mode="no_sync", parallelism="naive_patch", split_scheme="alternate", height=64, width=96)
    frame = m.Prepare(req="r", request=schema.as_parameters(request), config=schema.as_parameters(config)).frame()
    again = wire.decode(wire.encode(frame))
    assert schema.as_request(again["request"]) == request
    assert schema.as_config(again["config"]) == config


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"prompt": "x", "stepz": 3}, "unknown request option 'stepz'"),
        ({}, "incomplete"),
        ({"prompt": " "}, "empty"),
        ({"prompt": "x", "steps": 9999}, "steps 9999 is out of range"),
        ({"prompt": "x", "height": 1000}, "nearest: 992 or 1024"),
        ({"prompt": "x", "width": -32}, "width -32 is not a positive"),
    ],
)
def test_bad_parameters_are_named(parameters: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        schema.as_request(parameters)


def test_bad_config_is_named() -> None:
    with pytest.raises(ValueError, match="unknown parallelism 'magic'"):
        schema.as_config({"parallelism": "magic"})
    with pytest.raises(ValueError, match="unknown config option 'rank'"):
        schema.as_config({"rank": 3})
