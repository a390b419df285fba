"""States in which turns begin: what defines them, which are alike, and what is compared within them."""

import difflib
import math
import random
import string
from dataclasses import replace

import pytest
import torch
import training
from hypothesis import given, settings
from hypothesis import strategies as st
from near import NAN, assert_near
from test_credit import gain_tables, loop_zscore
from test_credit_methods import config, groups, switches_of, the_group
from training import captured, logged, make, spread
from training import settings as run_settings

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.credit import find_method, gain_clip_scale, state_group_zscore, turn_group_zscore
from a2tgpo_trl.credit.metrics import state_metrics
from a2tgpo_trl.credit.scores import above_state_mean
from a2tgpo_trl.credit.states import (
    _State,
    number_states,
    number_states_of_ranks,
    read_before_turns,
    to_tensor,
)


# ---- what a state is


def turn(*results: str) -> dict:
    return {"calls": [{"result": result} for result in results]}


def test_a_state_is_the_prompt_or_the_results_of_the_last_calls():
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"text": "Where?"}]}]
    record = {"prompt": prompt, "turns": [turn("here", "there"), turn("nowhere"), turn()], "excluded": False}
    assert read_before_turns(record) == ["Be brief.\nWhere?", "here\nthere", "nowhere"]
    assert read_before_turns({**record, "excluded": True}) == []
    assert read_before_turns({**record, "turns": []}) == []
    # Turns of a rollout function say what was read after each.
    turns = [{"calls": None, "read": "<result>x</result>"}, {"calls": None, "read": ""}]
    assert read_before_turns({"prompt": "p", "turns": turns, "excluded": False}) == ["p", "<result>x</result>"]


def test_equal_states_share_their_number_and_with_a_threshold_like_ones_do():
    rollouts = [["q", "none", "Paris, a city"], ["q", "Paris, a city."]]
    assert number_states(rollouts, 1.0) == [[0, 1, 2], [0, 3]]
    # 13 of 13 and 14 characters match: 26/27 = 0.963
    assert number_states(rollouts, 0.96) == [[0, 1, 2], [0, 2]]
    assert number_states(rollouts, 0.97) == [[0, 1, 2], [0, 3]]
    assert number_states([[], []], 0.9) == [[], []]
    assert number_states([[], ["", "a"], [""]], 0.9) == [[], [0, 1], [0]]
    assert to_tensor([[0, 1], [], [2]], 3).tolist() == [[0, 1, -1], [-1, -1, -1], [2, -1, -1]]


def published_groups(texts: list[str], likeness: float) -> list[int]:
    """Put each text into the first group whose first text is at least this similar."""
    firsts, numbers = [], []
    for text in texts:
        like = [difflib.SequenceMatcher(None, text, first).ratio() >= likeness for first in firsts]
        numbers.append(like.index(True) if any(like) else len(firsts))
        firsts += [] if any(like) else [text]
    return numbers


LETTERS = st.text(st.sampled_from("ab é\U0001f600\ud800"), max_size=12)
# Long enough for difflib to ignore frequent characters (200 characters), and for several looks at the subsequence.
LONG = st.builds(
    lambda head, n, tail: head + "the capital of France is Paris, " * n + tail, LETTERS, st.integers(5, 9), LETTERS
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(LETTERS, LONG), max_size=8), st.sampled_from([0.3, 0.5, 0.8, 0.9, 0.95, 1.0]))
def test_states_are_those_of_the_loop_over_all_pairs(texts, likeness):
    assert number_states([texts], likeness) == [published_groups(texts, likeness)]


@settings(max_examples=100, deadline=None)
@given(st.one_of(LETTERS, LONG), st.one_of(LETTERS, LONG))
def test_the_common_subsequence_is_the_longest_and_no_ratio_has_more(text, other):
    lengths = [0] * (len(other) + 1)  # row by row, from the definition
    for a in text:
        above = lengths
        lengths = [0]
        for j, b in enumerate(other):
            lengths.append(above[j] + 1 if a == b else max(above[j + 1], lengths[j]))
    common = _State(0, other).longest_common(text)
    assert common == lengths[-1]
    matched = sum(block.size for block in difflib.SequenceMatcher(None, text, other).get_matching_blocks())
    assert matched <= common
    assert _State(0, other).longest_common(text, common + 1) is None


