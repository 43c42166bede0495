"""Settings that are listed by hand for setuptools agree with the files."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_package_is_named_in_pyproject():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    found = {
        ".".join(file.parent.relative_to(ROOT / "src").parts)
        for file in (ROOT / "src" / "llm").rglob("__init__.py")
    }
    assert set(settings["packages"]) == found | {"llm.conf"}


def test_constraints_are_versions_only():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    for pin in pins:
        name, equals, version = pin.partition("==")
        assert equals, pin
        assert name.strip() == name
        assert "/" not in version
        assert "@" not in pin


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    }
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    for requirement in wanted:
        name = requirement.split("[")[0].split(">")[0].split("=")[0].strip().lower()
        assert name == "llm-hydra" or name in pinned, requirement


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The unpacked wheel, built from a copy of the tracked files."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, source / name)
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_every_module_and_every_config(unpacked):
    for folder, kept in (
        (ROOT / "src" / "llm", unpacked / "llm"),
        (ROOT / "conf", unpacked / "llm/conf"),
    ):
        for file in chain(folder.rglob("*.py"), folder.rglob("*.yaml")):
            assert (kept / file.relative_to(folder)).is_file(), file


def test_the_wheel_trains_and_writes_from_any_folder(unpacked, tmp_path):
    """Without the checkout: the package in site/ is imported, with its own configs."""
    (tmp_path / "notes.txt").write_text("It was a dark and stormy night. " * 200)
    environment = os.environ | {"PYTHONPATH": str(unpacked), "LLM_CACHE": str(tmp_path / "cache")}
    train = [
        *("train", "data=text", "data.path=notes.txt", "tokenizer=byte", "size=nano", "name=wheel"),
        *("trainer.max_steps=2", "hardware=cpu", "callbacks.samples.max_tokens=2"),
    ]
    write = ["generate", "weights.path=outputs/pretraining/wheel", "prompt=It was", "max_tokens=5"]
    code = (
        "import sys, llm.conf; from llm.__main__ import main\n"
        f"for words in {train}, {write}: print(); sys.argv = ['llm', *words]; main()\n"
        "print(); print(llm.__file__, *llm.conf.__path__)"
    )
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *_, written, where = done.stdout.split("\n\n")
    assert written.startswith("It was")
    assert where.count(str(unpacked)) == 2
