"""What distinguishes a training from any other: its settings and the files that they name."""

from pathlib import Path

from a2tgpo_trl.recipe.recipe import MODELS
from a2tgpo_trl.study.runs import identity


def test_run_identity_changes_with_settings_or_named_files(tmp_path):
    recipe, base = tmp_path / "recipe.yaml", tmp_path / "base.yaml"
    recipe.write_text("base: base.yaml\ntools: ['more.py:tool']\n")
    base.write_text("credit: own.py:method\nseed: 1\n")
    files = [tmp_path / name for name in ("own.py", "more.py", "words.py")]
    for file in files:
        file.write_text("1")
    words = [str(recipe), "--task", f"{tmp_path / 'words.py'}:make"]
    seen = [identity(words)]
    for file in (recipe, base):
        file.write_text("# a comment\n" + file.read_text())
        assert identity([*words, "--output_dir", str(tmp_path)]) == seen[-1]
        file.write_text(file.read_text() + f"max_{'steps' if file == base else 'completion_length'}: 7\n")
        seen.append(identity(words))
    for file in files:
        file.write_text("2")
        seen.append(identity(words))
    assert len(set(seen)) == 6
    assert identity([*words, "--seed", "2"]) not in seen


def test_run_identity_changes_with_the_weights_of_a_shipped_policy(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "atlas-tiny", str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    words = [str(tmp_path / "recipe.yaml")]
    Path(words[0]).write_text("model_name_or_path: atlas-tiny\n")
    seen = identity(words)
    assert identity(words) == seen
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert identity(words) != seen


def test_where_files_are_looked_for_is_no_setting_but_what_they_contain_is(tmp_path):
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "files"
    folder.mkdir()
    recipe.write_text("credit: own.py:method\n")
    seen = identity([str(recipe)])
    recipe.write_text("credit: own.py:method\nfiles_in: files\n")
    assert identity([str(recipe)]) == seen
    (folder / "own.py").write_text("1")
    assert identity([str(recipe)]) != seen


def test_run_identity_changes_with_an_adapter_or_a_policy_of_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    for name, config in (("outputs/lora", "adapter_config.json"), ("policy", "config.json")):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / config).write_text("{}")
        (folder / "weights.safetensors").write_bytes(b"1")
        recipe.write_text(f"model_name_or_path: {name}\n")
        seen = identity([str(recipe)])
        (folder / "weights.safetensors").write_bytes(b"2")
        assert identity([str(recipe)]) != seen


def test_run_identity_ignores_files_that_a_recipe_does_not_find_first(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("credit: own.py:method\n")
    (tmp_path / "own.py").write_text("1")
    seen = identity([str(recipe)])
    Path("own.py").write_text("2")  # in the working directory, which comes last
    assert identity([str(recipe)]) == seen
    (tmp_path / "own.py").unlink()
    assert identity([str(recipe)]) != seen
