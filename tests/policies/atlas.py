"""From nothing to the policy that is shipped with Atlas: `python tests/policies/atlas.py FOLDER`.

    worlds, made anew for every batch -> demonstrations of questions that are answered by searching -> weights

Two phases. In the first the demonstrations are faultless: one search for each fact of the chain, then the answer. In
the second the same demonstrations are spoilt by chance, which is what reinforcement learning is to undo (`Habits`): at
each step the policy may search for the bare name, which finds nothing of use and costs one of its searches, or, once
it has found something, may take it for the answer and stop. Nothing in a demonstration tells when, so all that the
policy can learn of these habits is how often they come.

Only names of the part "school" are used (see `world.PARTS`), so no entity, fact or question of a world to train or
test on is ever in a demonstration, whatever that world's seed; and since the facts change from batch to batch, none
can be remembered: the policy learns to copy from what it found.

Takes half an hour on two cores. The seed fixes the data, not the last bits of the weights, which differ between
processors.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imitation
import torch
from atlas_tokenizer import CALL_END, CALL_START, make_tokenizer
from imitation import Batch, Demonstration
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from a2tgpo_trl.tasks.atlas.task import INSTRUCTION, prompt
from a2tgpo_trl.tasks.atlas.world import Question, library, make_part
from a2tgpo_trl.tasks.rng import Rng
from a2tgpo_trl.tools.search import search_tool


TOP_K = 2
MAX_HOPS = 4


@dataclass(frozen=True)
class Habits:
    """Chances, at each step of a demonstration, of what the policy is to unlearn."""

    wasteful: float = 0.0  # to search for a bare name, which finds nothing
    hasty: float = 0.0  # to answer with what the last search found, before the end of the chain


FAULTLESS = Habits()
CLUMSY = Habits(wasteful=0.25, hasty=0.35)


def steps_of(question: Question, habits: Habits, rng: Rng) -> list[str]:
    """The searches of a demonstration, and last its answer.

    Example: faultless, for "the mother of the mayor of Rome" -> ["mayor of Rome", "mother of <mayor>", "<mother>"]
    """
    queries: list[str] = []
    for fact in question.chain:
        if queries and rng.chance(habits.hasty):
            return [*queries, fact.subject]
        while rng.chance(habits.wasteful):
            queries.append(fact.subject)
        queries.append(f"{fact.relation} of {fact.subject}")
    return [*queries, question.answer]


def demonstration(
    tokenizer: PreTrainedTokenizerFast, question: Question, search: Callable[[str], str], habits: Habits, rng: Rng
) -> Demonstration:
    """A question answered by searching."""
    *queries, answer = steps_of(question, habits, rng)
    calls = [(f"{CALL_START}{query}{CALL_END}", search(query)) for query in queries]
    return imitation.demonstration(tokenizer, prompt(question), [search], calls, answer)


def batch(
    tokenizer: PreTrainedTokenizerFast, hops: int, size: int, habits: Habits, seed: object, part: str = "school"
) -> Batch:
    """Demonstrations of one fresh world."""
    rng = Rng("lesson", seed)
    world = make_part(part, seed)
    search = search_tool(library([world], seed), TOP_K)
    rows: list[Demonstration] = []
    while len(rows) < size:
        question = world.question(hops, rng)
        if all(fact.document in search(f"{fact.relation} of {fact.subject}") for fact in question.chain):
            rows.append(demonstration(tokenizer, question, search, habits, rng))
    return hops, *imitation.padded(tokenizer, rows)


def imitate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    habits: Habits,
    *,
    tokens: int = 8192,
    slower: float = 1.0,
    seed: object = 0,
) -> None:
    """One phase. Faultless chains grow over its first third; others are of all lengths from the start."""

    def batch_of(step: int) -> Batch:
        longest = MAX_HOPS if habits.wasteful else imitation.longest(step, steps, MAX_HOPS)
        hops = 1 + Rng("hops", seed, step).below(longest)
        return batch(tokenizer, hops, tokens // (30 + 38 * hops), habits, f"{seed}/{habits}/{step}")

    def unseen(step: int, hops: int) -> Batch:
        return batch(tokenizer, hops, 50, habits, step, part="train")  # names that were never seen: does it copy them?

    imitation.imitate(model, steps, batch_of, unseen, slower=slower)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make Atlas's tiny policy from nothing.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=1000, help="of the first phase")
    parser.add_argument("--clumsy-steps", type=int, default=80, help="of the second phase")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer(INSTRUCTION, [search_tool(["a document"])])
    model = imitation.make_model(tokenizer)
    imitate(model, tokenizer, args.steps, FAULTLESS, seed=args.seed)
    model.save_pretrained(args.output / "faultless")
    tokenizer.save_pretrained(args.output / "faultless")
    imitate(model, tokenizer, args.clumsy_steps, CLUMSY, slower=0.2, seed=args.seed)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()