def test_dissimilar_texts_are_separated_without_computing_difflib(monkeypatch):
    # 8 rollouts of 20 turns with results of 1,800 characters: 11,000 pairs, of which 30 are alike.
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 9))) for _ in range(500)]
    results = [" ".join(draw.choices(words, k=280)) for _ in range(8 * 19 - 30)]
    results += [f"{text}." for text in results[:30]]
    rollouts = [["question", *results[i * 19 : (i + 1) * 19]] for i in range(8)]
    compared, ratio = [], difflib.SequenceMatcher
    monkeypatch.setattr(difflib, "SequenceMatcher", lambda *words: (compared.append(words), ratio(*words))[1])
    numbers = number_states(rollouts, 0.9)
    assert len({number for row in numbers for number in row}) == 1 + 8 * 19 - 30
    assert len(compared) == 30


class Places:
    """One of several ranks, which already knows what each of them says."""

    def __init__(self, index: int, said: list[list[list]]):
        self.index, self.number, self._said = index, len(said[0]), iter(said)

    def gather_lists(self, items: list) -> list[list]:
        heard = next(self._said)
        assert heard[self.index] == items
        return heard

    def own_rows(self, number: int) -> slice:
        return slice(self.index * number, (self.index + 1) * number)


def test_states_are_numbered_across_ranks():
    # Two prompts of three rollouts, two rollouts on each of three ranks; the third rank has no prompt to number.
    rollouts = [["p", "x"], ["p", "y"], ["p", "x"], ["r", "z"], [], ["r", "z."]]
    texts = [rollouts[:2], rollouts[2:4], rollouts[4:]]
    numbers = [[(0, [[0, 1], [0, 2], [0, 1]])], [(1, [[0, 1], [], [0, 2]])], []]
    found = [number_states_of_ranks(Places(i, [texts, numbers]), texts[i], 3, 0.9) for i in range(3)]
    assert found == [[[0, 1], [0, 2]], [[0, 1], [0, 1]], [[], [0, 2]]]


# ---- what is compared within them


def test_a_gain_is_compared_within_its_state_or_else_at_its_depth():
    # 1, 3, 2, 4 of state 0: mean 2.5, deviation sqrt(1.25). 5 is alone in its state: 5, 2 at its depth -> 1.
    gains = torch.tensor([[1, 5, NAN], [3, 2, NAN], [4, NAN, NAN]])
    states = torch.tensor([[0, 1, 2], [0, 0, 1], [0, 3, -1]])
    scores = state_group_zscore(gains, states, torch.zeros(3))
    assert_near(scores, [[-1.3416, 1, NAN], [0.4472, -0.4472, NAN], [1.3416, NAN, NAN]], 1e-3)
    # State 1's other turn has no gain and is not compared. The same number in another prompt is another state.
    apart = state_group_zscore(gains, states, torch.tensor([0, 1, 1]))
    assert_near(apart, [[0, 0, NAN], [0, -1.2247, NAN], [1.2247, NAN, NAN]], 1e-3)
    # A difference that rounding explains is none here either: 2.5 from 3 is below a floor of 1.
    floored = state_group_zscore(gains, states, torch.zeros(3), 1.0)
    assert_near(floored, [[-1.5 / 1.5, 1.5 / math.sqrt(3.25), NAN], [0, 0, NAN], [1.5 / 1.5, NAN, NAN]], 1e-3)


