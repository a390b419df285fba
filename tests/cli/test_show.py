"""`a2tgpo show`: files of training, evaluations and notebooks; terminals, pipes; hostile text does nothing."""

import contextlib
import io
import json
import os
import pty
import re
import sys
import threading
import unicodedata
from pathlib import Path

import pytest
from recorded import HOSTILE, record, write_records, write_run

from a2tgpo_trl.cli import main
from a2tgpo_trl.rollout.reading import plain
from a2tgpo_trl.rollout.records import write_jsonl


SIDE = "--side-by-side"


def shown(capsys, *words: object) -> str:
    assert main(["show", *map(str, words)]) == 0
    return capsys.readouterr().out


# ---- who wrote it


def test_batches_of_a_step_are_not_mixed_up_and_neither_are_runs(tmp_path, capsys):
    # Each batch has a group 0; the first batch's rollouts all solved it, the second batch's all failed.
    write_records(tmp_path / "run", {1: [record(0), record(0)]})
    first = tmp_path / "run" / "rollouts" / "step-000001-rank-0.jsonl"
    second = first.with_name("step-000001-rank-0-batch-2.jsonl")
    write_jsonl(
        second, [{**json.loads(line), "rewards": {"exact_match": 0.0}} for line in first.read_text().splitlines()]
    )
    out = shown(capsys, tmp_path / "run", SIDE)
    assert re.findall(r"\d: (?:solved|failed)", out) == ["1: solved", "2: solved", "1: failed", "2: failed"]
    assert "step 1, group 0" in out and "step 1, batch 2, group 0" in out
    assert shown(capsys, tmp_path / "run", "--solved-and-failed") == ""
    write_records(tmp_path / "other", {1: [record(0, reward=0.0)]})
    out = shown(capsys, tmp_path / "run", tmp_path / "other", SIDE)
    assert f"{tmp_path / 'other'}, step 1, group 0" in " ".join(out.split())
    assert out.count("1: ") == 3
    assert shown(capsys, tmp_path / "run", tmp_path / "other", "--solved-and-failed") == ""


def test_training_rollouts_show_all_recorded_facts_of_a_turn(tmp_path, capsys):
    more = {"status": "tool_error", "turn_rewards": {"failed_call": [-1, 0]}, "ended": "over_budget", "excluded": True}
    write_records(tmp_path, {1: [record(0, credit=[-0.25], answer=["Bo", "Mr Bo"], **more)]})
    for words in ([], [SIDE]):
        out = " ".join(shown(capsys, tmp_path, *words).translate({ord("│"): " ", ord("┃"): " "}).split())
        for text in (
            *("step 1, group 0", "Who is mayor of Rome?", "search('0: Who is mayor of Rome?')"),
            *("The mayor of Rome is Bo.", "values ▁█ -9.00 -> -4.50", "gain +4.50 z -0.50 advantage +0.25"),
            *("clip x0.97 failed_call -1.00", "tool_error", "right: Bo, or Mr Bo", "ended: over_budget, left out"),
        ):
            assert text in out, (text, out)


def test_an_evaluation_and_what_a_notebook_wrote_with_json_are_read(tmp_path, capsys):
    of_training = ("outcome", "outcome_advantage", "advantages", "scores", "clip_scale", "round", "group")
    records = [{k: v for k, v in record(0).items() if k not in of_training} for _ in range(2)]
    write_jsonl(tmp_path / "rollouts.jsonl", [{**one, "row": row} for row, one in enumerate(records)])
    assert "row 1" in shown(capsys, tmp_path) and "gain +4.50" in shown(capsys, tmp_path)
    as_list, as_lines = tmp_path / "list.json", tmp_path / "lines.json"
    as_list.write_text(json.dumps([{**one, "gains": [float("nan")]} for one in records], indent=2))
    as_lines.write_text("\n".join(map(json.dumps, records)))  # no line break at the end
    for file in (as_list, as_lines):
        assert shown(capsys, file).count("Who is mayor of Rome?\n") == 2
    assert shown(capsys, as_list, "--worst-gain") == ""  # NaN is no gain
    # A column of a row may have any name.
    write_jsonl(tmp_path / "named.jsonl", [{**one, "group": "easy"} for one in records])
    assert "2: solved" in shown(capsys, tmp_path / "named.jsonl", SIDE)


