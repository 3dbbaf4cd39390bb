"""Has the planner's questions answered in the background: once a group, by a process that takes only the time that
nobody else wants. What is asked and answered is measure.py's business.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from launcher.measure import Survey, Unmeasured, survey
from launcher.options import usable_cores
from launcher.schema import Status

_log = logging.getLogger(__name__)


class Surveyor:
    """Thread-safe. Nothing is started before somebody wants to know."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._found: Survey | None = None

    def found(self, status: Status) -> Survey | None:
        """The answers for this group; None as long as there are none. Does not wait."""
        with self._lock:
            if self._thread is None and status.model is not None:
                arguments = (status.device, status.ranks, status.model.path)
                self._thread = threading.Thread(target=self._ask, args=arguments, name="survey", daemon=True)
                self._thread.start()
            return self._found

    def _ask(self, name: str, ranks: int, model: str) -> None:
        device = "cpu" if name == "CPU" else "cuda"
        threads = max(1, usable_cores() // ranks)  # as many as a rank has
        try:
            self._found = survey(device, ranks, threads, unet_settings(model), quietly=True)
        except (Unmeasured, OSError) as error:
            _log.warning("%s; Auto keeps to patches on all devices", error)


def unet_settings(model: str) -> Path | None:
    """The file with the UNet's settings of a model folder, or of a Hugging Face id that was loaded here."""
    file = Path(model) / "unet" / "config.json"
    if file.is_file():
        return file
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(model, "unet/config.json")
    return Path(cached) if isinstance(cached, str) else None
