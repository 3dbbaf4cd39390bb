"""One diffusion picture on N devices: displaced patch parallelism (DistriFusion, CVPR 2024) for diffusers pipelines.

Names are imported on first use, so that `import distri_engine` costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distri_engine.config import DistriConfig, Parallelism, SplitScheme, SyncMode
    from distri_engine.controlnet import parallel_controlnet
    from distri_engine.engine import Engine
    from distri_engine.errors import EngineError, MeshError, ModelError, UnsupportedError
    from distri_engine.mesh import Mesh, open_mesh
    from distri_engine.pipelines import (
        DistriSDControlNetPipeline,
        DistriSDImg2ImgPipeline,
        DistriSDInpaintPipeline,
        DistriSDPipeline,
        DistriSDXLControlNetPipeline,
        DistriSDXLImg2ImgPipeline,
        DistriSDXLInpaintPipeline,
        DistriSDXLPipeline,
    )
    from distri_engine.request import GenerationRequest, Scheduler
    from distri_engine.unet import ParallelUNet

_HOME = {
    "DistriConfig": "config",
    "Parallelism": "config",
    "SplitScheme": "config",
    "SyncMode": "config",
    "Engine": "engine",
    "EngineError": "errors",
    "MeshError": "errors",
    "ModelError": "errors",
    "UnsupportedError": "errors",
    "Mesh": "mesh",
    "open_mesh": "mesh",
    "DistriSDControlNetPipeline": "pipelines",
    "DistriSDImg2ImgPipeline": "pipelines",
    "DistriSDInpaintPipeline": "pipelines",
    "DistriSDPipeline": "pipelines",
    "DistriSDXLControlNetPipeline": "pipelines",
    "DistriSDXLImg2ImgPipeline": "pipelines",
    "DistriSDXLInpaintPipeline": "pipelines",
    "DistriSDXLPipeline": "pipelines",
    "GenerationRequest": "request",
    "Scheduler": "request",
    "ParallelUNet": "unet",
    "parallel_controlnet": "controlnet",
}

__all__ = [
    "DistriConfig",
    "DistriSDControlNetPipeline",
    "DistriSDImg2ImgPipeline",
    "DistriSDInpaintPipeline",
    "DistriSDPipeline",
    "DistriSDXLControlNetPipeline",
    "DistriSDXLImg2ImgPipeline",
    "DistriSDXLInpaintPipeline",
    "DistriSDXLPipeline",
    "Engine",
    "EngineError",
    "GenerationRequest",
    "Mesh",
    "MeshError",
    "ModelError",
    "ParallelUNet",
    "Parallelism",
    "Scheduler",
    "SplitScheme",
    "SyncMode",
    "UnsupportedError",
    "open_mesh",
    "parallel_controlnet",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'distri_engine' has no attribute {name!r}")
    return getattr(importlib.import_module(f"distri_engine.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