def test_incomplete_last_line_is_left_out_even_within_a_character(tmp_path, capsys):
    file = tmp_path / "rollouts.jsonl"
    write_jsonl(file, [record(0), record(1, said="日本")])
    whole = file.read_bytes()
    middle = whole.index("本".encode()) + 1
    for end in (middle, middle + 2, len(whole) - 2):
        file.write_bytes(whole[:end])
        assert shown(capsys, file).count("Who is mayor of Rome?\n") == 1


def test_show_filters_can_be_combined(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    records = [json.loads(line) for file in sorted(run.glob("rollouts/*")) for line in file.read_text().splitlines()]
    mixed = {}
    for one in records:
        mixed.setdefault((one["step"], one["group"]), set()).add(one["rewards"]["exact_match"])
    failed = [one for one in records if len(mixed[one["step"], one["group"]]) == 2 and not one["outcome"]]
    assert failed
    out = shown(capsys, run, "--failed", "--solved-and-failed", "--worst-gain", "--grep", "word", "-n", 100)
    lowest = [min(one["gains"]) for one in failed]
    assert out.count("right: Bo") == len(failed) and f"gain {min(lowest):+.2f}" in out.partition("right:")[0]
    assert main(["show", str(run), "-n", "0"]) == 2


# ---- terminals and pipes


def on_terminal(monkeypatch, columns: int, *words: object) -> str:
    """What the command writes to a terminal with this many columns."""
    ours, theirs = pty.openpty()
    found: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # reading a closed terminal raises
            while True:
                found.append(os.read(ours, 65536))

    reader = threading.Thread(target=read)
    reader.start()
    for name, value in (("COLUMNS", str(columns)), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    with monkeypatch.context() as patched, os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        patched.setattr(sys, "stdout", terminal)
        assert main(["show", *map(str, words)]) == 0
    reader.join()
    os.close(ours)
    return b"".join(found).decode()


COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.parametrize("columns", [30, 60, 200])
def test_a_terminal_has_colours_and_lines_of_its_width(columns, tmp_path, monkeypatch):
    write_records(tmp_path, {1: [record(0), record(0, credit=[-0.9], said=HOSTILE[-1], result="日本語 " * 40)]})
    out = on_terminal(monkeypatch, columns, tmp_path, SIDE)
    assert "\x1b[32m" in out and "\x1b[31m" in out
    lines = COLOURS.sub("", out).replace("\r", "").splitlines()
    assert max(sum(1 + (unicodedata.east_asian_width(char) == "W") for char in line) for line in lines) <= columns


def test_piped_output_has_no_colours_and_escapes_unencodable_text(tmp_path, monkeypatch):
    write_records(tmp_path, {1: [record(0, said="日本")]})
    for words in ([], [SIDE]):
        piped = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", piped)
        assert main(["show", str(tmp_path), *words]) == 0
        out = piped.buffer.getvalue()
        assert b"\x1b" not in out and b"\\u65e5\\u672c" in out


# ---- hostile text


def nothing_moves(out: str) -> bool:
    ours = COLOURS.sub("", out)
    return all(char in "\n\t" or unicodedata.category(char)[0] != "C" for char in ours)


@pytest.mark.parametrize("words", [[], [SIDE], ["--full"]], ids=lambda words: " ".join(words) or "turns")
def test_hostile_text_is_escaped_in_every_field(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    assert len(HOSTILE) >= 30
    for text in HOSTILE:
        short = re.sub("[\ud800-\udfff]", "", text[:50])  # names have no half characters
        one = record(0, question=text, said=text, result=text, answer=text, status=short)
        one |= {"ended": short, "rewards": {short: 1.0}, "turn_rewards": {short: [1.0, 1.0]}}
        write_records(tmp_path, {1: [one, {**one, "answer": [text, text]}]})
        out = shown(capsys, tmp_path, *words)
        assert "\x1b[" in out and nothing_moves(out), repr(text[:50])
        assert plain(text.split("\n")[0])[:10] in COLOURS.sub("", out)  # this very text was written and shown
        out.encode()
        assert words == ["--full"] or len(out) < 60_000  # a line of a megabyte is cut


def test_hostile_run_name_is_escaped(tmp_path, capsys):
    for name in ("\x1b[31mone", "\u202etwo"):
        write_records(tmp_path / name, {1: [record(0)]})
    assert nothing_moves(shown(capsys, *tmp_path.iterdir()))


def test_long_line_is_cut_with_the_number_of_characters_left_out(tmp_path, capsys):
    write_jsonl(tmp_path / "rollouts.jsonl", [record(0, result="x" * 1_000_000)])
    assert "(999,600 characters more)" in shown(capsys, Path(tmp_path))
    assert "x" * 1_000_000 in shown(capsys, tmp_path, "--full")
