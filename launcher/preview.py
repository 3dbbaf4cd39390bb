"""Small pictures of unfinished latents, made on a thread of their own so that no step waits for one. How latents become
colours is the engine's business.
"""

from __future__ import annotations

import base64
import io
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

EVERY_STEPS = 2
PERIOD_S = 0.2
SIDE = 320  # pixels at most
_log = logging.getLogger(__name__)


class Previewer:
    """Takes the latents of some steps, and hands on JPEG data URIs as (request id, uri)."""

    def __init__(self, picture: Callable[[Any], Any], publish: Callable[[str, str], None]) -> None:
        self._picture = picture
        self._publish = publish
        self._offered: tuple[str, Any] | None = None
        self._wake = threading.Condition()
        threading.Thread(target=self._run, name="preview", daemon=True).start()

    def offer(self, req: str, step: int, latents: Any) -> None:
        """Latents after `step`; they are dropped if a newer offer comes first."""
        if step % EVERY_STEPS == 0 and latents is not None:
            with self._wake:
                self._offered = (req, latents)
                self._wake.notify()

    def clear(self) -> None:
        """Forget what was offered: the picture is over."""
        with self._wake:
            self._offered = None

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._offered is not None)
                assert self._offered is not None
                req, latents = self._offered
                self._offered = None
            try:
                self._publish(req, data_uri(self._picture(latents)))
            except Exception:  # a picture without previews is still a picture
                _log.exception("no preview")
            del latents
            time.sleep(PERIOD_S)


def data_uri(image: Any) -> str:
    """A PIL picture as a JPEG data URI, enlarged or reduced to SIDE pixels."""
    scale = SIDE / max(image.size)
    image = image.convert("RGB").resize([max(1, round(side * scale)) for side in image.size])
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
