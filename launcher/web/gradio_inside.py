"""Where Gradio's inside is changed, because it works for nothing at every event, or packs answers wrongly; with app.py
the only file that knows Gradio. tests/page/test_costs.py and test_mcp.py hold each change to Gradio's own results.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gradio as gr


def blocks_of_few_words() -> type[gr.Blocks]:
    """Blocks that leave alone what an event does not change: Gradio builds every output anew, changed or not."""
    import gradio as gr  # two seconds and 100 MB, which only rank 0 needs

    class BlocksOfFewWords(gr.Blocks):
        async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
            """What goes to the browser, one value an output."""
            if not (isinstance(predictions, dict) and all(isinstance(key, gr.blocks.Block) for key in predictions)):
                return await super().postprocess_data(block_fn, predictions, state)
            changed = copy(block_fn)
            changed.outputs = [block for block in block_fn.outputs if block in predictions]
            if len(changed.outputs) < len(predictions):  # some are none of the event's outputs: Gradio says so
                changed = block_fn
            values = await super().postprocess_data(changed, predictions, state) if predictions else []
            sent = dict(zip((block._id for block in changed.outputs), values, strict=True))
            return [
                sent.get(block._id, None if getattr(block, "stateful", False) else gr.skip())
                for block in block_fn.outputs
            ]

    return BlocksOfFewWords


class Nap(float):
    """Seconds that somebody sleeps, unless `woken` is set before."""

    def __init__(self, _: float) -> None:
        self.woken = asyncio.Event()

    @staticmethod
    async def sleep(delay: float, result: Any = None) -> Any:
        """As asyncio.sleep, which knows no naps."""
        if not isinstance(delay, Nap):
            return await asyncio.sleep(delay, result)
        with suppress(TimeoutError):
            await asyncio.wait_for(delay.woken.wait(), float(delay))
        delay.woken.clear()
        return result


def wake_by_events(queue: Any) -> None:
    """Gradio looks every millisecond whether there is something to do: 5 % of a core for nothing, or a click that waits
    if it looks less often. Here it looks when something came or ended, and once a second in case it missed that.
    """
    from gradio import queueing

    nap = queue.sleep_when_free = Nap(1)

    def waking(function: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return await function(*args, **kwargs)
            finally:
                nap.woken.set()

        return call

    queue.push, queue.process_events = waking(queue.push), waking(queue.process_events)
    asyncio_with_naps = ModuleType("asyncio")
    vars(asyncio_with_naps).update(vars(asyncio), sleep=Nap.sleep)
    queueing.asyncio = asyncio_with_naps


def unwrap_answers(tools: Any) -> None:
    """Gradio takes all a function answers for one thing, unless the MCP client follows progress: its pictures would
    arrive as words.
    """
    execute = tools._execute_tool_without_progress

    async def unwrapped(job: Any) -> list[Any]:
        (answer,) = await execute(job)
        return list(answer) if isinstance(answer, tuple) else [answer]

    tools._execute_tool_without_progress = unwrapped
