"""Rewards of single turns and shaped failures: from records to what a policy is trained on."""

import functools

import pytest
import torch
import training
from accelerate import Accelerator
from near import NAN, assert_near
from training import TOOL_TURNS, captured, logged, make, spread
from training import settings as run_settings

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.credit.credit_pass import CreditPass
from a2tgpo_trl.credit.shaping import attempted, find_embedding, ngram_embedding, shaped_outcomes
from a2tgpo_trl.credit.turn_rewards import KINDS, TurnRewards
from a2tgpo_trl.tools import tool


def call(name="search", arguments=None, status="ok", changes_state=False) -> dict:
    given = {"query": "x"} if arguments is None else arguments
    made = status in ("ok", "tool_error", "timeout", "result_cut")
    return {"name": name, "arguments": given, "status": status, "made": made, "changes_state": changes_state}


def record(*turns: list[dict], cut: bool = False, rewards=()) -> dict:
    """A record of turns given by their calls; a turn without calls is an answer."""
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
        # Two calls that cannot be parsed are not the same call, and none was made.
        ("duplicate_call", record([call(status="unparsed_call")], [call(status="unparsed_call")]), [0, 0]),
        ("read_only", record([call()], [call(changes_state=True)], [call(status="tool_error")], []), [1, 0, 0, 0]),
        ("state_changing", record([call()], [call(), call(changes_state=True)], []), [0, 1, 0]),
        ("state_changing", record([call(changes_state=True, status="tool_error")]), [0]),
        # A valid call, but the rollout ended before it was made.
        ("state_changing", record([{**call(changes_state=True), "made": False}, call(status="unparsed_call")]), [0]),
        ("read_only", record([{**call(), "made": False}]), [0]),
        ("environment", record([call()], [], rewards=[0.5]), [0.5, None]),
    ],
    ids=str,
)
def test_each_kind_of_turn_reward_is_computed_from_the_record(kind, rollout, expected):
    assert KINDS[kind](rollout) == expected


def test_turn_rewards_are_weighted_and_missing_ones_stay_nan():
    rewards = TurnRewards({"failed_call": -0.5}, [environment_of := KINDS["environment"]])
    assert rewards.names == ["environment", "failed_call"] and environment_of is KINDS["environment"]
    rollout = record([call(status="tool_error")], [call()], [], rewards=[2.0])
    table = rewards.to_tensor([rewards.score(rollout), rewards.score(record([]))], 3)
    assert_near(table, [[[2, NAN, NAN], [1, 0, 0]], [[NAN, NAN, NAN], [0, NAN, NAN]]])
    assert_near(rewards.weighted(table), [[2 - 0.5, 0, 0], [0, NAN, NAN]])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda _: [1.0], "must return one number per turn, 2 for this rollout; it returned 1"),
        (lambda _: 1.0, "one number per turn, 2 for this rollout; it returned 1.0"),
        (lambda _: ["high", 0], "it returned ['high', 0]"),
        (lambda _: [float("inf"), 0], "each finite or None"),
    ],
)
def test_invalid_turn_reward_result_is_an_error_with_the_expected_shape(function, message):
    with pytest.raises(ValueError) as error:
        TurnRewards({}, {"own": function}).score(record([call()], []))
    assert message in str(error.value) and "own" in str(error.value)


def test_unknown_or_duplicate_turn_reward_names_are_an_error():
    with pytest.raises(ValueError, match="no turn reward 'bad_formt'. Did you mean 'bad_format'"):
        TurnRewards({"bad_formt": 1.0})
    with pytest.raises(ValueError, match="two functions have the same name"):
        TurnRewards({}, [KINDS["read_only"], KINDS["read_only"]])


# ---- shaping


def test_failed_outcome_is_shaped_by_similarity_to_passing_rollouts():
    # The cosine of (3, 4) with (1, 0) is 0.6. The third tried nothing, the fourth has another prompt, the last is not
    # scored.
    embeddings = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    outcomes, groups = torch.tensor([1.0, 0.0, 0.0, 0.0, NAN]), torch.tensor([0, 0, 0, 1, 0])
    shaped = shaped_outcomes(outcomes, embeddings, groups, weight=0.5, passing=1.0)
    assert_near(shaped, [1.0, 0.3, 0.0, 0.0, NAN])
    # (1, 0) and (0, 1) passed: the mean of 0.6 and 0.8, times the distance to 1. A failure remains a failure.
    both = torch.tensor([[1.0, 0.0], [0.0, 5.0], [3.0, 4.0]])
    shaped = shaped_outcomes(torch.tensor([1.0, 1.1, -0.1]), both, torch.zeros(3), weight=0.5, passing=1.0)
    assert_near(shaped, [1.0, 1.1, -0.1 + 0.35 * 1.1])
    shaped = shaped_outcomes(torch.tensor([1.0, 0.9]), torch.ones(2, 3), torch.zeros(2), weight=1.0, passing=1.0)
    assert_near(shaped, [1.0, 1.0])


