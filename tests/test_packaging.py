"""The source distribution and the wheel made of it: what is in them, and that the demo runs from the wheel, offline."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from PIL import Image

import lens_adapter

ROOT = Path(__file__).parents[1]
NAME = f"lens_adapter-{lens_adapter.__version__}"
OUTSIDE = ("LICENSE", "README.md", "CHANGELOG.md", "MANIFEST.in", "pyproject.toml", "setup.cfg", "setup.py")
KINDS = {".py", ".typed", ".md", ".txt", ".json", ".jinja", ".safetensors", ".webp"}


def _run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def _shipped() -> set[str]:
    """Every file of the package, from the repository's root."""
    files = (path for path in (ROOT / "lens_adapter").rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """Built from links to the repository's files, where a build leaves nothing behind."""
    source = tmp_path_factory.mktemp("source")
    for name in ("lens_adapter", "tests", *OUTSIDE):
        (source / name).symlink_to(ROOT / name)
    _run("-c", "from setuptools import build_meta; build_meta.build_sdist('dist')", cwd=source)
    return source / "dist" / f"{NAME}.tar.gz"


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """Built from the source distribution, as an index would offer it; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    alone = ("--no-deps", "--no-build-isolation", "--no-cache-dir", "--no-index", "--quiet")
    _run("-m", "pip", "wheel", *alone, "--wheel-dir", folder, sdist, cwd=folder)
    return folder / f"{NAME}-py3-none-any.whl"


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder that goes before everything else where PYTHONPATH names it."""
    folder = tmp_path_factory.mktemp("installed")
    _run("-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", folder, wheel, cwd=folder)
    return folder


def test_the_source_distribution_holds_the_package_and_what_builds_it(sdist):
    with tarfile.open(sdist) as archive:
        files = {member.name.removeprefix(f"{NAME}/") for member in archive.getmembers() if member.isfile()}
    made = {"PKG-INFO", *(name for name in files if name.startswith("lens_adapter.egg-info/"))}
    assert files - made == {*_shipped(), *OUTSIDE}


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if not name.startswith(f"{NAME}.dist-info/")}
        about = {name.removeprefix(f"{NAME}.dist-info/") for name in archive.namelist()} - files
        metadata = archive.read(f"{NAME}.dist-info/METADATA").decode()
    assert files == _shipped()
    assert {PurePosixPath(name).suffix or PurePosixPath(name).name for name in files} <= KINDS
    assert "lens_adapter/py.typed" in files and "lens_adapter/builtin/vlm/model.safetensors" in files
    assert {"licenses/LICENSE", "licenses/lens_adapter/builtin/world/OFL.txt", "entry_points.txt"} <= about
    assert f"\nVersion: {lens_adapter.__version__}\n" in metadata
    for extra in ("app", "serve", "supervision", "datasets", "test", "docs"):
        assert f"\nProvides-Extra: {extra}\n" in metadata
        assert f"`{extra}`" in (ROOT / "README.md").read_text() and f"`{extra}`" in (ROOT / "docs/index.md").read_text()


def test_the_demo_runs_from_the_wheel_without_a_network(installed, tmp_path):
    lonely = {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    said = _run("-c", "import lens_adapter; print(lens_adapter.__file__)", cwd=tmp_path, **lonely)
    assert Path(said.strip()) == installed / "lens_adapter" / "__init__.py"
    said = _run("-m", "lens_adapter", "demo", cwd=tmp_path, **lonely)
    assert "Wrote lens-demo.png" in said and "identical" in said and "DIFFERENT" not in said
    with Image.open(tmp_path / "lens-demo.png") as picture:
        assert picture.width > 1000
    assert {path.name for path in tmp_path.iterdir()} <= {"lens-demo.png", "hub"}


def test_the_version_comes_from_one_place(installed, tmp_path):
    said = _run("-m", "lens_adapter", "--version", cwd=tmp_path, PYTHONPATH=str(installed))
    assert said.split()[-1] == lens_adapter.__version__
    written = [name for name in OUTSIDE if name.endswith((".cfg", ".toml", ".py"))]
    assert not [name for name in written if lens_adapter.__version__ in (ROOT / name).read_text()]
