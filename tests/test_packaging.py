"""What setuptools is told by hand agrees with what is there."""

import tomllib
from pathlib import Path

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
    wanted = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    for requirement in wanted:
        name = requirement.split("[")[0].split(">")[0].split("=")[0].strip().lower()
        assert name == "llm" or name in pinned, requirement