@given(gain_tables())
def test_states_equal_to_depth_or_unshared_give_turn_group_scores(table):
    gains, ids = table
    turns = torch.arange(gains.size(1))
    depths = turns.expand_as(gains)
    own = torch.arange(gains.numel()).view_as(gains)
    expected = turn_group_zscore(gains, ids)
    for states in (depths, own, torch.full_like(own, -1)):
        assert_near(state_group_zscore(gains, states, ids), expected, 1e-5)
    # With one state for all, a turn is compared with all turns of the prompt, if there are two.
    together = state_group_zscore(gains, torch.zeros_like(own), ids)
    assert_near(together, loop_zscore(gains, ids, pooled=True), 1e-3)


def published_step_advantage(rewards, outcome_of, turns_of, ids, states, gamma, scaled) -> dict:
    """GiGPO's step advantage, group by group: {(rollout, turn): advantage}."""
    returns, members = {}, {}
    for i, turns in enumerate(turns_of):
        running = 0.0
        for t in reversed(range(turns)):
            earned = (0.0 if math.isnan(rewards[i][t]) else rewards[i][t]) + outcome_of[i] * (t == turns - 1)
            running = earned + gamma * running
            returns[i, t] = running
            members.setdefault((ids[i], states[i][t]), []).append((i, t))
    advantages = {}
    for group in members.values():
        mean = sum(returns[key] for key in group) / len(group)
        squares = sum((returns[key] - mean) ** 2 for key in group)
        deviation = math.sqrt(squares / (len(group) - 1)) + 1e-6 if scaled and len(group) > 1 else 1.0
        advantages |= {key: (returns[key] - mean) / deviation for key in group}
    return advantages


@settings(max_examples=150, deadline=None)
@given(
    groups(), st.sampled_from([0.5, 0.95, 1.0]), st.sampled_from(["group", "none"]), st.sampled_from([0.0, 1.0, 2.5])
)
def test_gigpo_is_the_published_formula(evidence, gamma, scale, weight):
    switches = switches_of("gigpo", discount=gamma, scale_rewards=scale, state_weight=weight, outcome_weight=0.5)
    credited = find_method("gigpo")(evidence, switches)
    steps = published_step_advantage(
        evidence.turn_rewards_NK.tolist(),
        evidence.outcomes_N.tolist(),
        evidence.num_turns_N.tolist(),
        evidence.group_ids_N.tolist(),
        evidence.states_NK.tolist(),
        gamma,
        scale == "group",
    )
    assert len(steps) == int(evidence.is_turn_NK.sum())
    for (i, t), step in steps.items():
        expected = 0.5 * evidence.outcome_advantages_N[i].item() + weight * step
        assert credited[i, t].item() == pytest.approx(expected, abs=2e-3)


def test_gigpo_without_the_deviation_and_scaled_by_the_batch():
    evidence = replace(the_group(), outcome_advantages_N=torch.tensor([2 / 3, -1 / 3, -1 / 3]))
    credited = find_method("gigpo")(evidence, switches_of("gigpo", scale_rewards="none"))
    expected = [[1.3350, 1.1417, 0.6667], [-0.6675, -0.8083], [-0.6675]]
    docstring = find_method("gigpo").__doc__
    for i, row in enumerate(expected):
        assert_near(credited[i, : len(row)], row, 1e-3)
        assert all(f"{number:.4f}" in docstring for number in row)
    # 0.9025, 0.95, 1, -0.1, 0, -0.1: sample deviation 0.5594; turn 1 of a is 0.6683 above the mean of its state.
    scaled = above_state_mean(
        torch.tensor([[0.9025, 0.95, 1], [-0.1, 0, NAN], [-0.1, NAN, NAN]]),
        evidence.states_NK,
        evidence.group_ids_N,
        "batch",
    )
    assert_near(scaled[0], [0.6683 / 0.5594, 0.475 / 0.5594, 0], 1e-3)


