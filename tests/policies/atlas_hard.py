"""From nothing to the policy for Atlas's harder world: `python tests/policies/atlas_hard.py FOLDER`.

    worlds with relations that look alike, distractors and an index of names -> demonstrations -> weights

As in `atlas.py` there are two phases, faultless and clumsy, names of the part "school" alone, and a new world every
few batches. The second phase has more habits, and most of them are fatal: after one wrong step in six a rollout ends
at a wrong name. The policy is smaller, so that a step of training takes less time, and it has fewer demonstrations.
"""

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import imitation
import torch
from atlas_tokenizer import CALL_END, CALL_START, make_tokenizer
from imitation import Batch, Demonstration
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from a2tgpo_trl.tasks.atlas.task import INSTRUCTION, index_tool, prompt
from a2tgpo_trl.tasks.atlas.world import QUALIFIERS, Part, Question, library, make_part
from a2tgpo_trl.tasks.rng import Rng
from a2tgpo_trl.tools.search import search_tool


ALIKE, DISTRACTORS, TOP_K = 1, 1, 3
MAX_HOPS = 6
BATCHES_OF_A_WORLD = 4
INDEX_START = '{"name": "index", "arguments": {"name": "'
WORDS = (*QUALIFIERS, "Ask", "see", "there")
NAME = re.compile(r"\b(?!Ask )[A-Z]\w+ [A-Z]\w+")


@dataclass(frozen=True)
class Habits:
    """Chances, at each step of a demonstration, of what the policy is to unlearn."""

    wasteful: float = 0.0  # to search for a bare name, which finds nothing
    tempted: float = 0.0  # to ask the index of names, which answers nothing
    careless: float = 0.0  # to leave out what tells a relation from the one that looks alike
    gullible: float = 0.0  # to go on with the name in the first document, which is a distractor
    hasty: float = 0.0  # to answer with the name that it has come to, before the end of the chain
    # Once a demonstration: to answer at once, with the name in the question. Not in `repr`, which seeds the batches,
    # so that those of a policy without this habit are the same as before there was such a habit.
    eager: float = field(default=0.0, repr=False)


FAULTLESS = Habits()
CLUMSY = Habits(wasteful=0.15, tempted=0.2, careless=0.3, gullible=0.2, hasty=0.1)


@dataclass(frozen=True)
class School:
    """A world to demonstrate in, and its tools."""

    world: Part
    search: Callable[[str], str]
    index: Callable[[str], str]

    @property
    def tools(self) -> list[Callable]:
        return [self.search, self.index]


@lru_cache(maxsize=2)
def school(part: str, seed: object) -> School:
    world = make_part(part, seed, ALIKE, DISTRACTORS)
    return School(world, search_tool(library([world], seed), TOP_K), index_tool(world.entities))


def tokenizer_of_task() -> PreTrainedTokenizerFast:
    tools = [search_tool(["a document"]), index_tool([])]
    return make_tokenizer(INSTRUCTION, tools, WORDS, [INDEX_START])


# ---- demonstrations


def walk(question: Question, school: School, habits: Habits, rng: Rng) -> tuple[list[tuple[str, str]], str]:
    """Calls of a demonstration, each with its result, and the answer that it comes to.

    Example: faultless, for "the mother of the mayor of Rome" -> searches for "mayor of Rome" and "mother of <mayor>"
    """
    calls: list[tuple[str, str]] = []
    here = question.chain[0].subject
    if habits.eager and rng.chance(habits.eager):  # draws nothing of those who are not
        return calls, here

    def search(query: str) -> str:
        calls.append((f"{CALL_START}{query}{CALL_END}", school.search(query)))
        return calls[-1][1]

    for fact in question.chain:
        if here != question.chain[0].subject and rng.chance(habits.hasty):
            break
        while rng.chance(habits.wasteful):
            search(here)
        while rng.chance(habits.tempted):
            calls.append((f"{INDEX_START}{here}{CALL_END}", school.index(here)))
        relation = fact.relation.split()[-1] if rng.chance(habits.careless) else fact.relation
        found = search(f"{relation} of {here}").split("\n")
        here = read(found, relation, here, believes_first=rng.chance(habits.gullible))
    return calls, here


