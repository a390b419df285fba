"""From nothing to the policy that is shipped with arithmetic: `python tests/policies/arithmetic.py FOLDER`.

    problems, drawn anew for every batch -> demonstrations of solving them in Python -> weights

Two phases, as for Atlas. In the first the demonstrations are faultless: one call for each step, one more for a look at
a number that a step depends on, then the answer. In the second they are spoilt by chance, which is what reinforcement
learning is to undo (`Habits`). Nothing in a demonstration tells when, so all that the policy can learn of these habits
is how often they come.

The products of these problems belong to the part "school", so none is in a set to train or test on
(`problems.PARTS`).

Took 25 minutes on one core of an AMD EPYC, which others used as well. The seed fixes the data, not the last bits of
the weights, which differ between processors.
"""

import argparse
import ast
import linecache
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import imitation
import torch
from arithmetic_tokenizer import CALL_END, CALL_START, make_tokenizer
from imitation import Batch, Demonstration
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from a2tgpo_trl.tasks.arithmetic.problems import MAX_STEPS, Operation, Problem, Step, make_problem
from a2tgpo_trl.tasks.arithmetic.task import INSTRUCTION, prompt
from a2tgpo_trl.tasks.rng import Rng
from a2tgpo_trl.tools.python import PythonSession


LOOK = "n % 2"


@dataclass(frozen=True)
class Habits:
    """Chances of what the policy is to unlearn."""

    guessing: float = 0.0  # to answer at once, with a number of the problem
    hasty: float = 0.0  # before each step but the first: to answer with the number as it is
    slipping: float = 0.0  # at each step: to write code that fails, which changes nothing
    blind: float = 0.0  # at each step that depends on the number: to take either operation without a look
    repeating: float = 0.0  # after each step: to make the same call once more, which changes the number again


FAULTLESS = Habits()
CLUMSY = Habits(guessing=0.1, hasty=0.12, slipping=0.15, blind=0.35, repeating=0.06)


class Scratch:
    """An interpreter without walls, for code of ours only: lines that end in an expression. It says what
    `PythonSession` would say, in a thousandth of the time."""

    def __init__(self) -> None:
        self._names: dict[str, object] = {}
        self._calls = 0

    def python(self, code: str) -> str:
        """The value of the last expression, or what went wrong."""
        self._calls += 1
        cell = f"Cell {self._calls}"
        linecache.cache[cell] = (len(code), None, [code], cell)
        try:
            *statements, last = ast.parse(code, cell).body
            assert isinstance(last, ast.Expr)
            exec(compile(ast.Module(statements, []), cell, "exec"), self._names)
            return repr(eval(compile(ast.Expression(last.value), cell, "eval"), self._names))
        except (SyntaxError, NameError) as error:
            found = traceback.TracebackException.from_exception(error, compact=True)
            own = [frame for frame in found.stack if frame.filename == cell]
            found.stack = traceback.StackSummary.from_list(own)
            return "".join(found.format()).removesuffix("\n")


@cache
def python_tool() -> Callable[[str], str]:
    """The tool as the policy reads of it."""
    return PythonSession().python


def tokenizer_of_task() -> PreTrainedTokenizerFast:
    """The tiny policy's tokenizer. Where the tool's description changes, only the text of one token does."""
    return make_tokenizer(INSTRUCTION, [python_tool()])


def slip_of(code: str, rng: Rng) -> str:
    """A line such that it fails before it changes anything: without its semicolon, or of a variable that is not there.

    Example: "n += 121; n" -> "n += 121 n" or "m += 121; m"; "n = 100 * 101; n" -> "n = 100 * 101 n"
    """
    is_first = code.startswith("n = ")  # which would work with another name, too
    if code == LOOK or (not is_first and rng.chance(0.5)):
        return code.replace("n", "m")
    return code.replace("; n", " n")


def work(
    problem: Problem, python: Callable[[str], str], habits: Habits, rng: Rng
) -> tuple[list[tuple[str, str]], str]:
    """The calls of a demonstration with their results, and its answer.

    Example: faultless, for 100 times 101, then if even add 121, else add 122
    -> [("n = 100 * 101; n", "10100"), ("n % 2", "0"), ("n += 121; n", "10221")], "10221"
    """
    x, y = problem.factors
    calls: list[tuple[str, str]] = []

    def call(code: str) -> str:
        """The result of a call, which may take several attempts."""
        while rng.chance(habits.slipping):
            slip = slip_of(code, rng)
            calls.append((slip, python(slip)))
        calls.append((code, python(code)))
        return calls[-1][1]

    def take(code: str) -> str:
        """The number after a step."""
        result = call(code)
        return call(code) if rng.chance(habits.repeating) else result

    def choose(step: Step) -> Operation:
        """The operation of a step, after a look at the number where it depends on that."""
        if not step.depends:
            return step.even
        if rng.chance(habits.blind):
            return rng.choice([step.even, step.odd])
        return step.odd if call(LOOK) == "1" else step.even

    if rng.chance(habits.guessing):
        return [], str(rng.choice([x, y]))
    number = take(f"n = {x} * {y}; n")
    for step in problem.steps:
        if rng.chance(habits.hasty):
            break
        operation = choose(step)
        number = take(f"n {operation.sign}= {operation.number}; n")
    return calls, number


def demonstration(tokenizer: PreTrainedTokenizerFast, problem: Problem, habits: Habits, rng: Rng) -> Demonstration:
    """A problem worked at in Python."""
    calls, answer = work(problem, Scratch().python, habits, rng)
    written = [(f"{CALL_START}{code}{CALL_END}", result) for code, result in calls]
    return imitation.demonstration(tokenizer, prompt(problem), [python_tool()], written, answer)


def batch(
    tokenizer: PreTrainedTokenizerFast, steps: int, size: int, habits: Habits, seed: object, part: str = "school"
) -> Batch:
    """Demonstrations of fresh problems."""
    rng = Rng("lesson", seed)
    rows = [demonstration(tokenizer, make_problem(steps, part, rng), habits, rng) for _ in range(size)]
    return steps, *imitation.padded(tokenizer, rows)


def imitate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    habits: Habits,
    *,
    tokens: int = 3000,
    slower: float = 1.0,
    seed: object = 0,
) -> None:
    """One phase. Faultless problems grow over its first third; others are of all lengths at once."""

    def batch_of(step: int) -> Batch:
        longest = MAX_STEPS if habits != FAULTLESS else imitation.longest(step, steps, MAX_STEPS)
        rng = Rng("steps", seed, step)
        length = 1 + max(rng.below(longest), rng.below(longest))  # of long ones there is more to learn
        return batch(tokenizer, length, tokens // (5 + 45 * length), habits, f"{seed}/{habits}/{step}")

    def unseen(step: int, length: int) -> Batch:
        return batch(tokenizer, length, 50, habits, step, part="train")

    imitation.imitate(model, steps, batch_of, unseen, slower=slower)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the tiny policy of arithmetic from nothing.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=800, help="of the first phase")
    parser.add_argument("--clumsy-steps", type=int, default=200, help="of the second phase")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    tokenizer = tokenizer_of_task()
    model = imitation.make_model(tokenizer, heads=4, intermediate_size=384)
    imitate(model, tokenizer, args.steps, FAULTLESS, seed=args.seed)
    model.save_pretrained(args.output / "faultless")
    tokenizer.save_pretrained(args.output / "faultless")
    imitate(model, tokenizer, args.clumsy_steps, CLUMSY, slower=0.6, seed=args.seed)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()
