"""Who may import whom, and what may stand where. Read from the source with ast, so that a shortcut fails here before it
becomes a habit; the README's tree is held to the files that exist.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = sorted([ROOT / "app.py", *(ROOT / "distri_engine").rglob("*.py"), *(ROOT / "launcher").rglob("*.py")])
ENGINE = [path for path in PRODUCT if path.is_relative_to(ROOT / "distri_engine")]

# The engine from its roof to its cellar. A module imports what stands on its own floor or below, never above.
FLOORS = (
    {"engine", "evaluation"},
    {"from_picture"},
    {"pipelines", "arguments", "loading", "relay", "preview"},
    {"sampling"},
    {"controlnet", "lora"},
    {"unet", "vae", "graphs", "imprint", "tape"},
    {"parallel_model"},
    {"methods"},
    {"plan"},
    {"layers"},
    {"exchange", "slots", "buckets", "boards", "ledger"},
    {"mesh"},
    {"shared_memory"},
    {"bands", "step"},
    {"request"},
    {"config"},
    {"errors", "telemetry", "load"},
)
# DistriConfig.rank, world_size and device ask the mesh, inside the property.
LAZY_EXCEPTIONS = {("config", "mesh")}

# The only files of the engine that know how bytes reach another rank.
TRANSPORT = ("mesh.py", "shared_memory.py")

# What the page, the API and the command line may import without paying for torch.
TORCH_FREE = (
    "distri_engine",
    "distri_engine.bands",
    "distri_engine.config",
    "distri_engine.evaluation.coco",
    "distri_engine.evaluation.experience",
    "distri_engine.evaluation.planner",
    "distri_engine.request",
    "distri_engine.telemetry",
    "launcher.__main__",
    "launcher.auto",
    "launcher.client",
    "launcher.schema",
)

# Ways of running what somebody else wrote. Weights are safetensors, messages JSON or tensors.
UNTRUSTED = {"pickle", "dill", "marshal", "shelve", "torch.load", "trust_remote_code", "builtin eval", "builtin exec"}


@cache
def parsed(path: Path) -> ast.Module:
    """Its syntax tree, which many tests walk."""
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    """The dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names that a file imports, and whether it does so at import time (not inside a function)."""
    tree = parsed(path)
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in lazy
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            assert node.module
            yield node.module, id(node) not in lazy
            for alias in node.names:  # `from launcher import wire` imports a module too
                yield f"{node.module}.{alias.name}", id(node) not in lazy


def strings_of(path: Path) -> Iterator[str]:
    """Every string of a file that is not a docstring."""
    tree = parsed(path)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def names_of(path: Path) -> set[str]:
    """Every name, attribute and keyword that a file mentions."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Name):
            found.add(node.id)
            if node.id in ("eval", "exec"):  # module.eval() is something else
                found.add(f"builtin {node.id}")
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
            if isinstance(node.value, ast.Name):
                found.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.keyword) and node.arg:
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add(node.name)
    return found


def floor_of(module: str) -> int:
    """Floor of an engine module, counted from the roof."""
    name = module.split(".")[1]
    matching = [number for number, floor in enumerate(FLOORS) if name in floor]
    assert matching, f"{module} stands on no floor; give it one in FLOORS"
    return matching[0]


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_houses_look_down_only(path: Path) -> None:
    houses = ("distri_engine", "launcher", "app")
    own = houses.index(name_of(path).split(".")[0])
    above = set(houses[own + 1 :])
    assert not {name for name, _ in imports_of(path) if name.split(".")[0] in above}


@pytest.mark.parametrize("path", [path for path in ENGINE if name_of(path) != "distri_engine"], ids=name_of)
def test_engine_imports_downwards(path: Path) -> None:
    module = name_of(path)
    for name, at_import in imports_of(path):
        if not name.startswith("distri_engine."):
            continue
        if (module.split(".")[1], name.split(".")[1]) in LAZY_EXCEPTIONS and not at_import:
            continue
        assert floor_of(name) >= floor_of(module), f"{module} imports {name}, which stands above it"


