"""Houses of TextWorld: the same everywhere, not guessable, and answered by a player who walks as required."""

import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from a2tgpo_trl.rewards import exact_match
from a2tgpo_trl.tasks.atlas.useful import COLUMN, useful_search
from a2tgpo_trl.tasks.textworld.games import Scene, Size, library, make_house, scene
from a2tgpo_trl.tasks.textworld.play import Play, normal, view
from a2tgpo_trl.tasks.textworld.questions import KINDS
from a2tgpo_trl.tasks.textworld.task import QUESTIONS_OF_A_HOUSE, draw, milestones, textworld
from a2tgpo_trl.tasks.textworld.walks import past_everything, to_see


pytestmark = pytest.mark.textworld


@pytest.fixture(scope="module")
def drawn():
    """Questions of all kinds, each with its house."""
    return [(house, question) for _, house, question in draw("test", 0, 36, KINDS, (1, 2, 3, 4), Size())]


def play(house) -> Play:
    game = Play({"it": house})
    game.reset(game="it", hops=2)
    return game


def replies(house, commands) -> list[str]:
    game = play(house)
    return [game.act(command) for command in commands]


def answer_in(kind: str, thing: str, told: list[str]) -> str:
    """The answer of a player who has read what the game said, and knows nothing else."""
    seen = [line for reply in told for line in reply.split("\n") if line.startswith(f"The {thing} is ")]
    if kind == "edible":
        return "yes" if f"You eat {thing}." in told else "no"
    if kind == "existence":
        return "yes" if seen else "no"
    return seen[-1].split(" the ", 1)[1].rstrip(".")


# ---- the data


def test_a_seed_gives_the_same_houses_and_questions_on_every_machine():
    # If you change what is drawn, change the digest, and make a new policy if the words changed.
    task = textworld(train_questions=24, test_questions=12, kinds=KINDS, supporting_documents=True)
    rows = json.dumps([task.train_dataset.to_list(), task.test_dataset.to_list()])
    assert hashlib.sha256(rows.encode()).hexdigest()[:16] == "df1f80dddb4e238a"
    other = textworld(seed=1, train_questions=1, test_questions=12, kinds=KINDS, supporting_documents=True)
    assert other.test_dataset.to_list() != task.test_dataset.to_list()


def test_houses_of_train_and_test_are_disjoint_with_few_questions_each():
    task = textworld(train_questions=30, test_questions=30)
    train, test = (Counter(rows["game"]) for rows in (task.train_dataset, task.test_dataset))
    assert not train.keys() & test.keys()
    assert max([*train.values(), *test.values()]) <= QUESTIONS_OF_A_HOUSE
    # Houses differ not only in their names, but in what is in them.
    starts = [repr(make_house(part, 0, i).start) for part in ("train", "test", "school") for i in range(20)]
    assert len(set(starts)) == 60


def test_kinds_and_lengths_come_in_equal_parts_and_yes_is_as_frequent_as_no():
    task = textworld(train_questions=24, test_questions=9, kinds=KINDS, train_moves=[2, 3], test_moves=[2, 3, 4])
    rows = task.train_dataset
    assert Counter(rows["kind"]) == {"location": 8, "existence": 8, "edible": 8}
    said = Counter(answer for kind, answer in zip(rows["kind"], rows["answer"], strict=True) if kind != "location")
    assert said == {"yes": 8, "no": 8}
    # Eating takes two commands more than seeing: taking, eating.
    lengths = {kind: Counter() for kind in KINDS}
    for kind, answer, hops in zip(rows["kind"], rows["answer"], rows["hops"], strict=True):
        lengths[kind][hops if answer != "no" or kind == "edible" else "everywhere"] += 1
    assert lengths["location"] == {2: 4, 3: 4} and lengths["edible"] == {4: 4, 5: 4}
    assert lengths["existence"]["everywhere"] == 4