def test_returns_within_the_rounding_floor_get_no_gigpo_credit():
    gains = torch.tensor([[1e-5, NAN], [0.0, NAN]])
    evidence = replace(
        the_group(False),
        gains_NK=gains,
        turn_rewards_NK=torch.full((2, 2), NAN),
        outcomes_N=torch.zeros(2),
        outcome_advantages_N=torch.zeros(2),
        num_turns_N=torch.tensor([2, 2]),
        group_ids_N=torch.zeros(2, dtype=torch.long),
        states_NK=torch.tensor([[0, 1], [0, 1]]),
    )
    assert (find_method("gigpo")(evidence, switches_of("gigpo", gain_weight=1.0)) == 0).all()
    large = replace(evidence, gains_NK=gains * 1e5)
    assert find_method("gigpo")(large, switches_of("gigpo", gain_weight=1.0))[0, 0] > 0.5


def test_gigpo_credit_fades_out_with_differences_as_small_as_the_floor_under_the_variance():
    # 0 and 1e-4: sample variance 5e-9, so that the floor of 1e-8 is most of what is divided by.
    small = above_state_mean(torch.tensor([[1e-4], [0.0]]), torch.tensor([[0], [0]]), torch.tensor([0, 0]), "group")
    assert_near(small, [[5e-5 / (math.sqrt(1.5e-8) + 1e-6)], [-5e-5 / (math.sqrt(1.5e-8) + 1e-6)]], 1e-4)


def test_a2tgpo_compares_gains_within_states_and_so_does_its_clip_range():
    # First turns share a state, with gains 1, 3. a's second turn began there too: 1, 2, 3 -> -1.2247, 0, 1.2247.
    evidence = replace(the_group(False), states_NK=torch.tensor([[0, 0, 1], [0, 1, -1], [0, -1, -1]]))
    switches = switches_of("a2tgpo", gain_groups="state")
    credited = find_method("a2tgpo")(evidence, switches)
    outcome = evidence.outcome_advantages_N
    assert_near(credited[0], outcome[0] + torch.tensor([-0.3 * 1.2247 / math.sqrt(2), 0, 0]), 1e-3)
    assert_near(credited[1, :2], outcome[1] + torch.tensor([0.3 * 1.2247, 0]), 1e-3)
    scale = gain_clip_scale(evidence, switches)
    assert_near(scale[1, 0], 1 + 0.3 * math.tanh(1.2247 / 2), 1e-3)


def test_state_metrics_count_turns_without_a_peer():
    states = torch.tensor([[0, 1], [0, -1], [0, 1]])
    # One prompt of two rollouts (0 twice, 1), one of one (0, 1): five turns in four states; three turns are alone.
    metrics = state_metrics(states, torch.tensor([4, 4, 9]))
    assert metrics == {"states/turns": pytest.approx(5 / 4), "states/alone": pytest.approx(3 / 5)}
    assert state_metrics(torch.full((2, 2), -1), torch.tensor([0, 0])) == {}


# ---- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gain_groups": "state", "credit": "grpo"}, "compares no gains unless"),
        ({"gain_groups": "state", "credit": "gtpo"}, "compares no gains unless"),
        (
            {"gain_groups": "state", "gain_weight": 1.0, "credit": "gtpo"},
            "gain_groups has no effect with credit='gtpo'",
        ),
        ({"gain_groups": "state", "gain_weight": 1.0, "credit": "gigpo"}, "gain_groups has no effect"),
        ({"gain_groups": "state", "credit": "igpo"}, "no effect with gain_normalization='pooled'"),
        ({"gain_groups": "depth"}, "gain_groups must be one of 'turn', 'state'"),
        ({"gain_normalization": "pooled", "credit": "gigpo"}, "gain_normalization has no effect with credit='gigpo'"),
        ({"stopped_count": True, "credit": "grpo"}, "stopped_count has no effect unless gains are compared by depth"),
        ({"stopped_count": True, "gain_groups": "state"}, "stopped_count has no effect unless"),
        ({"stopped_count": True, "credit": "igpo"}, "stopped_count has no effect unless"),
        (
            {"stopped_count": True, "gain_weight": 1.0, "credit": "gtpo"},
            "stopped_count has no effect with credit='gtpo'",
        ),
        ({"first_gain": False, "credit": "gtpo"}, "first_gain has no effect with credit='gtpo'"),
        ({"last_gain": False, "credit": "gtpo"}, "last_gain has no effect with credit='gtpo'"),
        ({"state_likeness": 0.9}, "state_likeness has no effect"),
        ({"state_likeness": 0.0, "credit": "gigpo"}, "state_likeness must be in"),
        ({"state_likeness": 1.1, "credit": "gigpo"}, "state_likeness must be in"),
        ({"state_weight": 0.5}, "state_weight has no effect with credit='a2tgpo'"),
    ],
    ids=str,
)
def test_state_settings_without_effect_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_state_settings_with_an_effect_are_accepted():
    assert config(credit="gigpo", state_likeness=0.9, state_weight=0.5, turn_reward_weight=0.0).knows_turns
    assert config(credit="gigpo").reads_states and not config().reads_states
    # The clip range follows gains by their groups, whichever method gives credit.
    for changes in ({"gain_groups": "state"}, {"gain_normalization": "pooled"}):
        config(credit="gigpo", clip_adaptation=0.3, **changes)
    config(credit="igpo", gain_normalization="turn_group", gain_groups="state", state_likeness=0.9)


