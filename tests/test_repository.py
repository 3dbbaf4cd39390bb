"""What stands in the repository beside the code: the README's promises, the pins, the licence, the commands."""

from __future__ import annotations

import json
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from huggingface_hub import metadata_load

from launcher.model import SDXL

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SPACE_COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")


def pins(name: str) -> dict[str, str]:
    """Package -> version of a requirements file."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(match.groups() for line in lines if (match := re.match(r"([\w-]+)==(\S+)", line)))


@pytest.mark.parametrize(
    "name", ["requirements.txt", "requirements-mcp.txt", "requirements-ray.txt", "requirements-dev.txt"]
)
def test_every_requirement_is_pinned_and_says_why(name: str) -> None:
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", "-r ")):
            assert re.fullmatch(r"[\w-]+(\[\w+\])?==[\d.]+ +# \S.+", line), line


def test_tests_run_with_the_pinned_versions() -> None:
    for package, pinned in pins("requirements.txt").items():
        assert version(package).split("+")[0] == pinned, package


def test_front_matter_of_the_space() -> None:
    about = metadata_load(ROOT / "README.md")
    assert about is not None
    assert about["sdk"] == "gradio"
    assert about["sdk_version"] == pins("requirements.txt")["gradio"]
    assert (ROOT / about["app_file"]).is_file()
    assert len(about["short_description"]) <= 60
    assert all(about[name] in SPACE_COLOURS for name in ("colorFrom", "colorTo"))
    (preloaded,) = about["preload_from_hub"]  # "repository file,file,..."
    repository, files = preloaded.split(" ")
    assert [repository] == about["models"] == [SDXL]
    parts = {file.rpartition("/")[0] for file in files.split(",")}
    texts = {"text_encoder", "text_encoder_2"}
    assert parts == {"", "scheduler", "unet", "vae", "tokenizer", "tokenizer_2", *texts}
    weights = {file.partition("/")[0] for file in files.split(",") if file.endswith(".safetensors")}
    assert weights == {"unet", "vae", *texts}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert about["license"].lower() == project["license"].lower() == "apache-2.0"
    assert project["requires-python"] == f">={about['python_version']}"


def test_the_container_holds_what_it_needs_and_is_nobody_s_root() -> None:
    words = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in words.splitlines() if line and not line.startswith(("#", " "))]
    about = metadata_load(ROOT / "README.md")
    assert about is not None
    assert dict(steps)["FROM"].startswith(f"python:{about['python_version']}-")
    assert (dict(steps)["USER"], dict(steps)["EXPOSE"], dict(steps)["VOLUME"]) == ("user", "7860", "/data")
    names = [name for name, _ in steps]
    assert names.index("USER") > max(at for at, name in enumerate(names) if name in ("RUN", "COPY"))
    assert json.loads(dict(steps)["ENTRYPOINT"]) == ["python", about["app_file"], "--host", "0.0.0.0"]
    wanted = {source.rstrip("/") for name, rest in steps if name == "COPY" for source in rest.split()[:-1]}
    assert all((ROOT / source).exists() for source in wanted)
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in lines if line.startswith("!")} == wanted
    assert "*" in lines


def test_readme_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'<img src="([^"]+)"', README):
        if not target.startswith("http"):
            assert (ROOT / target).is_file(), target


def test_readme_commands_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for target in re.findall(r"\bmake ([a-z]+) {2,}#|`make ([a-z]+)`", README):
        assert "".join(target) in targets
    for module in re.findall(r"python -m ([\w.]+)", README):
        path = ROOT.joinpath(*module.split("."))
        if module.split(".")[0] in ("launcher", "distri_engine", "assets"):
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_tests_that_the_readme_names_exist() -> None:
    files = list((ROOT / "tests").rglob("*.py"))
    known = {path.name for path in files}
    known |= {name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}
    named = set(re.findall(r"`(test_\w+(?:\.py)?)`", README))
    assert named
    assert named <= known, sorted(named - known)


def test_readme_python_parses() -> None:
    for block in re.findall(r"```python\n(.+?)```", README, re.DOTALL):
        compile(block, "README.md", "exec")


def test_licence_text() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