def test_engine_knows_no_page_and_no_processes() -> None:
    strangers = {"gradio", "socket", "subprocess", "multiprocessing", "http", "fastapi"}
    for path in ENGINE:
        found = strangers & {name.split(".")[0] for name, _ in imports_of(path)}
        assert found <= ({"socket"} if path.name in TRANSPORT else set()), path


def test_only_the_page_knows_gradio() -> None:
    for path in PRODUCT:
        if path.name not in {"app.py", "gradio_inside.py"}:
            assert "gradio" not in {name.split(".")[0] for name, _ in imports_of(path)}, path


def test_launcher_imports_torch_in_the_group_only() -> None:
    """Everything else that needs it does so inside a function, after the process has become a rank or an agent."""
    for path in PRODUCT:
        if path.is_relative_to(ROOT / "launcher") and path.name not in {"group.py", "node_store.py"}:
            eager = {name.split(".")[0] for name, at_import in imports_of(path) if at_import}
            assert not eager & {"torch", "diffusers", "transformers"} or _only_for_types(path), path


def _only_for_types(path: Path) -> bool:
    """Whether torch is imported for annotations alone, under `if TYPE_CHECKING`."""
    guarded = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for inner in ast.walk(node):
                if isinstance(inner, ast.Import):
                    guarded |= {alias.name.split(".")[0] for alias in inner.names}
    return "torch" in guarded


def test_torch_free() -> None:
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    code += "    if 'torch' in sys.modules: sys.exit(f'{name} imports torch')"
    done = subprocess.run(
        [sys.executable, "-c", code, *TORCH_FREE], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_only_the_mesh_names_backends_and_ranks() -> None:
    """Only mesh.py says "nccl", "gloo", "cuda:" or reads torchrun's variables."""
    forbidden = re.compile(r"\b(nccl|gloo|RANK|LOCAL_RANK|WORLD_SIZE)\b|cuda:")
    for path in ENGINE:
        if path.name != "mesh.py":
            found = [text for text in strings_of(path) if forbidden.search(text)]
            assert not found, f"{path}: {found}"


def test_process_groups_have_two_owners() -> None:
    owners = {ROOT / "launcher" / "group.py", ROOT / "distri_engine" / "mesh.py"}
    for path in PRODUCT:
        if path not in owners:
            assert not {"init_process_group", "destroy_process_group"} & names_of(path), path


def test_nothing_is_unpickled_and_no_foreign_code_is_run() -> None:
    for path in [*PRODUCT, *(ROOT / "assets").rglob("*.py")]:
        names = names_of(path)
        assert not names & UNTRUSTED, path
        collectives = {name for name in names if re.search(r"[a-z]_object(_list)?$", name)}
        assert not collectives, f"{path}: {collectives}"


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_modules_open_with_a_docstring(path: Path) -> None:
    assert ast.get_docstring(parsed(path)), f"{path} does not say what it owns"


def tree_in_readme() -> set[str]:
    """Files that the README's tree names, as paths. Folders end in a slash; two spaces indent a level."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("\n## The tree\n")[1].split("```")[1]
    folders: list[str] = []
    files = set()
    for line in section.splitlines():
        match = re.match(r"((?:  )*)([\w.-]+/?)(?: |$)", line)
        if not match:
            continue
        depth, name = len(match[1]) // 2, match[2]
        del folders[depth:]
        if name.endswith("/"):
            folders.append(name)
        else:
            files.add("".join(folders) + name)
    return files


def test_readme_tree_is_true() -> None:
    named = {file for file in tree_in_readme() if file.startswith(("distri_engine/", "launcher/"))}
    existing = set()
    for house in ("distri_engine", "launcher"):
        for path in (ROOT / house).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and not _says_nothing(path):
                existing.add(path.relative_to(ROOT).as_posix())
    assert named == existing, f"missing: {sorted(existing - named)}; gone: {sorted(named - existing)}"


def _says_nothing(path: Path) -> bool:
    """Whether it is a package's __init__.py with nothing but a docstring."""
    return path.name == "__init__.py" and len(parsed(path).body) <= 1