@pytest.mark.parametrize(
    ("changes", "what"), [({"credit": "gigpo"}, "credit='gigpo'"), ({"gain_groups": "state"}, "gain_groups='state'")]
)
def test_states_require_a_policy_that_calls_tools(changes, what, tokenizer, tmp_path):
    args = A2TGPOConfig(**run_settings(tmp_path, beta=0.0, **changes))
    with pytest.raises(ValueError, match=f"{what} can only be used with a policy that calls tools"):
        make(tokenizer, args, tools=None, scripted=False)


# ---- in training


def run(tokenizer, tmp_path, keywords=None, **changes):
    args = A2TGPOConfig(**run_settings(tmp_path, max_steps=1, **changes))
    trainer = make(tokenizer, args, **{"reward_funcs": spread, **(keywords or {})})
    seen: list[dict] = []
    trainer.on_rollouts = seen.extend
    return captured(trainer)[0], seen, trainer


def credited_turns(batch, row: int) -> list[float]:
    turns = batch["turn_index"][row]
    return [batch["advantages"][row][turns == k][0].item() for k in range(int(turns.max()) + 1)]


def by_number_of_turns(batch) -> dict[int, list[float]]:
    rows = [credited_turns(batch, row) for row in range(len(batch["turn_index"]))]
    return {len(row): row for row in rows}


def test_turns_of_a_batch_are_credited_by_their_states(tokenizer, tmp_path):
    batch, seen, trainer = run(
        tokenizer, tmp_path, credit="gigpo", scale_rewards="none", beta=0.0, discount=0.5, outcome_weight=0.0
    )
    # Rollouts of 3, 2, 1 and 4 turns, outcomes 0, 1, 2, 0. The record says what they read.
    texts = [read_before_turns(record) for record in seen]
    assert [record["states"] for record in seen] == number_states(texts, 1.0)
    assert [len(states) for states in texts] == [3, 2, 1, 4] and len({states[0] for states in texts}) == 1
    # First turns: 0, 0.5, 2, 0, mean 0.625.
    credited = by_number_of_turns(batch)
    firsts = [credited[turns][0] for turns in (3, 2, 1, 4)]
    assert firsts == pytest.approx([-0.625, -0.125, 1.375, -0.625])
    numbers = [number for record in seen for number in record["states"]]
    alone = sum(numbers.count(number) == 1 for number in numbers) / 10
    assert logged(trainer, "states/alone") == [pytest.approx(alone)]
    assert logged(trainer, "states/turns") == [pytest.approx(10 / len(set(numbers)))]
    assert logged(trainer, "states/seconds")[0] >= 0


