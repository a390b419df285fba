"""What happens if TextWorld is not installed."""

from a2tgpo_trl.cli import main
from a2tgpo_trl.tasks.textworld import games


def test_a_package_that_is_not_installed_is_named_with_how_to_get_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(games, "find_spec", lambda name: None)
    games.library.cache_clear()
    assert main(["check", "textworld", "--output_dir", str(tmp_path)]) == 2
    assert "pip install 'a2tgpo_trl[textworld]'" in capsys.readouterr().err
