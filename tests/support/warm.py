"""What every rank of a test finds when it is forked: the modules that its tests import, and the tiny models, made once
and inherited. Only the server that forks them imports this.
"""

from __future__ import annotations

import peft  # noqa: F401 - imported once instead of on every rank
import pytest  # noqa: F401

import distri_engine.controlnet
import distri_engine.engine
import distri_engine.pipelines  # noqa: F401
from tests.support.models import tiny_sd15_unet, tiny_sdxl_unet, tiny_vae

tiny_sdxl_unet(), tiny_sd15_unet(), tiny_vae()
