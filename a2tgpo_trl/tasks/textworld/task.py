"""seed -> houses of TextWorld -> the task of answering questions on them by acting in them."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from ...errors import shown
from ...rewards.text import answer_format, exact_match, f1
from .. import Task, check_number
from ..atlas.useful import COLUMN
from ..rng import Rng
from .games import House, Size, make_house
from .play import Play, play, view
from .questions import KINDS, Question, questions


INSTRUCTION = (
    "Find the answer by acting in the house, one command at a time. Then reply with <answer>ANSWER</answer>: the name "
    "of what the thing is in or on, or yes or no."
)
MOVES = (2, 3, 4)
QUESTIONS_OF_A_HOUSE = 3
MOST = {"rooms": 8, "containers": 8, "supporters": 8, "things": 16}  # TextWorld has names for these
IN_VAIN = 200  # houses in a row without any of the questions that are still missing


def textworld(
    seed: int = 0,
    train_questions: int = 512,
    test_questions: int = 120,
    *,
    kinds: Sequence[str] = ("location",),
    train_moves: Sequence[int] = MOVES,
    test_moves: Sequence[int] = MOVES,
    rooms: int = Size.rooms,
    containers: int = Size.containers,
    supporters: int = Size.supporters,
    things: int = Size.things,
    supporting_documents: bool = False,
) -> Task:
    """Questions on houses, at most three per house. No house has both training and test questions.

    Args:
        kinds: Kinds of questions, in equal parts: "location" (Where is the peanut?), "existence" (Is there any peanut
            in the house?), "edible" (Is the peanut edible?). "yes" and "no" are right equally often.
        train_moves: The fewest commands after which the thing is seen, in the training questions, in equal parts. A
            policy that does not know where the thing is needs more.
        test_moves: The same for the test questions.
        rooms, containers, supporters, things: Their number in a house. A supporter is a table, a shelf, ...
        supporting_documents: Whether rows have a column of this name, with the sentence with which the game replies
            to each command of a shortest walk to the answer. `atlas.useful.useful_search` reads it.
    """
    size = _size(rooms=rooms, containers=containers, supporters=supporters, things=things)
    if not isinstance(kinds, (list, tuple)) or not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds must list some of {', '.join(KINDS)}; got {shown(kinds)}.")
    check_number("train_questions", train_questions)
    check_number("test_questions", test_questions)
    houses: dict[str, House] = {}

    def rows(part: str, moves: Sequence[int], number: int) -> Dataset:
        drawn = draw(part, seed, number, kinds, moves, size)
        houses.update({name: house for name, house, _ in drawn})
        return Dataset.from_list([_row(*one, supporting_documents) for one in drawn])

    for name, moves in (("train_moves", train_moves), ("test_moves", test_moves)):
        if not isinstance(moves, (list, tuple)) or not moves or not all(type(one) is int and one > 0 for one in moves):
            raise ValueError(
                f"{name} must list numbers of commands, at least 1, such as [2, 3, 4]; got {shown(moves)}."
            )
    return Task(
        train_dataset=rows("train", train_moves, train_questions),
        test_dataset=rows("test", test_moves, test_questions),
        environment_factory=play(houses),
        reward_funcs=[exact_match, answer_format, f1],
        reward_weights=[1.0, 0.1, 0.0],  # F1 is watched, not trained on
        group_by="hops",
    )


def prompt(house: House, question: Question) -> list[dict[str, str]]:
    """The prompt for a question, which includes what the player sees at the start."""
    asked = "\n".join([question.text, *view(house.start)])
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": asked}]


def draw(
    part: str, seed: object, number: int, kinds: Sequence[str], moves: Sequence[int], size: Size
) -> list[tuple[str, House, Question]]:
    """Draw `number` questions, of each kind and length in turn, each with its house and the house's name."""
    wanted = [_wanted(i, kinds, moves) for i in range(number)]
    missing = list(range(number))
    found: dict[int, tuple[str, House, Question]] = {}
    rng, place, in_vain = Rng("questions of textworld", part, seed), 0, 0
    following = make_house(part, seed, 0, size)
    while missing:
        house, following = following, make_house(part, seed, place + 1, size)
        taken = 0
        for question in questions(house, following, kinds, rng):
            row = next((i for i in missing if question.fits(*wanted[i])), None)
            if row is not None and taken < QUESTIONS_OF_A_HOUSE:
                missing.remove(row)
                found[row] = (f"{part} {place}", house, question)
                taken += 1
        place, in_vain = place + 1, 0 if taken else in_vain + 1
        if in_vain == IN_VAIN:
            kind, length, _ = wanted[missing[0]]
            raise ValueError(
                f"{IN_VAIN} houses in a row had no further question of the kind {kind!r} whose thing takes {length} "
                f"commands to see. Ask for fewer moves, or for larger houses (rooms is {size.rooms})."
            )
    return [found[i] for i in range(number)]


def milestones(house: House, question: Question) -> list[str]:
    """The sentence with which the game replies to each command of the walk; for a room, only the first time.

    Example: open gate, go north, open box -> "You open gate.", "You are in the bar.", "You open box."
    """
    game = Play({"": house})
    game.reset("")
    replies = [game.act(command).split("\n")[0] for command in question.walk]
    return [reply for reply in dict.fromkeys(replies) if reply != f"You are in the {house.start.here}."]


def _row(name: str, house: House, question: Question, supported: bool) -> dict[str, Any]:
    row = {
        "prompt": prompt(house, question),
        "answer": question.answer,
        "hops": len(question.walk),
        "kind": question.kind,
        "game": name,
    }
    return row | ({COLUMN: milestones(house, question)} if supported else {})


def _wanted(row: int, kinds: Sequence[str], moves: Sequence[int]) -> tuple[str, int, str | None]:
    """Kind, length and answer that the question in a row must have."""
    around, which = divmod(row, len(kinds))
    again, length = divmod(around, len(moves))
    answer = None if kinds[which] == "location" else ("yes", "no")[(again + length) % 2]
    return kinds[which], moves[length], answer


def _size(**numbers: int) -> Size:
    for name, number in numbers.items():
        least = 2 if name == "rooms" else 1 if name == "things" else 0
        check_number(name, number, least, MOST[name])
    return Size(**numbers)
