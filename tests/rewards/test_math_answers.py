r"""Answers compared as mathematics: equal forms, unequal ones, and what a policy may write to break the comparison."""

import logging
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from a2tgpo_trl.recipe.task import load_reward
from a2tgpo_trl.rewards import math_answers, symbolic
from a2tgpo_trl.rewards.math_answers import (
    LONGEST,
    equal,
    final_answer,
    last_boxed,
    math_equal,
    number,
    plain,
)
from a2tgpo_trl.rewards.symbolic import MEMORY, Symbolic, Undecided
from a2tgpo_trl.tools.process import ProcessDied


SAME = [
    ("72", "72"),
    ("1234", "1,234.0"),
    ("18", "$18.00"),
    ("0.5", "1/2"),
    (r"\frac{1}{2}", r"\frac12"),
    (r"\frac{3}{6}", "0.5"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    (r"1\frac{1}{2}", "3/2"),
    (r"\frac{1}{3}", "0.333333"),
    ("100000", "1e5"),
    (r"\{1,2,3\}", r"\{3, 1, 2\}"),
    ("1,-2", "-2, 1"),
    ("[1,2)", r"\left[1, 2\right)"),
    (r"(-\infty,2]\cup[3,\infty)", r"[3,\infty) \cup (-\infty, 2]"),
    (r"x \ge 3", r"[3,\infty)"),
    (r"\left(\frac12,3\right)", "(0.5, 3)"),
    (r"5\text{ cm}", "5"),
    (r"90^\circ", "90"),
    (r"50\%", "50"),
    (r"\text{Evelyn}", "evelyn"),
    (r"\text{(C)}", "C"),
    ("x^2+2x+1", "(x+1)^2"),
    ("x^2+2x+1", "x**2 + 2*x + 1"),
    (r"2\sqrt{3}", "2*sqrt(3)"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"\frac{\pi}{4}", "pi/4"),
    ("3+4i", "4i + 3"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} \frac{2}{2} \\ 2 \end{pmatrix}"),
    ("x=5", "5"),
    ("10!", "3628800"),
    ("3 1/2", "3.5"),
    ("3.5", "3 1/2"),
    ("3 1/2", r"\frac{7}{2}"),
    ("-3 1/2", "-7/2"),
    ("5", "5 apples"),
    ("5", "x = 5"),
    ("5", "f(2) = 5"),
    ("1,2", "1, 2"),
    ("150000", r"1.5 \times 10^5"),
    ("1024", "2^{10}"),
    ("5_8", "5_8"),
    ("10:30", "10:30"),
]
DIFFERENT = [
    ("72", "73"),
    ("72", "7"),
    ("5", "5.0000001"),
    ("5", "-5"),
    ("1/2", "1/3"),
    (r"\frac{1}{3}", "0.33"),
    ("100000", "1"),
    ("[1,2)", "(1,2)"),
    ("(1,2)", "(2,1)"),
    (r"\{1,2\}", r"\{1,2,3\}"),
    ("5,6", "5"),
    (r"2\sqrt{3}", "2"),
    ("3+4i", "3-4i"),
    (r"\text{even}", "odd"),
    (r"\text{(C)}", "(D)"),
    ("5", "five"),
    ("12", "12}{13"),
    ("12", r"12}\boxed{13"),
    ("12", r"\frac{1}{0}"),
    # Pairs that math-verify would take for equal.
    ("12", "1 2"),
    ("12", "1\n2"),
    ("31/2", "3 1/2"),
    ("3 1/2", "15.5"),
    ("3 1/2", r"\frac{31}{2}"),
    ("1234", "1, 234"),
    (r"5\text{ cm}", r"5\text{ m}"),
    ("30 minutes", "30 hours"),
    ("18", "18%"),
    ("5", r"5\%"),
    ("5", r"5 \text{(not 6)}"),
    ("5", "5 or 6"),
    ("5_8", "5_9"),
    ("10:30", "20:60"),
    ("(1,2)", r"\{1,2\}"),
    (r"\{1,2\}", "(1,2)"),
    ("5", "6=5"),
    ("5", "4=5"),
    ("5050", r"\sum_{k=1}^{100} k"),
    (r"\frac{1}{3}", r"\int_0^1 x^2 dx"),
    ("56088", "123*456"),
    ("12", r"\binom{12}{1}"),
    ("12", "5+7"),
    ("24", "4!"),
]
# Each of these hangs, kills or fills something in a naive comparison.
HOSTILE = {
    "a tower of powers": "9**9**9",
    "a taller tower": "9**(9**(9**9))",
    "a tower in LaTeX": "9^{9^{9^{9}}}",
    "a factorial": "10000000!",
    "a long sum": r"\sum_{k=1}^{10^{12}} \sin(k^k)",
    "an integral": r"\int_0^1 x^{x^{x^x}} dx",
    "parentheses": "(" * 500,
    "braces": "{" * 900,
    "nested roots": r"\sqrt{" * 140 + "2" + "}" * 140,
    "a number of 900 digits": "1" * 900,
    "very long text": "1+" * 500_000,
    "Python": "__import__('os').abort()",
    "no text": "",
    "a backslash": "\\",
    "broken Unicode": "\x00\ud800",
    "nothing of mathematics": "答案",
}


@pytest.mark.parametrize(("accepted", "given"), SAME)
def test_forms_of_one_answer_are_equal(accepted, given):
    assert equal(accepted, given)


@pytest.mark.parametrize(("accepted", "given"), DIFFERENT)
def test_different_answers_are_not_equal(accepted, given):
    assert not equal(accepted, given)


@pytest.mark.parametrize("given", HOSTILE.values(), ids=HOSTILE)
def test_hostile_answers_are_wrong_within_bounded_time(given, monkeypatch):
    start = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(symbolic, "SECONDS", 1.0)  # to reach the limit sooner
        assert math_equal([f"<answer>{given}</answer>"], ["12"]) == [0.0]
    assert time.monotonic() - start < 30  # a process may have to be started: SymPy takes seconds
    assert math_equal([r"<answer>\frac{24}{2}</answer>"], ["12"]) == [1.0]  # and the next answer is compared


def test_unclosed_boxes_are_read_in_linear_time():
    start = time.monotonic()
    assert last_boxed(r"\boxed{" * 20_000) is None
    assert last_boxed(r"\boxed{1} " + r"\boxed{" * 20_000) == "1"
    assert time.monotonic() - start < 2


def test_comparison_that_timed_out_is_not_cached(monkeypatch, caplog):
    def without_time(start=symbolic._started):
        process = start()
        psutil.Process(process._process.pid).suspend()
        return process

    caplog.set_level("INFO")
    with monkeypatch.context() as patch:
        patch.setattr(symbolic, "SECONDS", 0.2)
        patch.setattr(symbolic, "_started", without_time)
        patch.setattr(math_answers, "_symbolic", Symbolic())
        assert not equal("y+17", "17+y")
    assert "could not be compared" in caplog.text
    assert equal("y+17", "17+y")


def test_a_process_that_is_killed_is_replaced_and_no_process_is_left_of_it():
    compared = Symbolic()
    assert compared.equal("x+1", "1+x")
    first = psutil.Process(compared.process._process.pid)
    assert first.rlimit(psutil.RLIMIT_AS)[0] == MEMORY
    with pytest.raises(Undecided):
        compared.equal("12", "9**(9**(9**9))")
    assert not first.is_running() or first.status() == psutil.STATUS_ZOMBIE
    assert compared.equal("x+1", "1+x")
    compared.process.close()


def test_process_that_dies_at_start_is_started_again(monkeypatch, caplog):
    def killed():
        raise ProcessDied("the tool's process ended with code -9 before it answered")

    starts = [killed, symbolic._started]
    monkeypatch.setattr(symbolic, "_started", lambda: starts.pop(0)())
    monkeypatch.setattr(math_answers, "_symbolic", Symbolic())
    with caplog.at_level(logging.WARNING, logger="a2tgpo_trl"):
        assert equal("x+4711", "4711+x")
    assert [record.message for record in caplog.records] == [
        "math_equal: a process could not be started (the tool's process ended with code -9 before it answered)."
    ]
    math_answers._symbolic.process.close()


def test_answers_are_compared_in_any_thread_and_many_at_once():
    # math-verify's own limits are signals, which only the main thread may set.
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda i: equal(f"x+{i}", f"{i}+x") and not equal(f"x+{i}", f"x-{i}-1"), range(30)))
    assert all(found) and threading.current_thread() is threading.main_thread()


