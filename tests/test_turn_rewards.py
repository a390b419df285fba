"""Rewards of single turns, and failures that are worth something: from records to what a policy is trained on."""

import pytest
import test_trainer
import torch
from test_credit import NAN, assert_near
from test_trainer import TOOL_TURNS, captured, logged, make, spread, tokenizer  # noqa: F401  # a fixture
from test_trainer import settings as run_settings

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.credit.shaping import attempted, find_embedding, ngram_embedding, shaped_outcomes
from a2tgpo_trl.tools import tool
from a2tgpo_trl.turn_rewards import KINDS, TurnRewards


def call(name="search", arguments=None, status="ok", changes_state=False) -> dict:
    given = {"query": "x"} if arguments is None else arguments
    return {"name": name, "arguments": given, "status": status, "changes_state": changes_state}


def record(*turns: list[dict], cut: bool = False, rewards=()) -> dict:
    """Turns by their calls; a turn without any is an answer."""
    made = [
        {"calls": calls, "status": max((c["status"] for c in calls), default="ok"), "reward": None} for calls in turns
    ]
    if cut:
        made[-1]["status"] = "over_budget"
    for turn, reward in zip(made, rewards, strict=False):
        turn["reward"] = reward
    return {"turns": made}


# ---- kinds of turns


@pytest.mark.parametrize(
    ("kind", "rollout", "expected"),
    [
        ("bad_format", record([call(status="unparsed_call")], [call()], []), [1, 0, 0]),
        ("bad_format", record([call(status="unknown_tool"), call()], [call(status="bad_arguments")]), [1, 1]),
        ("bad_format", record([]), [1]),  # a first turn without a call
        ("bad_format", record([call()], [], cut=True), [0, 1]),
        ("bad_format", record([call(status="tool_error")], []), [0, 0]),
        ("failed_call", record([call(status="tool_error")], [call(status="timeout"), call()], [call()]), [1, 1, 0]),
        ("failed_call", record([call(status="unparsed_call")], []), [0, 0]),
        ("duplicate_call", record([call()], [call(arguments={"query": "y"})], [call()], []), [0, 0, 1, 0]),
        ("duplicate_call", record([call(), call()], []), [1, 0]),
        ("duplicate_call", record([call(arguments={"a": 1, "b": 2})], [call(arguments={"b": 2, "a": 1})]), [0, 1]),
        ("duplicate_call", record([call("look")], [call("search")]), [0, 0]),
        ("read_only", record([call()], [call(changes_state=True)], [call(status="tool_error")], []), [1, 0, 0, 0]),
        ("state_changing", record([call()], [call(), call(changes_state=True)], []), [0, 1, 0]),
        ("state_changing", record([call(changes_state=True, status="tool_error")]), [0]),
        ("environment", record([call()], [], rewards=[0.5]), [0.5, None]),
    ],
    ids=str,
)
def test_a_kind_of_turn_is_found_in_the_record(kind, rollout, expected):
    assert KINDS[kind](rollout) == expected


def test_scores_are_weighted_and_a_turn_without_any_has_none():
    rewards = TurnRewards({"failed_call": -0.5}, [environment_of := KINDS["environment"]])
    assert rewards.names == ["environment", "failed_call"] and environment_of is KINDS["environment"]
    rollout = record([call(status="tool_error")], [call()], [], rewards=[2.0])
    table = rewards.to_tensor([rewards.score(rollout), rewards.score(record([]))], 3)
    assert_near(table, [[[2, NAN, NAN], [1, 0, 0]], [[NAN, NAN, NAN], [0, NAN, NAN]]])
    assert_near(rewards.weighted(table), [[2 - 0.5, 0, 0], [0, NAN, NAN]])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda _: [1.0], "must return one number a turn, 2 for this rollout; it returned 1"),
        (lambda _: 1.0, "one number a turn, 2 for this rollout; it returned 1.0"),
        (lambda _: ["high", 0], "it returned ['high', 0]"),
        (lambda _: [float("inf"), 0], "each finite or None"),
    ],
)
def test_a_turn_reward_that_returns_something_else_is_told_what_it_should(function, message):
    with pytest.raises(ValueError) as error:
        TurnRewards({}, {"own": function}).score(record([call()], []))
    assert message in str(error.value) and "own" in str(error.value)


def test_names_of_turn_rewards_lead_somewhere():
    with pytest.raises(ValueError, match="no turn reward 'bad_formt'. Did you mean 'bad_format'"):
        TurnRewards({"bad_formt": 1.0})
    with pytest.raises(ValueError, match="two functions have the same name"):
        TurnRewards({}, [KINDS["read_only"], KINDS["read_only"]])