def test_answers_are_facts_of_the_game(drawn):
    for house, question in drawn:
        facts = house.game.world.facts
        named = {(fact.name, *(house.game.infos[one.name].name for one in fact.arguments)) for fact in facts}
        holders = {fact[2] for fact in named if fact[0] in ("in", "on", "at") and fact[1] == question.thing}
        if question.kind == "location":
            assert holders == {question.answer}
        elif question.kind == "existence":
            assert bool(holders) == (question.answer == "yes")
        else:
            assert (("edible", question.thing) in named) == (question.answer == "yes")


def test_guessing_without_looking_is_no_better_than_chance(drawn):
    # The best guess from the thing's name, or else overall: the most frequent answer among other questions.
    rows = [row for _, _, row in draw("train", 0, 200, ["location"], (2, 3, 4), Size())]
    test = [(house, row) for _, house, row in draw("test", 0, 60, ["location"], (2, 3, 4), Size())]
    places: dict[str, Counter] = {}
    for row in rows:
        places.setdefault(row.thing, Counter())[row.answer] += 1
    overall = Counter(row.answer for row in rows).most_common(1)[0][0]
    guesses = [places[row.thing].most_common(1)[0][0] if row.thing in places else overall for _, row in test]
    assert sum(guess == row.answer for guess, (_, row) in zip(guesses, test, strict=True)) <= 6
    # The view from the start does not show the thing either.
    assert not any(f"The {row.thing} is" in line for house, row in test for line in view(house.start))


# ---- walks


def test_reference_walk_answers_every_question_at_its_last_move(drawn):
    answers, texts = [], []
    for house, question in drawn:
        told = replies(house, question.walk)
        texts.append(f"<answer>{answer_in(question.kind, question.thing, told)}</answer>")
        answers.append(question.answer)
        if question.moves is not None:  # an existing thing is seen by the last move, and by none before it
            seen = [f"The {question.thing} is " in reply for reply in told[: question.moves]]
            assert seen == [False] * (question.moves - 1) + [True]
    assert exact_match(texts, answers) == [1.0] * len(drawn)


def test_no_shorter_walk_finds_the_object(drawn):
    # Everything that can be done with doors, containers and ways under TextWorld's rules, up to one command less.
    for house, question in [one for one in drawn if one[1].kind == "location" and one[1].moves > 1][:9]:
        states = [library().generator.game.GameProgression(house.game, track_quests=False)]
        for _ in range(question.moves - 1):
            following = []
            for state in states:
                for action in state.valid_actions:
                    if action.name.startswith(("go/", "open/")):
                        following.append(state.copy())
                        following[-1].update(action)
            states = following
            for state in states:
                now = scene(house.game, state.state.facts)
                holder = now.where[question.thing]
                assert holder in now.closed or now.where.get(holder, holder) != now.here


def test_walk_past_everything_sees_every_room_and_object():
    for number in range(8):
        house = make_house("train", 5, number)
        told = "\n".join([*view(house.start), *replies(house, past_everything(house.start))])
        assert all(f"The {thing} is " in told for thing in house.start.things())
        assert all(f"You are in the {room}." in told for room in house.start.exits)


def test_a_closed_door_costs_a_command():
    # A key in a closed box in the bar. The gate is shut, and the way through the hall is as long: two commands.
    exits = {
        "cellar": {"north": ("bar", "gate"), "west": ("hall", None)},
        "hall": {"east": ("cellar", None), "north": ("bar", None)},
        "bar": {"south": ("cellar", "gate"), "west": ("hall", None)},
    }
    kinds = {"cellar": "r", "hall": "r", "bar": "r", "gate": "d", "box": "c", "key": "o"}
    shut = Scene("cellar", kinds, exits, {"box": "bar", "key": "box"}, frozenset({"gate", "box"}), frozenset())
    assert to_see(shut, "key") == ["open gate", "go north", "open box"]
    ajar = Scene("cellar", kinds, exits, {"box": "bar", "key": "box"}, frozenset({"box"}), frozenset())
    assert to_see(ajar, "key") == ["go north", "open box"]
    assert past_everything(ajar) == ["go west", "go north", "open box"]


# ---- which turns were useful