def test_math_reward_reads_tags_before_boxes_and_takes_the_best_alias():
    message = [{"role": "assistant", "content": r"\boxed{3}, no: <answer>$\frac{4}{2}$</answer>"}]
    assert math_equal([message, message, "2"], ["2", ["3", "2"], "2"]) == [1.0, 1.0, 0.0]
    assert math_equal([r"So it is $\boxed{\frac{1}{2}}$."], ["0.5"]) == [1.0]
    with pytest.raises(ValueError, match="empty list"):
        math_equal(["<answer>1</answer>"], [[]])


def test_the_final_answer_is_what_is_in_the_last_closed_box():
    assert last_boxed(r"\boxed{\{1, 2\}} and \boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert last_boxed(r"\boxed{\left\{ x \mid \frac{x}{2} \right\}}") == r"\left\{ x \mid \frac{x}{2} \right\}"
    assert last_boxed(r"\fbox{7}") == "7" and last_boxed(r"\boxed{1") is None and last_boxed("none") is None
    assert final_answer(r"<answer>$\boxed{7}$</answer>") == "7"
    assert final_answer("<answer>7 apples</answer>") == "7 apples" and final_answer("7") is None


def test_plain_texts_and_numbers_are_compared_without_a_process(monkeypatch):
    monkeypatch.setattr(math_answers, "_symbolic", None)
    assert plain(r"$\left( 1,\, \dfrac{1}{2} \right)$") == r"(1,\frac{1}{2})"
    assert plain(r"\text{Even}.") == "even"
    assert number("1,234.50") == 1234.5 and number("-3/6") == -0.5
    assert [number(text) for text in ("12%", "1,23", "x", "", "-", "1/0")] == [None] * 6
    assert equal("98765", "98,765") and not equal("98765", "98766")


def test_overlong_answer_scores_zero_without_comparison(monkeypatch):
    monkeypatch.setattr(math_answers, "equal", None)
    assert math_equal([f"<answer>{'1' * (LONGEST + 1)}</answer>"], ["1"]) == [0.0]


@pytest.mark.slow
def test_missing_math_extra_is_named():
    code = "import sys; sys.modules['math_verify'] = None; from a2tgpo_trl.recipe.task import load_reward\n"
    for name, complaint in (("exact_match", ""), ("math_equal", "pip install 'a2tgpo_trl[math]'")):
        run = subprocess.run(
            [sys.executable, "-c", f"{code}load_reward({name!r}, [])"], capture_output=True, text=True
        )
        assert complaint in run.stderr and (run.returncode == 0) == (not complaint)
    assert load_reward("math_equal", []) is math_equal