# ---- shaping


def test_a_failure_earns_in_proportion_to_its_likeness_to_what_passed():
    # The cosine of (3, 4) with (1, 0) is 0.6. The third tried nothing, the fourth is of another prompt, the last is
    # not scored.
    embeddings = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    outcomes, groups = torch.tensor([1.0, 0.0, 0.0, 0.0, NAN]), torch.tensor([0, 0, 0, 1, 0])
    shaped = shaped_outcomes(outcomes, embeddings, groups, weight=0.5, passing=1.0)
    assert_near(shaped, [1.0, 0.3, 0.0, 0.0, NAN])
    # Two that passed, (1, 0) and (0, 1): the mean of 0.6 and 0.8.
    both = torch.tensor([[1.0, 0.0], [0.0, 5.0], [3.0, 4.0]])
    shaped = shaped_outcomes(torch.tensor([1.0, 1.1, -0.1]), both, torch.zeros(3), weight=0.5, passing=1.0)
    assert_near(shaped, [1.0, 1.1, -0.1 + 0.35])


def test_ngrams_tell_code_apart_by_what_it_says():
    texts = ["x = 1", "x = 2", "x = 1", "", "print(a + b)"]
    vectors = torch.nn.functional.normalize(ngram_embedding(texts))
    likeness = (vectors @ vectors.T).tolist()
    assert likeness[0][2] == pytest.approx(1.0) and likeness[0][1] == pytest.approx(0.5)
    assert likeness[0][3] == 0 and likeness[0][4] == 0


def test_what_was_tried_is_the_text_of_all_calls():
    rollout = record(
        [call("python", {"code": "a = 1"}), call("other", None)], [call("python", {"code": "b", "n": 3})], []
    )
    rollout["turns"][0]["calls"].append(call("python", "not a mapping"))
    assert attempted(rollout) == "a = 1\nx\nb"


def test_an_embedding_is_named_or_a_function_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(
        "import torch\ndef lengths(texts):\n    return torch.tensor([[len(t)] for t in texts])\n"
    )
    monkeypatch.chdir(tmp_path)
    assert find_embedding("own.py:lengths")(["abc"]).tolist() == [[3]]
    assert find_embedding("ngrams") is ngram_embedding
    with pytest.raises(ValueError, match="needs sentence-transformers"):
        find_embedding("some/encoder")


# ---- in training


def depth(rollout: dict) -> list[float]:
    """Ten times the number of the turn: easy to find again."""
    return [10.0 * i for i, _ in enumerate(rollout["turns"])]


def test_turn_rewards_reach_the_advantages_the_records_and_the_log(tokenizer, tmp_path):  # noqa: F811
    args = A2TGPOConfig(
        **run_settings(
            tmp_path, max_steps=1, credit="gtpo", failure_shaping=0.0, gain_normalization="none", discount=0.5
        ),
        turn_rewards={"bad_format": -3.0},
    )
    trainer = make(tokenizer, args, reward_funcs=spread, turn_reward_funcs=[depth])
    seen = []
    trainer.on_rollouts = seen.extend
    batch = captured(trainer)[0]
    # Rollouts of 3, 2, 1 and 4 turns; the third answers at once. Outcomes 0, 1, 2, 0.
    assert [len(one["turns"]) for one in seen] == [turns + 1 for turns in TOOL_TURNS]
    assert seen[2]["turn_rewards"] == {"depth": [0.0], "bad_format": [1.0]}
    expected = {
        3: [0 + 0.5 * (10 + 0.5 * 20), 10 + 0.5 * 20, 20],
        2: [0 + 0.5 * (10 + 1), 10 + 1],
        1: [-3 + 2],
        4: [0.5 * (10 + 0.5 * (20 + 0.5 * 30)), 10 + 0.5 * (20 + 0.5 * 30), 20 + 0.5 * 30, 30],
    }
    for row in range(4):
        turns = batch["turn_index"][row]
        credited = [batch["advantages"][row][turns == k][0].item() for k in range(int(turns.max()) + 1)]
        assert credited == pytest.approx(expected[len(credited)])
    assert logged(trainer, "turn_rewards/depth/turn_2") == [10.0]
    assert logged(trainer, "turn_rewards/bad_format/mean") == pytest.approx([0.1])  # one of ten turns


class Shop(test_trainer.Library):
    """An environment that rewards each step with the number of things that were asked so far."""

    turn_reward: float | None = None

    @tool(changes_state=True)
    def search(self, query: str) -> str:
        """Look something up.

        Args:
            query: What to look for.
        """
        self.asked += 1
        self.turn_reward = float(self.asked)
        return f"The {query} is Paris."