def record(house, question, commands):
    told = replies(house, commands)
    turns = [{"calls": [{"result": reply}]} for reply in told] + [{"calls": []}]
    return {COLUMN: milestones(house, question), "turns": turns}


def test_only_the_turns_of_the_reference_walk_are_useful(drawn):
    for house, question in drawn:
        told = useful_search(record(house, question, question.walk))
        if question.moves is not None:
            assert told == [1.0] * len(question.walk) + [None]
        else:  # a player who goes everywhere sometimes walks back
            assert sum(told[:-1]) == len(milestones(house, question)) and told[0] == 1.0
        wasted = [command for one in question.walk for command in ("look", one, "examine", "inventory")]
        again = useful_search(record(house, question, wasted))
        assert again[:-1] == [use for one in told[:-1] for use in (0.0, one, 0.0, 0.0)]


def test_wrong_move_and_repeated_command_are_not_useful(drawn):
    house, question = next(
        (house, one)
        for house, one in drawn
        if one.kind == "location" and one.moves == 1 and len(house.start.exits[house.start.here]) > 1
    )
    (command,) = question.walk
    assert useful_search(record(house, question, [command, command])) == [1.0, 0.0, None]
    others = [f"go {way}" for way in house.start.exits[house.start.here] if f"go {way}" != command]
    assert useful_search(record(house, question, others[:1])) == [0.0, None]


# ---- the environment


def test_commands_are_parsed_loosely_and_invalid_ones_get_a_message():
    houses = [make_house("train", 3, i) for i in range(10)]
    lying = ((one, name) for one in houses for name in one.start.inside(one.start.here) if name in one.start.things())
    house, thing = next(lying)
    game = play(house)
    start = "\n".join(view(house.start))
    assert game.act("look") == game.act("  Look ") == start
    assert game.act("dance on the table") == "You cannot dance on table."
    assert game.act("") == "Say what to do."
    assert game.act(f"eat {thing}") == f"You do not carry {normal(thing)}."
    assert game.act("inventory") == "You carry nothing."
    assert game.act(f"Take the {thing}") == f"You take {thing}."
    assert game.act("inventory") == game.act(f"examine {thing}") == f"You carry the {thing}."
    assert f"The {thing} " not in game.act("look")
    game.reset(game="it")
    assert game.act("look") == start


def test_object_in_an_open_container_is_taken_without_naming_the_container():
    taken = 0
    for house in (make_house("train", 3, i) for i in range(10)):
        for thing in house.start.things():
            holder = house.start.where[thing]
            if house.start.where.get(holder) == house.start.here and holder not in house.start.closed:
                assert play(house).act(f"take {thing}") == f"You take {thing} from {holder}."
                taken += 1
    assert taken > 2


def test_rollouts_in_one_house_do_not_disturb_each_other():
    house = make_house("train", 0, 2)
    walk = past_everything(house.start)
    alone = replies(house, walk)
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda _: replies(house, walk), range(24)))
    assert together == [alone] * 24


def test_the_largest_houses_can_be_made():
    house = make_house("train", 0, 0, Size(8, 8, 8, 16))
    assert Counter(house.start.kinds.values())["r"] == 8 and len(house.start.things()) == 16


# ---- mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kinds": ["colour"]}, r"kinds must list some of location, existence, edible; got \['colour'\]"),
        ({"kinds": "location"}, "kinds must list some of"),
        ({"kinds": []}, "kinds must list some of"),
        ({"train_moves": [0]}, r"train_moves must list numbers of commands, at least 1.*; got \[0\]"),
        ({"test_moves": 3}, "test_moves must list numbers of commands"),
        ({"rooms": 1}, "rooms must be a whole number from 2 to 8; got 1"),
        ({"things": 0}, "things must be a whole number from 1 to 16; got 0"),
        ({"containers": True}, "containers must be a whole number from 0 to 8; got True"),
        ({"rooms": 2, "train_moves": [9]}, "200 houses in a row had no further question of the kind 'location'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else json.dumps(value),
)
def test_invalid_settings_are_an_error(settings, message):
    with pytest.raises(ValueError, match=message):
        textworld(train_questions=2, test_questions=2, **settings)
