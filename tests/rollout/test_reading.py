"""Rollouts on a terminal: by turns, side by side, chosen by options; and hostile text, which cannot control it."""

import io
import json
import subprocess
import sys
import unicodedata

import pytest
from rich.console import Console

from a2tgpo_trl.cli import main
from a2tgpo_trl.rollout.reading import as_turns, chosen, files_in, plain, prompt_of, read_places, side_by_side, spark
from a2tgpo_trl.rollout.records import read_jsonl, write_jsonl


def record(answer="Rome", reward=1.0, result="The mayor of Rome is Bo.", query="mayor of Rome", **more):
    call = {"type": "function", "function": {"name": "search", "arguments": {"query": query}}}
    return {
        "prompt": [{"role": "system", "content": "Search."}, {"role": "user", "content": "Who is mayor of Rome?"}],
        "completion": [
            {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
            {"role": "tool", "name": "search", "content": result},
            {"role": "assistant", "content": f"<answer>{answer}</answer>"},
        ],
        "answer": "Bo",
        "rewards": {"exact_match": reward},
        "tool_turns": 1,
        "turns": [{"status": "ok", "calls": []}, {"status": "ok", "calls": []}],
        "ended": "answer",
        **more,
    }


CREDIT = {
    **{"step": 11, "round": 1, "group": 3, "rank": 0, "values": [-9.0, -4.5], "gains": [4.5], "outcome": 1.0},
    **{"advantages": [0.94, 0.4], "scores": [1.2, None], "clip_scale": [1.16, 1.0]},
}


def printed(what, terminal: bool = False, width: int = 120) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=terminal, markup=False, emoji=False, highlight=False).print(what)
    return stream.getvalue()


def test_rollout_is_shown_by_turn_with_gains_and_credit():
    lines = [line.rstrip() for line in printed(as_turns(record(**CREDIT))).splitlines()]
    assert lines[:8] == [
        "step 11, group 3, rank 0   values ▁█ -9.00 -> -4.50",
        "Who is mayor of Rome?",
        "Let me see.",
        "search('mayor of Rome')",
        "    The mayor of Rome is Bo.",
        "    gain +4.50   z +1.20   advantage +0.94   clip x1.16",
        "<answer>Rome</answer>",
        "    advantage +0.40   clip x1.00",
    ]
    assert lines[8] == "right: Bo   exact_match 1"


def test_turns_are_green_for_positive_and_red_for_negative_credit():
    good, bad = (printed(as_turns(record(**{**CREDIT, "advantages": [x, 0.0]})), terminal=True) for x in (1.0, -1.0))
    assert "\x1b[32mLet me see." in good and "\x1b[31mLet me see." in bad
    # Without credit, the gain decides.
    assert "\x1b[31mLet me see." in printed(as_turns(record(gains=[-2.0])), terminal=True)


def test_failed_turn_shows_its_status():
    turns = [{"status": "timeout", "calls": []}, {"status": "ok", "calls": []}]
    assert "    timeout" in printed(as_turns(record(turns=turns)))
    assert "ended: over_budget" in printed(as_turns(record(ended="over_budget")))


def test_rollouts_of_a_function_are_shown_by_their_texts():
    turns = [
        {"status": "ok", "calls": None, "text": "find Bo", "read": "Bo is here", "tokens_in": 3},
        {"status": "ok", "calls": None, "text": "Bo", "read": "", "tokens_in": 0},
    ]
    text = printed(as_turns(record(prompt="Who?", completion="find Bo Bo is here Bo", turns=turns, gains=[1.0])))
    assert "Who?\nfind Bo\n    Bo is here\n    gain +1.00\nBo\n" in text


def test_long_texts_are_cut_unless_all_is_asked_for():
    long = record(result="word " * 500)
    assert "characters more)" in printed(as_turns(long)) and len(printed(as_turns(long))) < 1200
    assert "characters more)" not in printed(as_turns(long, full=True))


def test_values_are_drawn_as_bars():
    assert spark([-9.0, -4.5, 0.0]) == "▁▄█" and spark([2.0, 2.0]) == "▁▁"


# ---- chosen rollouts


def ask(records, **asked):
    return chosen(records, **{"failed": False, "solved_and_failed": False, "grep": None, "worst_gain": False, **asked})


def test_rollouts_are_filtered_by_result_gain_and_text():
    one, two = record(step=1, round=1, group=0, gains=[0.5, -2.0]), record(reward=0.0, step=1, round=1, group=0)
    three = record(reward=0.0, step=1, round=1, group=1, gains=[-3.0], result="a comet")
    records = [one, two, three]
    assert ask(records, failed=True) == [two, three]
    assert ask(records, solved_and_failed=True) == [one, two]
    assert ask(records, worst_gain=True) == [three, one]  # two has no gain
    assert ask(records, grep="COM.T") == [three] and ask(records, grep=r"mayor of rome'") == records
    assert prompt_of(one) == prompt_of(two) != prompt_of(three)
    assert prompt_of(record(row=1)) != prompt_of(record(row=2))


