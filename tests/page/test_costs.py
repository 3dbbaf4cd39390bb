"""What Gradio does for nothing at every event and the page spares itself: what is sent is the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gradio as gr
import pytest

import app
from launcher.web import gradio_inside
from tests.support.fake_client import FakeClient


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> gr.Blocks:
    return app.build(FakeClient(tmp_path_factory.mktemp("pictures")))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """In a thread of its own: playwright's loop may be running in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def sent(blocks: gr.Blocks, kind: type[gr.Blocks], function: Any, answer: Any) -> list[Any]:
    """What `kind` makes of an event's answer, for a visitor who is new."""
    state = gr.state_holder.SessionState(blocks)
    return run(kind.postprocess_data(blocks, function, answer, state))


# How Gradio says of an output that nothing changes: of a component, of a state, of HTML with a template.
NOTHING: tuple[Any, ...] = (gr.skip(), None, {"props": {"__type__": "update"}, "__type__": "update"})


@pytest.mark.parametrize("names", [(), ("seed",), ("seed", "prompt", "current"), ("generate", "links", "stage")])
def test_the_browser_is_told_the_same(page: gr.Blocks, names: tuple[str, ...]) -> None:
    """As by Gradio's own way, which builds every output anew."""
    function = next(each for each in page.fns.values() if each.api_name == "start")
    values = {"seed": 7, "prompt": "a house", "generate": gr.update(interactive=False), "links": {"a": 1}, "stage": {}}
    outputs = {block.elem_id: block for block in function.outputs if not isinstance(block, gr.State)}
    answer = {outputs[name]: values[name] for name in names if name in values}
    if "current" in names:
        answer |= {next(block for block in function.outputs if isinstance(block, gr.State)): {"ids": ["x"]}}
    ours, theirs = (sent(page, kind, function, answer or gr.skip()) for kind in (type(page), gr.Blocks))
    assert [value for value in ours if value not in NOTHING] == [value for value in theirs if value not in NOTHING]
    told = [block.elem_id for block, value in zip(function.outputs, ours, strict=True) if value not in NOTHING]
    assert sorted(told) == sorted(set(names) & set(values))
    assert len(ours) == len(theirs)


def test_an_answer_for_somebody_else_is_refused_as_ever(page: gr.Blocks) -> None:
    function = next(each for each in page.fns.values() if each.api_name == "resize")
    stranger = next(block for block in page.blocks.values() if getattr(block, "elem_id", None) == "prompt")
    with pytest.raises(ValueError, match="not specified as output"):
        sent(page, type(page), function, {stranger: "a house"})


def test_a_nap_ends_when_somebody_wakes_it() -> None:
    async def nap(seconds: float, wake_after: float | None) -> float:
        began, sleep = time.monotonic(), gradio_inside.Nap(seconds)
        if wake_after is not None:
            asyncio.get_running_loop().call_later(wake_after, sleep.woken.set)
        assert await gradio_inside.Nap.sleep(sleep, "slept") == "slept"
        assert not sleep.woken.is_set(), "the next nap is one"
        return time.monotonic() - began

    assert run(nap(60, 0.01)) < 30
    assert run(nap(0.05, None)) >= 0.04
    assert run(gradio_inside.Nap.sleep(0, "at once")) == "at once"
