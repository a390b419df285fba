"""seed -> problems: a product, then steps that change it, some of which depend on whether it is even or odd.

Products and remainders of this size are more than a small policy can work out, so each step needs a call of Python;
if a step depends on the number, the policy must look at it first. A problem is told as a sum or as a story.

No two parts (`PARTS`) have a product of the same two numbers, whatever the seed, and so no problem in common.
"""

from dataclasses import dataclass

from ..rng import Rng


SMALLEST, LARGEST = 100, 999  # numbers in a problem have three digits
MAX_STEPS = 4
# Which products belong to a part, by the sum of the tens of their two numbers modulo 8. The shipped policy was made on
# problems of the third part, which has the same name as in `atlas`.
PARTS = {"train": (0,), "test": (1,), "school": (2, 3, 4, 5, 6, 7)}

NOUNS = ("bolts", "apples", "letters", "coins", "bricks", "eggs")
START = ("Multiply {x} by {y}.", "There are {x} boxes of {y} {noun}.")
# Sign of an operation -> its wording in a sum, and in a story.
WORDS = {
    "+": ("add {k}", "{k} more {noun} arrive"),
    "-": ("subtract {k}", "{k} of the {noun} are sold"),
    "*": ("multiply by {k}", "each is swapped for {k} {noun}"),
    "%": ("keep the remainder of a division by {k}", "they go out in loads of {k} and the rest stays"),
}
CHOICE = ("If it is even, {even}, else {odd}.", "If their number is even, {even}, else {odd}.")
PLAIN = ("Then {it}.", "Then {it}.")
END = ("What is the result?", "How many {noun} are there?")


@dataclass(frozen=True)
class Operation:
    """An operation on the number: `sign` with another number."""

    sign: str
    number: int

    def on(self, value: int) -> int:
        """The number after the operation. Example: "%" 100 on 250 -> 50"""
        match self.sign:
            case "+":
                return value + self.number
            case "-":
                return value - self.number
            case "*":
                return value * self.number
        return value % self.number


@dataclass(frozen=True)
class Step:
    """One operation, or one for an even number and another for an odd one."""

    even: Operation
    odd: Operation

    @property
    def depends(self) -> bool:
        """Whether the step depends on the number."""
        return self.even != self.odd

    def operation(self, value: int) -> Operation:
        """The operation for this number."""
        return self.odd if value % 2 else self.even


@dataclass(frozen=True)
class Problem:
    """A product of two numbers, and the steps that follow it."""

    factors: tuple[int, int]
    steps: tuple[Step, ...]
    noun: str | None = None  # what its story is about; None for a sum

    @property
    def values(self) -> list[int]:
        """The number after the product, and after each step.

        Example: 100 times 101, then add 100, then keep the remainder of a division by 999 -> [10100, 10200, 210]
        """
        values = [self.factors[0] * self.factors[1]]
        for step in self.steps:
            values.append(step.operation(values[-1]).on(values[-1]))
        return values

    @property
    def answer(self) -> str:
        return str(self.values[-1])

    @property
    def text(self) -> str:
        style = 0 if self.noun is None else 1
        sentences = [START[style].format(x=self.factors[0], y=self.factors[1], noun=self.noun)]
        sentences += [self._sentence(step, style) for step in self.steps]
        return " ".join([*sentences, END[style].format(noun=self.noun)])

    def _sentence(self, step: Step, style: int) -> str:
        even, odd = (WORDS[one.sign][style].format(k=one.number, noun=self.noun) for one in (step.even, step.odd))
        return CHOICE[style].format(even=even, odd=odd) if step.depends else PLAIN[style].format(it=even)


def make_problem(steps: int, part: str, rng: Rng) -> Problem:
    """Draw a problem of a part, with `steps` steps including the product."""
    while True:
        factors = (_number(rng), _number(rng))
        in_part = sum(factor // 10 for factor in factors) % 8 in PARTS[part]
        # Three products in four are even. One in three of those is kept, so that guessing is wrong half the time.
        if in_part and (factors[0] * factors[1] % 2 == 1 or rng.chance(1 / 3)):
            break
    noun = rng.choice(NOUNS) if rng.chance(0.5) else None
    problem = Problem(factors, (), noun)
    while len(problem.steps) < steps - 1:
        problem = Problem(factors, (*problem.steps, _step(problem.values[-1], rng)), noun)
    return problem


def _step(value: int, rng: Rng) -> Step:
    """Draw a step that keeps the number between 0 and a million and is not trivial: no remainder of a small number."""
    signs = "+-%" if value > LARGEST else "+*"
    even, odd = (Operation(rng.choice(signs), _number(rng)) for _ in range(2))
    return Step(even, odd if rng.chance(0.5) else even)


def _number(rng: Rng) -> int:
    return SMALLEST + rng.below(LARGEST - SMALLEST + 1)
