"""The API as MCP tools: exactly three, described, and they work; none without --mcp."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from launcher.options import Options
from launcher.web.manual import PARAMETERS
from tests.support.fake_client import FakeClient
from tests.support.processes import free_port

Talk = Callable[[Callable[[Any], Awaitable[Any]]], Any]
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def port(page_server: tuple[str, FakeClient]) -> int:
    """Where a page with tools listens."""
    import app

    port = free_port()
    app.serve(page_server[1], Options(host="127.0.0.1", port=port, mcp=True))  # page_server closes it with its own
    return port


@pytest.fixture(scope="module")
def talk(port: int) -> Talk:
    """A function that has a client session with these tools."""

    def run(talking: Callable[[Any], Awaitable[Any]]) -> Any:
        from mcp import ClientSession
        from mcp.client.streamable_http import streamable_http_client

        async def session() -> Any:
            async with (
                streamable_http_client(f"http://127.0.0.1:{port}/gradio_api/mcp/") as (read, write, _),
                ClientSession(read, write) as client,
            ):
                await client.initialize()
                return await talking(client)

        with ThreadPoolExecutor(1) as pool:  # the browser's loop runs in this thread
            return pool.submit(asyncio.run, session()).result(120)

    return run


def test_exactly_three_tools_and_every_parameter_is_described(talk: Talk) -> None:
    tools = {tool.name: tool for tool in talk(lambda client: client.list_tools()).tools}
    assert set(tools) == {"generate", "compare", "status"}
    assert tools["generate"].description.startswith("Make one picture.")
    described = tools["generate"].inputSchema["properties"]
    assert {name: about["description"] for name, about in described.items()} == PARAMETERS
    assert set(tools["compare"].inputSchema["properties"]) < set(PARAMETERS)
    assert tools["status"].inputSchema["properties"] == {}


def test_they_work(talk: Talk, fake: FakeClient) -> None:
    async def call(client: Any) -> tuple[Any, Any]:
        return await client.call_tool("status", {}), await client.call_tool("generate", {"prompt": "x", "steps": 3})

    status, made = talk(call)
    assert "'state': 'ready'" in status.content[0].text
    pictures = [part for part in made.content if part.type == "image"]
    assert [Image.open(io.BytesIO(base64.b64decode(part.data))).size for part in pictures] == [(256, 256)]
    assert fake.submitted[0][0].steps == 3
    refused = talk(lambda client: client.call_tool("generate", {"prompt": "x", "steps": 0}))
    assert refused.isError
    assert "Steps 0 is out of range" in refused.content[0].text


def test_the_readmes_examples_work(port: int, fake: FakeClient, tmp_path: Path) -> None:
    part = README.read_text(encoding="utf-8").split("\n## As an API\n")[1].split("\n## ")[0]
    examples = re.findall(r"```(python|sh)\n(.+?)```", part.replace("127.0.0.1:7860", f"127.0.0.1:{port}"), re.DOTALL)
    python = "\n".join(text for kind, text in examples if kind == "python")
    curl = next(text for kind, text in examples if kind == "sh" and "curl" in text)
    tries = [([sys.executable, "-c", python], "'state': 'ready'", 9, 4)]
    if shutil.which("curl"):
        tries.append((["bash", "-ec", curl], '"state": "ready"', 9 + 4, 4 + 3))
    Image.new("RGB", (256, 256), "red").save(tmp_path / "house.png")  # theirs takes its place
    for command, status, requests, pictures in tries:
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        assert status in ran.stdout
        assert len(fake.submitted) == requests
        assert [Image.open(path).size for path in tmp_path.glob("*.png")] == [(256, 256)] * pictures


def test_without_the_option_there_are_none(page_server: tuple[str, FakeClient]) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(page_server[0] + "gradio_api/mcp/")
