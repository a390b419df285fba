"""setup.cfg lists exactly the files and packages that exist."""

from configparser import ConfigParser

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import ROOT


def test_setup_cfg_lists_every_package():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    folders = {file.parent.relative_to(ROOT) for file in (ROOT / "a2tgpo_trl").rglob("*.py")}
    assert listed == {".".join(folder.parts) for folder in folders} | {"a2tgpo_trl.recipes"}


def test_each_kind_of_file_among_the_recipes_is_packaged():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns, recipes = setup["options.package_data"]["a2tgpo_trl.recipes"].split(", "), ROOT / "recipes"
    packaged = {file for pattern in patterns for file in recipes.glob(pattern)}
    others = (".md", ".png", ".pyc", ".parquet", ".lock")  # files to read in the repository, and results of studies
    there = {file for file in recipes.rglob("*") if file.is_file() and file.suffix not in others}
    assert packaged == there


@pytest.mark.parametrize(
    ("extra", "file"),
    [("test", "constraints.txt"), ("textworld", "constraints.txt"), ("test-vllm", "constraints_vllm.txt")],
)
def test_each_test_requirement_is_pinned_within_its_range(extra, file):
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    asked = setup["options"]["install_requires"] + setup["options.extras_require"][extra]
    pinned = (line.split("==") for line in (ROOT / "tests" / file).read_text().splitlines())
    versions = {canonicalize_name(name): version for name, version in pinned}
    for library in map(Requirement, filter(None, asked.splitlines())):
        assert library.specifier.contains(versions[canonicalize_name(library.name)]), library


def test_each_requirement_has_an_upper_bound():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    asked = "".join([setup["options"]["install_requires"], *extras.values()])
    for library in map(Requirement, filter(None, asked.splitlines())):
        assert any(bound.operator in ("<", "<=", "==") for bound in library.specifier), library