def test_ngram_embedding_distinguishes_code_by_content():
    texts = ["x = 1", "x = 2", "x = 1", "", "print(a + b)"]
    vectors = torch.nn.functional.normalize(ngram_embedding(texts))
    likeness = (vectors @ vectors.T).tolist()
    assert likeness[0][2] == pytest.approx(1.0) and likeness[0][1] == pytest.approx(0.5)
    assert likeness[0][3] == 0 and likeness[0][4] == 0


def test_attempted_text_joins_the_arguments_of_all_calls():
    rollout = record(
        [call("python", {"code": "a = 1"}), call("other", None)], [call("python", {"code": "b", "n": 3})], []
    )
    rollout["turns"][0]["calls"].append(call("python", "not a mapping"))
    assert attempted(rollout) == "a = 1\nx\nb"


def test_shaping_embedding_is_a_known_name_or_a_custom_function(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(
        "import torch\ndef lengths(texts):\n    return torch.tensor([[len(t)] for t in texts])\n"
    )
    monkeypatch.chdir(tmp_path)
    assert find_embedding("own.py:lengths")(["abc"]).tolist() == [[3]]
    assert find_embedding("ngrams") is ngram_embedding
    with pytest.raises(
        ValueError, match="shaping_embedding: 'some/encoder' (needs sentence-transformers|could not be)"
    ):
        find_embedding("some/encoder")


# ---- in training


def depth(rollout: dict) -> list[float]:
    """Ten times the number of the turn: easy to find again."""
    return [10.0 * i for i, _ in enumerate(rollout["turns"])]


def test_turn_rewards_reach_the_advantages_the_records_and_the_log(tokenizer, tmp_path):
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
    # Rollouts of 3, 2, 1 and 4 turns; the third answers immediately. Outcomes 0, 1, 2, 0.
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


def test_turn_rewards_of_rollouts_out_of_the_loss_are_not_compared(tmp_path):
    # Single turns that earned 10, 30 and 80. The third was cut off and masked out: it has no turn in the loss.
    settings = A2TGPOConfig(**run_settings(tmp_path, credit="mt_grpo")).credit_settings
    credit = CreditPass(
        settings,
        Accelerator(cpu=True),
        {"earned": lambda rollout: rollout["earned"]},
        [],
        has_tools=True,
        has_rollout_func=False,
        splits_models=False,
    )
    read = credit.read([{**record([]), "earned": [earned]} for earned in (10.0, 30.0, 80.0)])
    no_gains, nothing, groups = torch.full((3, 1), NAN), torch.zeros(3), torch.zeros(3, dtype=torch.long)
    evidence, metrics = credit.evidence(read, no_gains, nothing, nothing, torch.tensor([1, 1, 0]), groups, 0.0)
    assert_near(credit.advantages(evidence), [[-1.0], [1.0], [0.0]], 1e-3)
    assert metrics["turn_rewards/earned/mean"] == 20.0


def points(rollout: dict) -> list[float]:
    """What the turns earned, according to the rollout function."""
    return rollout["points"]


def scored_rollouts(prompts, trainer) -> dict:
    points = [[10.0, 20.0], [30.0], [], [40.0]]
    return {**training.rollouts_of_tokens(prompts, trainer), "points": points}


def test_turns_of_a_rollout_func_are_rewarded_and_credited_by_gtpo(tokenizer, tmp_path):
    args = A2TGPOConfig(
        **run_settings(
            tmp_path, max_steps=1, credit="gtpo", failure_shaping=0.0, gain_normalization="none", discount=0.5
        ),
        turn_rewards={"bad_format": -3.0},
    )
    trainer = make(
        tokenizer,
        args,
        tools=None,
        rollout_func=scored_rollouts,
        reward_funcs=spread,
        turn_reward_funcs=[points],
        train_dataset=training.questions().remove_columns("answer"),
    )
    batch = captured(trainer)[0]
    # By number of tokens: 5 (two turns, the second cut), 4 (one turn, answered), 3 (one, cut). Outcomes 0, 1, 0.
    expected = {5: [10 + 0.5 * (20 - 3), 20 - 3], 4: [30 + 1], 3: [40 - 3], 1: []}
    for row, tokens in enumerate(batch["completion_mask"].sum(dim=1).tolist()):
        turns = batch["turn_index"][row]
        credited = [batch["advantages"][row][turns == k][0].item() for k in range(int(turns.max()) + 1)]
        assert credited == pytest.approx(expected[tokens])
    assert logged(trainer, "turn_rewards/points/turn_1") == [pytest.approx(80 / 3)]


def test_rollout_function_failures_are_shaped_by_their_answered_texts(tokenizer, tmp_path):
    turns = [{"calls": None, "text": text, "tokens_in": read} for text, read in (("look", 3), ("go", 2), ("done", 0))]
    assert attempted({"turns": turns}) == "look\ngo"

    def alike(prompts, trainer) -> dict:
        output = training.rollouts_of_tokens(prompts, trainer)
        output["completion_ids"][1] = output["completion_ids"][0][:4]
        return output

    args = A2TGPOConfig(**run_settings(tmp_path, max_steps=1, credit="gtpo", shaping_embedding="ngrams"))
    trainer = make(tokenizer, args, tools=None, rollout_func=alike, reward_funcs=spread)
    trainer.train()
    # Outcomes 0, 1, 2, 0. The first tried the same as the second, nothing like the third: 0.5 x (1 + 0) / 2 of 1.
    assert logged(trainer, "shaping/passed") == [0.5] and logged(trainer, "shaping/share") == [0.25]
    assert logged(trainer, "shaping/mean") == [pytest.approx(0.25 / 4)]


class Shop(training.Library):
    """An environment that rewards each step with the number of questions asked so far."""

    turn_reward = 0.0  # reset at the start of each turn

    @tool(changes_state=True)
    def search(self, query: str) -> str:
        """Look something up.

        Args:
            query: What to look for.
        """
        self.asked += 1
        self.turn_reward += self.asked
        return f"The {query} is Paris."


def test_environment_turn_rewards_are_recorded_and_credited(tokenizer, tmp_path):
    args = A2TGPOConfig(
        **run_settings(tmp_path, max_steps=1, credit="mt_grpo", gain_normalization="none"),
        turn_rewards={"state_changing": 0.5},
    )
    trainer = make(tokenizer, args, tools=None, environment_factory=Shop, reward_funcs=None)
    seen = []
    trainer.on_rollouts = seen.extend
    batch = captured(trainer)[0]
    # The last one makes two calls per turn: its steps earn 1 + 2, 3 + 4 and 5 + 6.
    earned = [[turn["reward"] for turn in one["turns"]] for one in seen]
    assert earned == [[1, 2, None], [1, None], [None], [3, 7, 11, None]]
    assert [one["turn_rewards"]["state_changing"] for one in seen][3] == [1, 1, 1, 0]
    rows = batch["turn_index"].amax(dim=1).tolist()
    row = rows.index(3)
    of_turn = [batch["advantages"][row][batch["turn_index"][row] == k][0].item() for k in range(4)]
    # Sums from each turn on, and the value of the whole rollout.
    assert [x - of_turn[3] for x in of_turn] == pytest.approx([21 + 1.5, 18 + 1.0, 11 + 0.5, 0], abs=1e-4)


def test_stale_turn_reward_of_an_environment_is_not_given_again(tokenizer, tmp_path):
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
    assert [turn["reward"] for turn in seen[0]["turns"]] == [7.0, 0.0, None]


class Late(training.Library):
    def reset(self, **row) -> str:
        self.turn_reward = None
        return super().reset(**row)


class Computed(training.Library):
    @property
    def turn_reward(self) -> float:
        return 1.0


@pytest.mark.parametrize(
    ("environment", "error", "message"),
    [
        (Late, TypeError, "Late sets turn_reward without declaring it"),
        (Computed, ValueError, "Computed.turn_reward must be a plain attribute"),
    ],
)
def test_undeclared_or_computed_turn_reward_attribute_is_an_error(environment, error, message, tokenizer, tmp_path):
    with pytest.raises(error, match=message):
        args = A2TGPOConfig(**run_settings(tmp_path, max_steps=1))
        make(tokenizer, args, tools=None, environment_factory=environment, reward_funcs=None).train()


def test_grpo_logs_turn_rewards_without_learning_from_them(tokenizer, tmp_path, caplog):
    common = run_settings(tmp_path, credit="grpo", max_steps=1)
    plain = captured(make(tokenizer, A2TGPOConfig(**common), reward_funcs=spread))[0]
    trainer = make(tokenizer, A2TGPOConfig(**common), reward_funcs=spread, turn_reward_funcs=[depth])
    watched = captured(trainer)[0]
    assert torch.equal(plain["advantages"], watched["advantages"])
    assert logged(trainer, "turn_rewards/depth/turn_2") == [10.0]
    assert "depth) are only logged, not learnt from" in caplog.text


def test_failing_or_misshaped_shaping_embedding_is_an_error_with_its_name(tokenizer, tmp_path, monkeypatch):
    code = (
        "import torch\ndef one(texts):\n    return torch.ones(1, 3)\ndef none(texts):\n    raise OSError('no route')\n"
    )
    (tmp_path / "broken_embedding.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    for name, message in (("one", r"returned shape \(1, 3\) for 4 texts"), ("none", "OSError: no route")):
        chosen = {"credit": "gtpo", "shaping_embedding": f"broken_embedding.py:{name}"}
        with pytest.raises(ValueError, match=f"broken_embedding.py:{name}' failed.*{message}"):
            make(tokenizer, A2TGPOConfig(**run_settings(tmp_path, **chosen)), reward_funcs=spread).train()


def test_shaping_warns_if_no_rollout_reaches_success_reward(tokenizer, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("a2tgpo_trl.credit.credit_pass.FRUITLESS_BATCHES", 2)
    chosen = {"credit": "gtpo", "shaping_embedding": "ngrams", "success_reward": 5.0}
    trainer = make(tokenizer, A2TGPOConfig(**run_settings(tmp_path, **chosen)), reward_funcs=spread)
    trainer.train()
    assert "No rollout reached success_reward (5) in 2 batches" in caplog.text
    assert logged(trainer, "shaping/passed") == [0, 0]


def test_failures_are_shaped_in_training_and_the_cost_is_logged(tokenizer, tmp_path):
    def first_passes(completions, **_):
        return [1.0, 0.0, 0.0, 0.0]

    common = run_settings(tmp_path, max_steps=1, credit="gtpo", gain_normalization="none", shaping_embedding="ngrams")
    trainer = make(tokenizer, A2TGPOConfig(**common, turn_rewards={}), reward_funcs=first_passes)
    batch = captured(trainer)[0]
    last = {int(turns.max()): row for row, turns in enumerate(batch["turn_index"])}
    of_answers = {k: batch["advantages"][row][batch["turn_index"][row] == k][0].item() for k, row in last.items()}
    # Queries "capital TURN ROW" of rollouts 0, 1 and 3; the third calls nothing and resembles nothing.
    assert of_answers[2] == 1.0 and of_answers[0] == 0.0
    assert 0 < of_answers[1] < 0.5 and 0 < of_answers[3] < 0.5
    assert logged(trainer, "shaping/share") == [0.5] and logged(trainer, "shaping/seconds")[0] > 0


NO_TOOLS = {"tools": None, "scripted": False}


@pytest.mark.parametrize(
    ("changes", "keywords", "message"),
    [
        ({"credit": "mt_grpo"}, {}, "needs turn rewards with a weight, and there are none"),
        (
            {"credit": "mt_grpo", "turn_reward_weight": 0.0},
            {"turn_reward_funcs": [depth]},
            "set turn_reward_weight above 0",
        ),
        (
            {"credit": "gtpo"},
            {"tools": None, "scripted": False},
            "credit='gtpo' can only be used with a policy that calls tools",
        ),
        (
            {"turn_rewards": {"failed_call": -1}},
            {"tools": None, "scripted": False},
            "Turn rewards (failed_call) can only",
        ),
        (
            {"turn_rewards": {"failed_call": -1, "bad_format": -1}},
            training.WAYS["rollout_func"],
            "turn_rewards: failed_call cannot be computed with a rollout_func",
        ),
        ({"turn_rewards": {"environment": 1}}, {}, "an attribute turn_reward, which no environment's class has"),
        ({}, {"turn_reward_funcs": [functools.partial(depth)]}, "has no name for its metrics"),
        ({"turn_rewards": {"depht": 1}}, {"turn_reward_funcs": [depth]}, "no turn reward 'depht'"),
    ],
)
def test_invalid_turn_reward_settings_are_refused_at_construction(changes, keywords, message, tokenizer, tmp_path):
    with pytest.raises(ValueError) as error:
        make(tokenizer, A2TGPOConfig(**run_settings(tmp_path, **changes)), **keywords)
    assert message in str(error.value)


def test_a_turn_reward_that_raises_ends_the_run_with_its_name(tokenizer, tmp_path):
    def broken(rollout):
        return rollout["no such key"]

    trainer = make(tokenizer, A2TGPOConfig(**run_settings(tmp_path)), turn_reward_funcs=[broken])
    with pytest.raises(ValueError, match="A turn reward failed. KeyError: 'no such key'"):
        trainer.train()
