"""What setup.cfg lists is what there is."""

from configparser import ConfigParser
from pathlib import Path


ROOT = Path(__file__).parents[1]


def test_the_list_of_packages_is_whole():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    folders = {file.parent.relative_to(ROOT) for file in (ROOT / "a2tgpo_trl").rglob("*.py")}
    assert listed == {".".join(folder.parts) for folder in folders} | {"a2tgpo_trl.recipes"}


def test_each_kind_of_file_among_the_recipes_is_packaged():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["a2tgpo_trl.recipes"].split(", ")
    left_out = [
        file.name
        for file in (ROOT / "recipes").rglob("*")
        if file.is_file() and file.suffix not in (".png", ".pyc") and not any(map(file.match, patterns))
    ]
    assert not left_out