def test_an_environment_rewards_its_steps(tokenizer, tmp_path):  # noqa: F811
    args = A2TGPOConfig(
        **run_settings(tmp_path, max_steps=1, credit="mt_grpo", gain_normalization="none"),
        turn_rewards={"state_changing": 0.5},
    )
    trainer = make(tokenizer, args, tools=None, environment_factory=Shop, reward_funcs=None)
    seen = []
    trainer.on_rollouts = seen.extend
    batch = captured(trainer)[0]
    # The last one makes two calls a turn: its steps earn 2, 4 and 6.
    earned = [[turn["reward"] for turn in one["turns"]] for one in seen]
    assert earned == [[1, 2, None], [1, None], [None], [2, 4, 6, None]]
    assert [one["turn_rewards"]["state_changing"] for one in seen][3] == [1, 1, 1, 0]
    rows = batch["turn_index"].amax(dim=1).tolist()
    row = rows.index(3)
    of_turn = [batch["advantages"][row][batch["turn_index"][row] == k][0].item() for k in range(4)]
    # Sums of what came from the turn on, and what the whole rollout was worth.
    assert [x - of_turn[3] for x in of_turn] == pytest.approx([12 + 1.5, 10 + 1.0, 6 + 0.5, 0], abs=1e-4)


def test_a_reward_that_an_environment_left_from_an_earlier_turn_is_not_given_again(tokenizer, tmp_path):  # noqa: F811
    class Once(Shop):
        def search(self, query: str) -> str:
            """Look something up.

            Args:
                query: What to look for.
            """
            self.asked += 1
            if self.asked == 1:
                self.turn_reward = 7.0
            return "Paris"

    args = A2TGPOConfig(**run_settings(tmp_path, max_steps=1, credit="mt_grpo"))
    trainer = make(tokenizer, args, tools=None, environment_factory=Once, reward_funcs=None)
    seen = []
    trainer.on_rollouts = seen.extend
    trainer.train()
    assert [turn["reward"] for turn in seen[0]["turns"]] == [7.0, None, None]


def test_failures_are_shaped_in_training_and_the_cost_is_logged(tokenizer, tmp_path):  # noqa: F811
    def first_passes(completions, **_):
        return [1.0, 0.0, 0.0, 0.0]

    common = run_settings(tmp_path, max_steps=1, credit="gtpo", gain_normalization="none", shaping_embedding="ngrams")
    trainer = make(tokenizer, A2TGPOConfig(**common, turn_rewards={}), reward_funcs=first_passes)
    batch = captured(trainer)[0]
    last = {int(turns.max()): row for row, turns in enumerate(batch["turn_index"])}
    of_answers = {k: batch["advantages"][row][batch["turn_index"][row] == k][0].item() for k, row in last.items()}
    # Queries "capital TURN ROW" of rollouts 0, 1 and 3; the third calls nothing, and is like nothing.
    assert of_answers[2] == 1.0 and of_answers[0] == 0.0
    assert 0 < of_answers[1] < 0.5 and 0 < of_answers[3] < 0.5
    assert logged(trainer, "shaping/share") == [0.5] and logged(trainer, "shaping/seconds")[0] > 0


@pytest.mark.parametrize(
    ("changes", "keywords", "message"),
    [
        ({"credit": "mt_grpo"}, {}, "credits turn rewards, and there are none"),
        ({"credit": "gtpo"}, {"tools": None, "scripted": False}, "credit='gtpo' needs tools or an environment"),
        ({"turn_rewards": {"failed_call": -1}}, {"tools": None, "scripted": False}, "turn_rewards needs tools"),
        ({"turn_rewards": {"environment": 1}}, {}, "no environment has an attribute turn_reward"),
        ({"turn_rewards": {"depht": 1}}, {"turn_reward_funcs": [depth]}, "no turn reward 'depht'"),
    ],
    ids=str,
)
def test_what_cannot_be_rewarded_is_refused_before_the_first_step(changes, keywords, message, tokenizer, tmp_path):  # noqa: F811
    with pytest.raises(ValueError) as error:
        make(tokenizer, A2TGPOConfig(**run_settings(tmp_path, **changes)), **keywords)
    assert message in str(error.value)


def test_a_turn_reward_that_raises_ends_the_run_with_its_name(tokenizer, tmp_path):  # noqa: F811
    def broken(rollout):
        return rollout["no such key"]

    trainer = make(tokenizer, A2TGPOConfig(**run_settings(tmp_path)), turn_reward_funcs=[broken])
    with pytest.raises(ValueError, match="A turn reward failed. KeyError: 'no such key'"):
        trainer.train()