def test_similar_results_form_one_state_above_state_likeness(tokenizer, tmp_path):
    def search(query: str) -> str:
        """Look something up.

        Args:
            query: What to look for.
        """
        return f"{'Paris is the capital of France. ' * 3}{query[-1]}"

    exact = run(tokenizer, tmp_path, {"tools": [search]}, credit="gigpo", beta=0.0)
    alike = run(tokenizer, tmp_path, {"tools": [search]}, credit="gigpo", beta=0.0, state_likeness=0.9)
    assert [record["states"] for record in alike[1]] == [[0, 1, 1], [0, 1], [0], [0, 2, 2, 2]]
    assert [record["states"] for record in exact[1]] == [[0, 1, 1], [0, 2], [0], [0, 3, 3, 3]]
    assert logged(exact[2], "states/alone") > logged(alike[2], "states/alone")


@pytest.mark.parametrize("way", ["rollout_func", "environment_factory"])
def test_rollout_functions_and_environments_have_states(way, tokenizer, tmp_path):
    batch, seen, _ = run(tokenizer, tmp_path, training.WAYS[way], credit="gigpo", beta=0.0)
    assert batch["advantages"].isfinite().all() and (batch["advantages"] != 0).any()
    assert [len(record["states"]) for record in seen] == [len(record["turns"]) for record in seen]


def test_excluded_rollout_has_no_states_and_is_not_compared(tokenizer, tmp_path):
    def search(query: str) -> str:
        """Look something up.

        Args:
            query: What to look for.
        """
        if query.endswith("3"):
            raise RuntimeError("worn out")
        return "Paris"

    batch, seen, trainer = run(
        tokenizer,
        tmp_path,
        {"tools": [search]},
        credit="gigpo",
        scale_rewards="none",
        beta=0.0,
        outcome_weight=0.0,
        discount=0.5,
        failure_policy={"tool_error": "exclude"},
    )
    assert [record["states"] for record in seen] == [[0, 1, 1], [0, 1], [0], []]
    # Returns: 0, 0, 0 | 0.5, 1 | 2: first turns less 2.5 / 3; after "Paris" less 1 / 3.
    credited = by_number_of_turns(batch)
    assert credited[3] == pytest.approx([-2.5 / 3, -1 / 3, -1 / 3], abs=1e-6)
    assert credited[2] == pytest.approx([0.5 - 2.5 / 3, 2 / 3], abs=1e-6)
    assert logged(trainer, "states/alone") == [0.0]


def test_gain_groups_state_changes_credit_and_turn_does_not(tokenizer, tmp_path):
    plain = run(tokenizer, tmp_path)[0]
    by_turn = run(tokenizer, tmp_path, gain_groups="turn")[0]
    for key in ("advantages", "clip_scale"):
        assert torch.equal(plain[key], by_turn[key])

    def search(query: str) -> str:
        """Look something up.

        Args:
            query: What to look for.
        """
        return "Paris"

    again = {"tools": [search]}
    turn, state = run(tokenizer, tmp_path, again)[0], run(tokenizer, tmp_path, again, gain_groups="state")[0]
    assert not torch.equal(turn["advantages"], state["advantages"])
    assert not torch.equal(turn["clip_scale"], state["clip_scale"])
    assert torch.equal(turn["completion_ids"], state["completion_ids"])


def test_resampled_groups_get_their_own_states(tokenizer, tmp_path):
    rewards = iter([[0.0] * 4, [0.0, 1.0, 0.0, 1.0]])
    keywords = {"reward_funcs": lambda completions, **_: next(rewards)}
    batch, seen, trainer = run(tokenizer, tmp_path, keywords, credit="gigpo", beta=0.0, resample_limit=1)
    assert logged(trainer, "groups/resampled") == [1.0] and len(seen) == 8
    assert all("states" in record for record in seen)
    assert (batch["advantages"] != 0).any()


def test_an_evaluation_compares_no_states(tokenizer, tmp_path):
    args = A2TGPOConfig(**run_settings(tmp_path, credit="gigpo", beta=0.0))
    trainer = make(tokenizer, args, eval_dataset=training.questions(1))
    seen: list[dict] = []
    trainer.on_rollouts = seen.extend
    trainer.evaluate()
    assert seen and not any("states" in record for record in seen)