def test_rollouts_of_a_prompt_stand_side_by_side():
    records = [record(**CREDIT), record(answer="Oslo", reward=0.0, **{**CREDIT, "advantages": [-0.5, -0.9]})]
    text = printed(side_by_side(records, 120))
    first = next(line for line in text.splitlines() if "solved" in line)
    assert "1: solved" in first and "2: failed" in first
    answers = next(line for line in text.splitlines() if "<answer>" in line)
    assert "Rome" in answers and "Oslo" in answers
    # If only one fits, they are printed one below the other.
    narrow = printed(side_by_side(records, 40), width=40)
    assert not any("solved" in line and "failed" in line for line in narrow.splitlines()) and "2: failed" in narrow


# ---- files


def test_files_are_found_in_folders_of_runs_and_evaluations(tmp_path, capsys):
    run, evaluation = tmp_path / "run", tmp_path / "evaluation"
    for file in (run / "rollouts" / "step-000001-rank-0.jsonl", run / "evaluation" / "before.jsonl"):
        file.parent.mkdir(parents=True)
        write_jsonl(file, [record()])
    evaluation.mkdir()
    write_jsonl(evaluation / "rollouts.jsonl", [record(), record()])
    assert [file.name for file in files_in(run)] == ["step-000001-rank-0.jsonl"]
    assert len(read_places([run, evaluation, run / "evaluation" / "before.jsonl"])) == 4
    (tmp_path / "empty").mkdir()
    assert main(["show", str(tmp_path / "empty")]) == 2
    assert "There are no rollouts in" in capsys.readouterr().err
    without = record()
    del without["prompt"]
    for wrong in ({"a": 1}, without, {**record(), "rewards": 1.0}):
        (tmp_path / "text.jsonl").write_text(json.dumps(wrong) + "\n")
        assert main(["show", str(tmp_path / "text.jsonl")]) == 2
        assert "is not a file of rollouts" in capsys.readouterr().err


@pytest.mark.parametrize(("end", "found"), [("", 2), ("\n", 2), ('\n{"row": 2, "x', 2)])
def test_the_last_line_is_left_out_only_if_it_was_cut_off(tmp_path, end, found):
    (tmp_path / "some.jsonl").write_text('{"row": 0}\n{"row": 1}' + end)
    assert read_jsonl(tmp_path / "some.jsonl") == [{"row": row} for row in range(found)]
    (tmp_path / "some.jsonl").write_text('{"row": 0\n{"row": 1}\n')
    with pytest.raises(ValueError):
        read_jsonl(tmp_path / "some.jsonl")


def test_show_prints_a_limited_number_and_how_many_more(tmp_path, capsys):
    write_jsonl(tmp_path / "rollouts.jsonl", [record(row=i, reward=i % 2) for i in range(5)])
    assert main(["show", str(tmp_path), "--failed", "-n", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.count("Who is mayor of Rome?") == 2 and "1 more: --number 3 shows all." in err
    assert main(["show", str(tmp_path), "--grep", "comet"]) == 0
    assert "None of 5 rollouts matches." in capsys.readouterr().err
    assert main(["show", str(tmp_path), "--grep", "("]) == 2
    assert "is not a valid pattern" in capsys.readouterr().err
    assert main(["show", str(tmp_path), "--side-by-side"]) == 0
    assert "1: failed" in capsys.readouterr().out


def test_show_piped_into_head_ends_without_an_error(tmp_path):
    write_jsonl(tmp_path / "rollouts.jsonl", [record(row=i) for i in range(400)])
    words = f"{sys.executable} -m a2tgpo_trl show {tmp_path} -n 400 | head -n 2"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", words], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and len(done.stdout.splitlines()) == 2


# ---- hostile text

HOSTILE = [
    *("\x1b[31mred", "\x1b]0;title\x07", "\x1b[2J\x1b[H", "\x9b31m", "\x1bP1$r\x1b\\", "\x1b]8;;http://x\x07link"),
    *("\x00nul", "bell\x07", "back\x08\x08", "\rover", "form\x0cfeed", "\x7fdel", "\x85next", "\x0etwo\x0f", "\x1a"),
    *("\u202eright", "\u2066isolate\u2069", "\u200bwidth", "\ufeffbom", "\u200fmark", "\U000e0041tag", "\ud83dhalf"),
    *("[bold]markup[/bold]", "[/]", "[link=http://x]l[/link]", ":smile:", "<script>alert(1)</script>"),
    *("| a | b |\n|---|", "long" * 250_000, "a\n" * 5000),
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_shown_without_control_characters(text):
    shown = plain(text)
    assert all(char in "\n\t" or unicodedata.category(char)[0] != "C" for char in shown)
    shown.encode("utf-8")
    one = record(result=text, query=text, answer=text)
    for terminal in (False, True):
        for what in (as_turns(one, full=len(text) < 1000), side_by_side([one, one], 120)):
            out = printed(what, terminal)
            ours = out.replace("\x1b[0m", "")
            for code in ("1", "2", "31", "32", "1;31", "1;32"):
                ours = ours.replace(f"\x1b[{code}m", "")
            assert all(char in "\n\t" or unicodedata.category(char)[0] != "C" for char in ours), repr(ours)[:300]
            assert len(out) < 40_000
    # It can still be read: characters that are not control characters are unchanged.
    visible = "".join(char for char in text if unicodedata.category(char)[0] != "C")
    assert visible[:20] in "".join(char for char in shown if char not in "\n\t") or "\\" in shown
