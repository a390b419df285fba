"""From nothing to the policy for TextWorld's houses: `python tests/policies/houses.py FOLDER`.

    houses, and demonstrations made anew for every batch -> weights

Who demonstrates opens what is closed in a room, goes on to what it has not seen, nearest first, and answers once it
has seen the thing. It knows no more than it was told. The policy is so small and has so few demonstrations that it
plays clumsily: it loses its way, tries what cannot work, and names places that it has not seen the thing in. That is
what reinforcement learning is to mend.

Only houses of the part "school" are used: none that is trained or tested on, whatever the seed of that task. Weights
are rounded to four binary digits, for a fifth of the room.

Takes ten minutes on a core. The seed fixes the data, not the last bits of the weights, which differ between
processors.
"""

import argparse
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import imitation
import torch
from houses_tokenizer import CALL_END, CALL_START, make_tokenizer
from imitation import Batch, Demonstration
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from a2tgpo_trl.tasks.rng import Rng
from a2tgpo_trl.tasks.textworld.games import CONTAINER, House, Scene, make_house
from a2tgpo_trl.tasks.textworld.play import Play, outcome
from a2tgpo_trl.tasks.textworld.questions import Question, questions
from a2tgpo_trl.tasks.textworld.task import prompt


School = tuple[object, int]  # seed and number of its houses

MOST_MOVES = 4
CALLS = 8  # of a demonstration, at most
BACK = {"north": "south", "south": "north", "east": "west", "west": "east"}


@dataclass
class Memory:
    """What a player has seen, and where it has been."""

    here: str
    ways: dict[str, dict[str, str]] = field(default_factory=dict)  # room -> direction -> room, as far as walked
    opened: set[str] = field(default_factory=set)


def walk(question: Question, house: House, rng: Rng) -> tuple[list[tuple[str, str]], str]:
    """Commands of a demonstration, each with its reply, and the answer that it comes to.

    Example: the thing is in a closed box next door -> go north, open box; "box"
    """
    now, memory = house.start, Memory(house.start.here)
    calls: list[tuple[str, str]] = []
    while len(calls) < CALLS:
        command = _next(house, memory, rng)
        before, now = now, after(now, command)
        reply = "\n".join(outcome(before, now, command))
        calls.append((command, reply))
        _remember(house, memory, command)
        if f"The {question.thing} is " in reply:
            return calls, house.start.where[question.thing]
    return calls, memory.here  # it has to say something


def after(now: Scene, command: str) -> Scene:
    """What is so after a command of a demonstration: the same as by TextWorld's rules, and sooner."""
    verb, _, rest = command.partition(" ")
    if verb == "go":
        return replace(now, here=now.exits[now.here][rest][0])
    return replace(now, closed=now.closed - {rest}) if verb == "open" else now


def _next(house: House, memory: Memory, rng: Rng) -> str:
    """The command of one who goes on to what it has not seen."""
    start, here = house.start, memory.here
    for name in start.inside(here):
        if start.kinds[name] == CONTAINER and name in start.closed - memory.opened:
            return f"open {name}"
    way = _way_on(house, memory, rng)
    door = start.exits[here][way][1]
    return f"open {door}" if door in start.closed - memory.opened else f"go {way}"


def _way_on(house: House, memory: Memory, rng: Rng) -> str:
    """The direction of the nearest exit that was never taken, by ways that were; of any, where there is none."""
    exits = house.start.exits
    reached: dict[str, str | None] = {memory.here: None}  # room -> the direction that leads there
    for room in _reached_in_order(memory, reached):
        new = [way for way in exits[room] if way not in memory.ways.get(room, {})]
        if new:
            return reached[room] or new[0]
    return rng.choice(list(exits[memory.here]))


def _reached_in_order(memory: Memory, reached: dict[str, str | None]) -> list[str]:
    """Rooms that one can come to by ways that were walked, nearest first; `reached` gets the first step to each."""
    order = list(reached)
    for room in order:
        for way, behind in memory.ways.get(room, {}).items():
            if behind not in reached:
                reached[behind] = reached[room] or way
                order.append(behind)
    return order


def _remember(house: House, memory: Memory, command: str) -> None:
    verb, _, rest = command.partition(" ")
    if verb == "open":
        memory.opened.add(rest)
    elif verb == "go":
        behind = house.start.exits[memory.here][rest][0]
        memory.ways.setdefault(memory.here, {})[rest] = behind
        memory.ways.setdefault(behind, {})[BACK[rest]] = memory.here
        memory.here = behind


# ---- demonstrations


@cache
def lesson(seed: object, number: int) -> tuple[House, tuple[Question, ...]]:
    """A house of the school, and questions where things are in it."""
    house = make_house("school", seed, number)
    asked = questions(house, house, ["location"], Rng("lesson", seed, number))
    return house, tuple(one for one in asked if one.moves is not None and one.moves <= MOST_MOVES)


def demonstration(tokenizer: PreTrainedTokenizerFast, question: Question, house: House, rng: Rng) -> Demonstration:
    """A question, answered by looking around."""
    calls, answer = walk(question, house, rng)
    written = [(f"{CALL_START}{command}{CALL_END}", reply) for command, reply in calls]
    return imitation.demonstration(tokenizer, prompt(house, question), [Play({}).act], written, answer)


def batch(tokenizer: PreTrainedTokenizerFast, moves: int, size: int, school: School, rng: Rng) -> Batch:
    """So many demonstrations of questions of this length."""
    seed, houses = school
    asked = [
        (house, one) for house, few in (lesson(seed, i) for i in range(houses)) for one in few if one.moves == moves
    ]
    drawn = [rng.choice(asked) for _ in range(size)]
    rows = [demonstration(tokenizer, question, house, rng) for house, question in drawn]
    return moves, *imitation.padded(tokenizer, rows)


# ---- learning


def imitate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, steps: int, *, size: int, houses: int, seed: object = 0
) -> None:
    """Walks grow over the first third of the steps."""

    def batch_of(step: int) -> Batch:
        rng = Rng("demonstrations", seed, step)
        moves = 1 + rng.below(imitation.longest(step, steps, MOST_MOVES))
        return batch(tokenizer, moves, size, (seed, houses), rng)

    def unseen(step: int, moves: int) -> Batch:
        return batch(tokenizer, moves, 20, ("unseen", 60), Rng("unseen", seed, step))

    imitation.imitate(model, steps, batch_of, unseen)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """In 16 bits, of which loading makes 32 again, and rounded, so that they can be compressed."""
    weights = {name: rounded(one).bfloat16() for name, one in model.state_dict().items()}
    del weights["lm_head.weight"]  # the same as the embeddings
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)


def rounded(weights: Tensor) -> Tensor:
    """To four binary digits. Example: 0.3 = 1.2 / 4 -> 1.25 / 4 = 0.3125"""
    mantissa, exponent = torch.frexp(weights)
    return torch.ldexp((mantissa * 16).round() / 16, exponent)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the tiny policy for TextWorld's houses from nothing.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--size", type=int, default=10, help="demonstrations of a step")
    parser.add_argument("--houses", type=int, default=1000, help="that they are made in")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    model = imitation.make_model(tokenizer, layers=4, heads=2, intermediate_size=128)
    imitate(model, tokenizer, args.steps, size=args.size, houses=args.houses, seed=args.seed)
    save(model, tokenizer, args.output)


if __name__ == "__main__":
    main()
