"""The reference on the terminal: one page per topic, without imports that take seconds."""

import subprocess
import sys

import pytest

from a2tgpo_trl.cli import build_parser, main
from a2tgpo_trl.cli.help import PAGES, page
from a2tgpo_trl.tools.python.levels import table


@pytest.mark.parametrize("topic", PAGES)
def test_a_topic_has_a_page(topic, capsys):
    assert main(["help", *topic.split()]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) > 5
    assert all(len(line) < 120 for line in shown.splitlines())
    assert main(["help", topic.replace(" ", "-")]) == 0 and capsys.readouterr().out == shown


def test_the_commands_of_the_page_on_evaluation_are_commands():
    lines = [line.partition("#")[0].split() for line in page("evaluation").splitlines()]
    commands = [words[1:] for words in lines if words[:1] == ["a2tgpo"]]
    assert [words[0] for words in commands] == ["eval", "eval", "paired", "answerable"]
    for words in commands:
        _, others = build_parser().parse_known_args(words)
        assert others == (["--seed", "1"] if "--seed" in words else [])  # keys of the recipe


def test_without_a_topic_all_are_listed_with_a_line_each(capsys):
    assert main(["help"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.strip().partition("   ")[0] for line in listed if line.startswith("    ")] == list(PAGES)
    assert all(len(line) <= 100 for line in listed)


def test_an_unknown_topic_names_the_nearest(capsys):
    assert main(["help", "tool"]) == 2
    assert "There is no page on 'tool'. Did you mean 'tools'?" in capsys.readouterr().err


def test_the_page_on_python_ends_with_what_each_level_does_not_stop(capsys):
    assert main(["help", "python"]) == 0
    assert capsys.readouterr().out.rstrip().endswith(table())


@pytest.mark.parametrize("topic", ["credit", "python", "metrics"])
def test_a_page_is_shown_without_importing_torch(topic):
    code = f"import sys; from a2tgpo_trl.cli import main; main(['help', '{topic}']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_help_with_a_closed_pipe_ends_without_an_error():
    words = [sys.executable, "-m", "a2tgpo_trl", "help", "settings"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as shown:
        shown.stdout.close()
        assert (shown.stderr.read(), shown.wait()) == (b"", 0)