def read(found: list[str], relation: str, subject: str, *, believes_first: bool) -> str:
    """The name to go on with: that in the fact, or the last in the first document; without one, the same.

    Example: found are "mayor: mayor of Rome? Ask A B." and "The mayor of Rome is C D."
             -> C D, but A B if it believes the first
    """
    beginning = f"The {relation} of {subject} is "
    facts = [document.removeprefix(beginning).rstrip(".") for document in found if document.startswith(beginning)]
    names = NAME.findall(found[0])
    if facts and not believes_first:
        return facts[0]
    return names[-1] if names else subject


def demonstration(
    tokenizer: PreTrainedTokenizerFast, question: Question, school: School, habits: Habits, rng: Rng
) -> Demonstration:
    """A question, answered by searching, rightly or not."""
    calls, answer = walk(question, school, habits, rng)
    return imitation.demonstration(tokenizer, prompt(question), school.tools, calls, answer)


def batch(
    tokenizer: PreTrainedTokenizerFast, hops: int, size: int, habits: Habits, seed: object, where: School
) -> Batch:
    """Demonstrations of questions whose facts can all be found."""
    rng = Rng("lesson", seed)
    rows: list[Demonstration] = []
    while len(rows) < size:
        question = where.world.question(hops, rng)
        if walk(question, where, FAULTLESS, rng)[1] == question.answer:
            rows.append(demonstration(tokenizer, question, where, habits, rng))
    return hops, *imitation.padded(tokenizer, rows)


# ---- learning


def imitate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    habits: Habits,
    *,
    max_hops: int = MAX_HOPS,
    tokens: int = 8192,
    slower: float = 1.0,
    seed: object = 0,
) -> None:
    """One phase. Faultless chains grow over its first third; others are of all lengths from the start."""

    def batch_of(step: int) -> Batch:
        longest = max_hops if habits != FAULTLESS else imitation.longest(step, steps, max_hops)
        hops = 1 + Rng("hops", seed, step).below(longest)
        where = school("school", f"{seed}/{step // BATCHES_OF_A_WORLD}")
        return batch(tokenizer, hops, tokens // (36 + 50 * hops), habits, f"{seed}/{habits}/{step}", where)

    def unseen(step: int, hops: int) -> Batch:
        return batch(tokenizer, hops, 20, habits, step, school("train", seed))  # new names: does it copy them?

    imitation.imitate(model, steps, batch_of, unseen, slower=slower)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the tiny policy for Atlas's harder world from nothing.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=800, help="of the first phase")
    parser.add_argument("--clumsy-steps", type=int, default=80, help="of the second phase")
    parser.add_argument("--hops", type=int, default=MAX_HOPS, help="of the longest chain")
    parser.add_argument("--eager", type=float, default=0.0, help="share of the second phase that answers at once")
    parser.add_argument("--start", type=Path, help="a policy to go on from, in place of the first phase")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    tokenizer = tokenizer_of_task()
    if args.start is not None:
        model = AutoModelForCausalLM.from_pretrained(args.start)
    else:
        model = imitation.make_model(tokenizer, layers=3, heads=4, intermediate_size=256)
        imitate(model, tokenizer, args.steps, FAULTLESS, max_hops=args.hops, seed=args.seed)
        model.save_pretrained(args.output / "faultless")
        tokenizer.save_pretrained(args.output / "faultless")
    habits = replace(CLUMSY, eager=args.eager)
    imitate(model, tokenizer, args.clumsy_steps, habits, max_hops=args.hops, slower=0.2, seed=args.seed)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()
