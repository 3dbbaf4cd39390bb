"""The addresses on the page's port that are not the page: what machines ask, the zip of a run, and which of Gradio's
own stay shut. What they answer is probes.py's and bundle.py's.
"""

import tempfile
from typing import TYPE_CHECKING, Any

from launcher import limits
from launcher.client import Client
from launcher.web import bundle, probes

if TYPE_CHECKING:
    from starlette.middleware import Middleware
    from starlette.routing import Route


def publish_bundle(server: Any, client: Client) -> None:
    """The address of the zip, open to whom Gradio shows the page. Gradio's own downloads are files that stay behind."""
    from fastapi import HTTPException, Query
    from fastapi.responses import StreamingResponse
    from starlette.background import BackgroundTask

    guard = next(route.dependencies for route in server.routes if getattr(route, "path", "") == "/config")

    def send(id: list[str] = Query()) -> StreamingResponse:  # noqa: B008 - so FastAPI wants it
        file = tempfile.SpooledTemporaryFile(2**24)  # noqa: SIM115 - open until it is sent; has no name, and is gone when it is closed
        try:
            bundle.write(takes := bundle.find(client, id), file)
        except (ValueError, OSError):
            file.close()
            raise HTTPException(404, "These pictures are not here.") from None
        size, seed = file.tell(), next(iter(takes.values())).request["seed"]
        file.seek(0)
        headers = {
            "Content-Length": str(size),
            "Content-Disposition": f'attachment; filename="distrifusion-{seed}.zip"',
        }
        return StreamingResponse(
            iter(lambda: file.read(2**18), b""),
            headers=headers,
            media_type="application/zip",
            background=BackgroundTask(file.close),
        )

    server.add_api_route("/gradio_api/bundle.zip", send, dependencies=guard, include_in_schema=False)


def routes(client: Client, auth: tuple[str, str] | None) -> list["Route"]:
    """What machines ask, on the page's own port."""
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    def healthz(_: Request) -> Response:
        return Response(**probes.healthz(client))

    def metrics(request: Request) -> Response:
        return Response(**probes.metrics(client, request.headers.get("authorization", ""), auth))

    def closed(_: Request) -> Response:
        return Response("this page takes no files and fetches none\n", status_code=403, media_type="text/plain")

    # Gradio's own ways to leave files here, and to have this machine fetch them from others. Nothing here uses them.
    names = ("upload", "deep_link", "process_recording", "file=http{_:path}", "file/http{_:path}", "proxy={_:path}")
    shut = [Route(f"/gradio_api/{name}", closed, methods=["GET", "POST"]) for name in names]
    return [Route("/healthz", healthz), Route("/metrics", metrics), *shut]


def small_bodies() -> "Middleware":
    """What refuses floods."""
    from starlette.middleware import Middleware

    return Middleware(limits.SmallBodies, limit=limits.BODY_BYTES)
