"""Groups that teach nothing: how they are found, how their prompts are rolled out again, and what is trained on."""

import inspect
import json
import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny
import torch
import training
from datasets import Dataset
from groups import uninformative
from places import HELPERS
from ranks import ON_CPU, reports
from recorded import as_trained, rollouts_of
from torch import tensor
from trl import GRPOTrainer
from two_rounds import PROMPTS, SIZE, Rollouts, batches, make, prompt_ids, report, rows, weights

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.ranks import Ranks
from a2tgpo_trl.rewards import exact_match
from a2tgpo_trl.rollout.padding import BATCH_KEYS, COMPLETION_FILL, PROMPT_KEYS, to_batch, to_rows
from a2tgpo_trl.rollout.resampling import Resampler, first_informative, spread_over_ranks


NAN = float("nan")
SCRIPT = HELPERS / "two_rounds.py"
PAD = 99


# ---- what a group teaches


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # 5 is alone at its depth, and 3 in its group; the second group has different rewards.
        ({}, [True, False, True]),
        # 1, 5 and 1 are compared with each other.
        ({"gain_normalization": "pooled"}, [False, False, True]),
        # 1 and 3 are gains, not compared with anything.
        ({"gain_normalization": "none"}, [False, False, False]),
        ({"gain_normalization": "none", "gain_weight": 0.0}, [True, False, True]),
    ],
    ids=str,
)
def test_group_is_informative_if_rewards_or_compared_gains_differ(settings, expected):
    outcomes = [0.0, 0.0, -1.0, 1.0, 0.0, NAN]
    gains = [[1.0, 5.0], [1.0, NAN], [NAN, NAN], [NAN, NAN], [3.0, NAN], [NAN, NAN]]
    assert uninformative(outcomes, gains, [0, 0, 1, 1, 2, 2], **settings) == expected


def test_differing_gains_make_a_group_informative_unless_weightless():
    # Second depth: 2 and 4. Zero is a gain: 0 and 1 differ as well.
    for gains in ([[1.0, 2.0], [1.0, 4.0]], [[0.0, NAN], [1.0, NAN]]):
        assert uninformative([0.0, 0.0], gains, [7, 7]) == [False]
        assert uninformative([0.0, 0.0], gains, [7, 7], gain_weight=0.0) == [True]
    # Rounding: 2.4e-7 apart.
    assert uninformative([0.0, 0.0], [[1.0, 2.0], [1.0 + 2.4e-7, 2.0]], [7, 7]) == [True]


def test_differing_turn_rewards_or_returns_make_a_group_informative():
    nothing = [[NAN], [NAN]]
    # The first turn of the second rollout is worth less.
    unlike = [[0.0, 0.0], [-0.1, 0.0]]
    assert uninformative([0.0, 0.0], nothing, [7, 7], turn_rewards=unlike, turn_reward_weight=1.0) == [False]
    assert uninformative([0.0, 0.0], nothing, [7, 7], turn_rewards=unlike) == [True]
    assert uninformative([0.0, 0.0], nothing, [7, 7], turn_rewards=[[-0.1, 0.0]] * 2, turn_reward_weight=1.0) == [True]
    # GTPO reads rewards themselves: both passed, in as many turns; compared with all turns, the last is worth more.
    passed = {"credit": "gtpo", "rewards": [1.0, 1.0]}
    assert uninformative([0.0, 0.0], nothing, [7, 7], **passed) == [True]
    assert uninformative([0.0, 0.0], nothing, [7, 7], **passed, gain_normalization="pooled") == [False]


def test_uninformative_flags_follow_the_order_of_group_ids():
    # Group 3: 0 and 0. Group 8: 1 and -1.
    assert uninformative([1.0, 0.0, -1.0, 0.0], [[NAN]] * 4, [8, 3, 8, 3]) == [True, False]


def test_equal_rewards_are_equal_though_their_mean_is_rounded():
    # In float32 the mean of six times 0.7 is not 0.7; what is left is divided by a deviation of about 0, plus 1e-4.
    assert uninformative([6e-4] * 6, [[NAN]] * 6, [0] * 6) == [True]


def test_small_advantages_count_if_outcomes_differ_and_are_rounding_if_they_are_equal():
    # As of rewards that are not scaled.
    assert uninformative([5e-4, -5e-4], [[NAN]] * 2, [0, 0]) == [False]
    # Neighbours in float32: 0.6e-7 from their mean, divided by a deviation of at least 1e-4.
    neighbours = [[1.0, 0.0], [1.0 + 1.2e-7, 0.0]]
    assert uninformative([0.0, 0.0], [[NAN]] * 2, [0, 0], turn_rewards=neighbours, turn_reward_weight=1.0) == [True]


def test_outcomes_out_of_the_loss_do_not_make_a_group_informative():
    # Rewards 0 and 1, both truncated and masked out: no token is trained on. With one in the loss, its tokens are.
    assert uninformative([-1.0, 1.0], [[NAN]] * 2, [0, 0], in_loss=[False, False]) == [True]
    assert uninformative([-1.0, 1.0], [[NAN]] * 2, [0, 0], in_loss=[False, True]) == [False]
    # Rewards 0, 0.5 and 1: only the one in the middle is in the loss, with an advantage of 0.
    assert uninformative([-1.0, 0.0, 1.0], [[NAN]] * 3, [0] * 3, in_loss=[False, True, False]) == [True]
    assert uninformative([NAN, NAN], [[NAN]] * 2, [0, 0]) == [True]


# ---- dealing


@pytest.mark.parametrize(
    ("groups", "size", "ranks", "expected"),
    [
        ([5, 7], 4, 1, [5, 7]),
        ([5], 4, 2, [5]),  # two rows each
        ([5], 4, 3, [5, 5, 5]),  # 4 rows are not divisible by 3, 12 are
        ([5, 7], 3, 2, [5, 7]),
        ([5, 6, 7], 3, 2, [5, 6, 7, 5]),  # 9 rows are not divisible by 2
        ([5], 2, 8, [5, 5, 5, 5]),
        ([1, 2, 3, 4, 5], 6, 4, [1, 2, 3, 4, 5, 1]),  # 30 rows are not divisible by 4, 36 are
    ],
)
def test_ranks_get_whole_groups_and_equal_numbers_of_rows(groups, size, ranks, expected):
    assert spread_over_ranks(groups, size, ranks) == expected
    assert len(expected) * size % ranks == 0


def test_first_informative_copy_of_a_group_is_taken():
    assert first_informative([5, 7, 5], [0]) == {7: 1, 5: 2}
    assert first_informative([5, 7, 5], []) == {5: 0, 7: 1}
    assert first_informative([5, 5], [0, 1]) == {}


# ---- batches and rows


def small_batch() -> dict[str, torch.Tensor]:
    """Two rollouts of tokens 1 2 | 3 4 5 and 6 | 7, the second one after a padded prompt."""
    return {
        "prompt_ids": tensor([[1, 2], [PAD, 6]]),
        "prompt_mask": tensor([[1, 1], [0, 1]]),
        "completion_ids": tensor([[3, 4, 5], [7, PAD, PAD]]),
        "completion_mask": tensor([[1, 1, 1], [1, 0, 0]]),
        "advantages": tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]]),
        "num_items_in_batch": tensor(3),
        "old_per_token_logps": tensor([[-1.0, -2.0, -3.0], [-4.0, -77.0, -77.0]]),
        "tool_mask": tensor([[1, 0, 1], [1, 1, 1]]),
        "clip_scale": tensor([[1.1, 1.0, 1.0], [0.9, 1.0, 1.0]]),
        "turn_index": tensor([[0, -1, 1], [0, -1, -1]]),
        "num_turns": tensor(2),
    }


def as_lists(row: dict[str, torch.Tensor]) -> dict[str, list]:
    return {key: values.tolist() for key, values in row.items()}


def test_a_row_has_no_padding():
    first, second = to_rows(small_batch(), PAD)
    assert first["prompt_ids"].tolist() == [1, 2] and first["completion_ids"].tolist() == [3, 4, 5]
    assert as_lists(second) == {
        "prompt_ids": [6],
        "prompt_mask": [1],
        "completion_ids": [7],
        "completion_mask": [1],
        "advantages": [3.0],
        "old_per_token_logps": [-4.0],
        "tool_mask": [1],
        "clip_scale": [pytest.approx(0.9)],
        "turn_index": [0],
    }


def test_batch_split_into_rows_is_restored():
    batch = small_batch()
    again = to_batch(to_rows(batch, PAD), PAD)
    batch["old_per_token_logps"][1, 1:] = 0.0  # padding, which nothing reads
    for key in BATCH_KEYS:
        del batch[key]
    assert list(again) == list(batch)
    for key, values in batch.items():
        assert torch.equal(again[key], values) and again[key].dtype == values.dtype, key


def test_each_tensor_is_padded_on_its_side_with_its_fill_value():
    # Alone, the second row has no padding; next to the first one it has two padding tokens again. With multiples of 4,
    # prompts of 2 and completions of 3 are both 4 wide.
    rows = to_rows(small_batch(), PAD)
    assert to_batch(rows[1:], PAD)["completion_ids"].tolist() == [[7]]
    wide = {key: values[1].tolist() for key, values in to_batch(rows, PAD, multiple=4).items()}
    assert wide["prompt_ids"] == [PAD, PAD, PAD, 6] and wide["prompt_mask"] == [0, 0, 0, 1]
    assert wide["completion_ids"] == [7, PAD, PAD, PAD] and wide["completion_mask"] == [1, 0, 0, 0]
    assert wide["tool_mask"] == [1, 1, 1, 1] and wide["turn_index"] == [0, -1, -1, -1]
    assert wide["advantages"] == [3.0, 0.0, 0.0, 0.0] and wide["clip_scale"][1:] == [1.0, 1.0, 1.0]


def test_padding_of_reference_log_probabilities_makes_no_kl_term_infinite():
    # TRL takes exp(reference - policy) everywhere and masks it later, and inf times 0 is NaN. A policy that has been
    # trained gives a padding token log-probabilities of -100 and less.
    reference = tensor([[-1.0, -2.0, -3.0], [-4.0, -77.0, -77.0]])
    again = to_batch(to_rows({**small_batch(), "ref_per_token_logps": reference}, PAD), PAD)["ref_per_token_logps"]
    assert again[0].tolist() == [-1.0, -2.0, -3.0] and again[1, 0] == -4.0
    assert (again[1, 1:] - tensor([-100.0, -150.0])).exp().isfinite().all()


def test_a_truncated_rollout_that_is_masked_out_keeps_its_tokens():
    # Its mask is 0 everywhere; its tokens are 7 8, without the padding.
    batch = small_batch()
    batch["completion_ids"][1, 1], batch["completion_mask"][1, 0] = 8, 0
    row = to_rows(batch, PAD)[1]
    assert row["completion_ids"].tolist() == [7, 8] and row["completion_mask"].tolist() == [0, 0]


def test_a_weight_per_rollout_weighs_each_of_its_tokens():
    # With single tokens only, a weight per token and one per rollout look alike; next to longer rows they must not.
    batch = {**small_batch(), "importance_sampling_ratio": tensor([[0.5], [2.0]])}
    rows = to_rows(batch, PAD)
    assert [row["importance_sampling_ratio"].tolist() for row in rows] == [[0.5], [2.0]]
    for multiple in (None, 4):  # it stays one number: a loss may sum over its logarithms
        assert to_batch(rows, PAD, multiple)["importance_sampling_ratio"].tolist() == [[0.5], [2.0]]


def test_unknown_batch_key_is_an_error():
    with pytest.raises(ValueError, match="pixel_values"):
        to_rows({**small_batch(), "pixel_values": torch.zeros(2, 3)}, PAD)


def test_parent_still_adds_no_unknown_keys_to_a_text_batch():
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    literal = re.search(r"output = \{(.*?)\n        \}", source, re.DOTALL)
    names = {*re.findall(r'"(\w+)":', literal.group(1)), *re.findall(r'output\["(\w+)"\]', source)}
    of_images = {"pixel_values", "image_grid_thw", "pixel_attention_mask", "spatial_shapes", "image_sizes"}
    of_images |= {"token_type_ids", "mm_token_type_ids", "image_position_ids", "num_images", "num_tiles"}
    ours = {"turn_index", "clip_scale", "num_turns"}
    known = {"completion_ids", *PROMPT_KEYS, *COMPLETION_FILL, *BATCH_KEYS}
    assert names - of_images == known - ours


# ---- rounds


class Threads(Ranks):
    """Ranks that are threads of this process. `board`: what each rank says at each collective."""

    def __init__(self, index: int, number: int, barrier: threading.Barrier, board: dict):
        self.index, self.number = index, number
        self._barrier, self._board, self._calls = barrier, board, 0

    def _say(self, said):
        self._calls += 1
        self._board[self._calls, self.index] = said
        self._barrier.wait(timeout=10)
        return [self._board[self._calls, index] for index in range(self.number)]

    def max_each(self, numbers):
        return [float(max(column)) for column in zip(*self._say(numbers), strict=True)]

    def gather_lists(self, items):
        return self._say(items)


def together(number: int, act) -> list:
    """What `act(ranks)` returns on each of this many ranks."""
    barrier, board = threading.Barrier(number), {}
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(lambda index: act(Threads(index, number, barrier, board)), range(number)))


@pytest.mark.parametrize("seed", range(20))
def test_resampling_gives_the_same_groups_for_any_number_of_ranks(seed):
    # Group g is uninformative up to round `until[g]`. A rollout holds its group, its member and its round; its length
    # gives the round. Rows are numbered over ranks, so the place of a row gives its member.
    chance = random.Random(seed)
    ranks, size = chance.randint(1, 5), chance.randint(1, 4)
    groups = chance.randint(1, 4) * ranks
    until, limit = [chance.choice([0, 0, 1, 2, 9]) for _ in range(groups)], chance.randint(1, 3)
    rounds = [0] * ranks

    def act(me: Ranks):
        def roll_out(rows):
            here, number = rounds[me.index], len(rows)
            rounds[me.index] += 1
            places = [(row["group"], (me.index * number + i) % size) for i, row in enumerate(rows)]
            batch = to_batch([small_row(group, member, here) for group, member in places], PAD)
            batch |= {"num_items_in_batch": tensor(0), "num_turns": tensor(here)}
            everyones = [group for of_rank in me.gather_lists([group for group, _ in places]) for group in of_rank]
            assert all(len(set(everyones[i : i + size])) == 1 for i in range(0, len(everyones), size))
            return batch, tensor([here < until[group] for group in everyones[::size]])

        number = groups * size // ranks
        rows = [{"group": i // size} for i in range(me.index * number, (me.index + 1) * number)]
        return Resampler(me, limit=limit, group_size=size, pad_id=PAD, multiple=None).run(roll_out, rows)

    expected = [(g, m, until[g] if until[g] <= limit else 0) for g in range(groups) for m in range(size)]
    found = together(ranks, act)
    told = [tuple(row["completion_ids"].tolist()[:3]) for one in found for row in to_rows(one.output, PAD)]
    lengths = [len(row["completion_ids"]) for one in found for row in to_rows(one.output, PAD)]
    assert told == expected and lengths == [3 + here for *_, here in expected]
    assert len(set(rounds)) == 1 and all(one.metrics == found[0].metrics for one in found)
    if max(until) > 0 and min(n for n in until if n > 0) <= limit:
        assert all(one.output["num_items_in_batch"] == sum(lengths) for one in found)


def small_row(group: int, member: int, here: int) -> dict[str, torch.Tensor]:
    completion = tensor([group, member, here] + [1] * here)
    ones = torch.ones_like(completion)
    prompt = {"prompt_ids": tensor([group]), "prompt_mask": ones[:1]}
    return {**prompt, "completion_ids": completion, "completion_mask": ones}


def test_only_uninformative_groups_are_resampled_until_the_limit():
    # Groups of one row: 0 never teaches, 1 always does, 2 from the third round on.
    asked = []

    def roll_out(rows):
        asked.append([row["group"] for row in rows])
        here = len(asked) - 1
        for row in rows:
            assert "seen" not in row  # what an earlier round wrote into a row is gone
            row["seen"] = True
        first_informative_round = {0: 99, 1: 0, 2: 2}
        batch = {key: tensor([[row["group"]] for row in rows]) for key in ("prompt_ids", "completion_ids")}
        ones = torch.ones(len(rows), 1, dtype=torch.long)
        batch |= {"prompt_mask": ones, "completion_mask": ones, "advantages": ones * here}
        batch |= {"num_items_in_batch": tensor(len(rows)), "num_turns": tensor(1 + here)}
        return batch, tensor([here < first_informative_round[row["group"]] for row in rows])

    rows = [{"group": group} for group in range(3)]
    one = Threads(0, 1, threading.Barrier(1), {})
    found = Resampler(one, limit=4, group_size=1, pad_id=PAD, multiple=None).run(roll_out, rows)
    assert asked == [[0, 1, 2], [0, 2], [0, 2], [0], [0]]
    assert found.output["advantages"].tolist() == [[0], [0], [2]]
    assert (found.output["num_items_in_batch"], found.output["num_turns"]) == (3, 3)
    assert found.metrics == {"groups/resampled": 6.0}


# ---- trainers


def logged(trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_resampling_replaces_the_uninformative_group_only(tmp_path):
    # The second prompt's rewards are equal at first. Then they are 0, 2, 4, 6: mean 3, deviation 20/3 ** 0.5. The
    # first one's are 0 to 3: half of it.
    rollouts = Rollouts({1: {0}})
    trainer = make(tmp_path, rollouts, num_iterations=2, gain_weight=0.0)
    first, inner = [], trainer._roll_out_batch
    trainer._roll_out_batch = lambda *round: (first.append(inner(*round)), first[-1])[1]
    records = []
    trainer.on_rollouts = records.extend
    batch = batches(trainer)[0]
    assert rollouts.rounds == [[0] * 4 + [1] * 4 + [2] * 4, [1] * 4]
    assert len(records) == 16
    assert logged(trainer, "groups/resampled") == [1.0] and logged(trainer, "groups/teach_nothing") == [0.0]

    before, after = rows(first[0][0]), rows(batch)
    assert len(after) == 12
    for question in range(len(PROMPTS)):
        for member in range(SIZE):
            row = after[100 + 10 * question + member]
            assert row["prompt_ids"] == prompt_ids(question)
            if question != 1:
                assert row == before[100 + 10 * question + member]
                continue
            tail = member + 4  # tokens of the answer turn, in the second round
            assert row["completion_ids"] == [110 + member, 51, 8, 9] + [10 + member] * tail
            assert row["turn_index"] == [0, 0, -1, -1] + [1] * tail
            advantage = (2 * member - 3) / ((20 / 3) ** 0.5 + 1e-4)
            assert row["advantages"] == pytest.approx([advantage] * 2 + [0, 0] + [advantage] * tail, abs=1e-6)
    # Tokens by the model: 2 + 1 to 2 + 4 for the first and the third prompt, 2 + 4 to 2 + 7 for the second.
    assert batch["num_items_in_batch"] == 2 * (3 + 4 + 5 + 6) + 6 + 7 + 8 + 9

    # The old log-probabilities of a rollout are those of its own tokens after its own prompt. The weights have moved
    # since; a new model has the original ones.
    model = tiny.make_model(trainer.processing_class)
    for row in after.values():
        ids = tensor([row["prompt_ids"] + row["completion_ids"]])
        with torch.no_grad():
            logps = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        expected = logps[-len(row["completion_ids"]) :].tolist()
        assert row["old_per_token_logps"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"credit": "grpo", "loss_type": "grpo"},
        {"num_iterations": 2, "max_steps": 2, "beta": 0.1, "loss_type": "bnpo"},
        {"pad_to_multiple_of": 8, "importance_sampling_level": "sequence"},
        {"steps_per_generation": 3, "per_device_train_batch_size": 4, "num_iterations": 2, "max_steps": 6},
    ],
    ids=str,
)
def test_resampled_batch_trains_like_one_sampled_at_once(changes, tmp_path, monkeypatch):
    # Every group is uninformative at first and teaches in the second round; or the second round comes first.
    load = "trl.trainer.grpo_trainer.create_model_from_path"
    monkeypatch.setattr(load, lambda *_, **__: tiny.make_model(tiny.make_tokenizer(), seed=1))
    twice, once = Rollouts({0: {0}, 1: {0}, 2: {0}}), Rollouts({}, first_round=1)
    trainer = make(tmp_path, twice, **changes)
    start, found = weights(trainer), batches(trainer)
    other = make(tmp_path, once, **changes)  # seeds again
    expected = batches(other)
    assert sum(map(len, twice.rounds)) == 24 and sum(map(len, once.rounds)) == 12
    for batch, same in zip(found, expected, strict=True):
        assert batch.keys() == same.keys()
        assert all(batch[name].shape == same[name].shape for name in same)
        for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "turn_index"):
            assert torch.equal(batch[name], same[name]), name
        assert batch["num_items_in_batch"] == same["num_items_in_batch"] and batch["num_turns"] == same["num_turns"]
    assert not torch.equal(weights(trainer), start)
    torch.testing.assert_close(weights(trainer), weights(other), atol=1e-6, rtol=1e-5)
    assert logged(trainer, "loss") == pytest.approx(logged(other, "loss"), abs=1e-6)


def test_uninformative_prompt_is_resampled_up_to_the_limit(tmp_path):
    rollouts = Rollouts({0: set(range(9)), 1: {0, 1}})
    trainer = make(tmp_path, rollouts, resample_limit=3, max_steps=2, credit="grpo")
    batch = batches(trainer)[0]
    at_once = [0] * 4 + [1] * 4 + [2] * 4
    assert rollouts.rounds == [at_once, [0] * 4 + [1] * 4, [0] * 4 + [1] * 4, [0] * 4] * 2
    assert logged(trainer, "groups/teach_nothing") == pytest.approx([1 / 3] * 2)
    assert logged(trainer, "groups/resampled") == [5.0, 5.0]
    for first, row in rows(batch).items():  # the first prompt keeps the rollouts of the first round
        assert row["completion_ids"][1] == {0: 50, 1: 52, 2: 50}[(first - 100) // 10]


def test_reward_log_counts_every_rollout_and_groups_reward_the_final_batch(tmp_path):
    # Rewards 0 to 3, 0 to 6 and 0 to 9 by prompt; the second one's are 0.5 in the three rounds in which it is
    # uninformative. All rollouts: (4 x 1.5 + 4 x 0.5 + 4 x 4.5 + 2 x 4 x 0.5 + 4 x 3) / 24 = 1.75, not the
    # mean over rounds, (2.1667 + 0.5 + 0.5 + 3) / 4. The batch: (1.5 + 3 + 4.5) / 3.
    trainer = make(tmp_path, Rollouts({1: {0, 1, 2}}), resample_limit=3)
    records = []
    trainer.on_rollouts = records.extend
    trainer.train()
    earned = [value for record in records for value in record["rewards"].values()]
    assert len(earned) == 24 and sum(earned) / 24 == 1.75
    assert logged(trainer, "reward") == [pytest.approx(1.75)]
    assert logged(trainer, "groups/reward") == [3.0]
    assert logged(trainer, "turns/max") == [2.0] and logged(trainer, "groups/resampled") == [3.0]


def test_groups_reward_is_that_of_the_first_round_if_resampling_fails(tmp_path):
    # A prompt that stays uninformative to the end: the batch is the first round's, and so is its reward,
    # (1.5 + 0.5 + 4.5) / 3.
    trainer = make(tmp_path, Rollouts({1: set(range(9))}), resample_limit=3)
    trainer.train()
    assert logged(trainer, "groups/reward") == [pytest.approx(6.5 / 3)]
    assert logged(trainer, "reward") == [pytest.approx((6 + 2 + 18 + 3 * 2) / 24)]
    plain = make(tmp_path, Rollouts({}), resample_limit=3)
    plain.train()
    assert logged(plain, "reward") == logged(plain, "groups/reward") == [3.0]  # a single round


@pytest.mark.parametrize("gain_weight", [0.3, 5e-4])
def test_equal_rewards_with_unlike_gains_are_not_rolled_out_again(gain_weight, tmp_path):
    rollouts = Rollouts({})
    trainer = make(tmp_path, rollouts, gain_weight=gain_weight)
    trainer.reward_funcs[0] = lambda score, **_: [0.0] * len(score)
    trainer.train()
    assert len(rollouts.rounds) == 1 and logged(trainer, "groups/teach_nothing") == [0.0]


def test_batch_without_scores_is_resampled_and_training_continues(tmp_path):
    rollouts = Rollouts({})
    trainer = make(tmp_path, rollouts, resample_limit=1, max_steps=2)
    trainer.reward_funcs[0] = lambda score, **_: [None] * len(score)
    trainer.train()
    assert len(rollouts.rounds) == 4 and logged(trainer, "groups/teach_nothing") == [1.0, 1.0]
    assert logged(trainer, "groups/reward") == [None, None]


def test_resample_limit_zero_only_logs_the_uninformative_share(tmp_path):
    # A trainer that never looks for uninformative groups trains in the same way.
    rollouts = Rollouts({1: {0}})
    trainer = make(tmp_path, rollouts, resample_limit=0)
    found = batches(trainer)
    plain = make(tmp_path, Rollouts({1: {0}}), resample_limit=0)  # seeds again
    plain._train_batch = lambda rows: plain._roll_out_batch(rows)[0]
    expected = batches(plain)
    for batch, same in zip(found, expected, strict=True):
        assert all(torch.equal(batch[key], values) for key, values in same.items())
    assert torch.equal(weights(trainer), weights(plain)) and len(rollouts.rounds) == 1
    assert logged(trainer, "groups/teach_nothing") == [pytest.approx(1 / 3)]
    assert logged(trainer, "groups/resampled") == []


def test_evaluation_does_not_resample(tmp_path):
    rollouts = Rollouts({question: set(range(9)) for question in range(3)})
    trainer = make(tmp_path, rollouts, per_device_eval_batch_size=12)
    found = trainer.evaluate(Dataset.from_dict({"prompt": PROMPTS, "answer": ["Paris"] * 3}))
    assert len(rollouts.rounds) == 1
    assert found["eval_turns/mean"] == 1 and not any(key.startswith("eval_groups/") for key in found)


@pytest.mark.parametrize("way", ["tools", "environment_factory"])
def test_prompts_with_tools_are_rolled_out_again_by_the_same_loop(way, tmp_path):
    # All four rollouts of the first round are the same, so rewards and gains are equal (gains up to rounding);
    # those of the second round have 2, 1, 0 and 3 tool turns.
    tokenizer, batches_begun = tiny.make_tokenizer(), []

    def write(turn, row):
        if len(batches_begun) == 1:
            return tiny.call("capital") if turn == 0 else tiny.final("Rome")
        return training.write(turn, row)

    model = tiny.make_model(tokenizer)
    tiny.script(model, tokenizer, write)
    args = A2TGPOConfig(**training.settings(tmp_path, resample_limit=2, max_steps=1))
    given = {"reward_funcs": exact_match, "tools": [tiny.search], **training.WAYS[way]}
    trainer = A2TGPOTrainer(model, args=args, train_dataset=training.questions(), processing_class=tokenizer, **given)
    begin, records = trainer._tool_loop.begin_batch, []
    trainer._tool_loop.begin_batch = lambda rows: (batches_begun.append(1), begin(rows))
    trainer.on_rollouts = records.extend
    batch = batches(trainer)[0]
    assert sorted((batch["turn_index"].amax(1) + 1).tolist()) == [1, 2, 3, 4] and batch["num_turns"] == 4
    assert [record["tool_turns"] for record in records] == [1, 1, 1, 1, 2, 1, 0, 3]
    assert logged(trainer, "groups/resampled") == [1.0]
    assert logged(trainer, "turns/mean") == [2.25]  # of both rounds: (2 + 2.5) / 2


# ---- ranks


def run(folder: Path, processes: int) -> list[dict]:
    return reports(folder, [str(SCRIPT), str(folder), str(12 // processes)], processes, **ON_CPU)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return {**json.loads(json.dumps(report(str(folder), 12))), "records": rollouts_of(folder)}


@pytest.mark.parametrize(("processes", "rolled_out"), [(2, 1), pytest.param(3, 3, marks=pytest.mark.slow)])
def test_ranks_together_train_on_what_one_process_does(processes, rolled_out, alone, tmp_path):
    # On two ranks the uninformative group has two rows on each, before and after. Three ranks roll it out once each,
    # because four rows are not divisible by three.
    ranks = run(tmp_path / "run", processes)
    prompts, names = [0] * 4 + [1] * 4 + [2] * 4, [100 + 10 * i + j for i in range(3) for j in range(4)]
    for rank, found in enumerate(ranks):
        mine = slice(rank * 12 // processes, (rank + 1) * 12 // processes)
        assert found["rounds"] == [prompts[mine], [1] * (4 * rolled_out // processes)]
        assert sorted(map(int, found["rows"])) == names[mine]
        assert found["calls"] == ranks[0]["calls"] and sum(found["calls"].values()) > 0
        assert found["norm"] == ranks[0]["norm"]
        assert found["weights"] == pytest.approx(alone["weights"], abs=1e-5)
        assert found["items"] == alone["items"]
        # All ranks' rollouts: (1.5 + 3 + 4.5) / 3.
        assert found["logged"] == {"groups/teach_nothing": 0.0, "groups/resampled": rolled_out, "groups/reward": 3.0}
    trained = {name: row for found in ranks for name, row in found["rows"].items()}
    assert trained.keys() == alone["rows"].keys() and len(trained) == 12
    for name, row in alone["rows"].items():
        for key, values in row.items():
            assert trained[name][key] == pytest.approx(values, abs=1e-5), (name, key)
    # Like one process, each rank records what it trained on, wherever that was rolled out again.
    records = rollouts_of(tmp_path / "run")
    assert [(one["rank"], one["tokens"]["ids"][0], one["group"], one["round"]) for one in records] == [
        (i * processes // 12, names[i], i // 4, 2 if 4 <= i < 8 else 1) for i in range(12)
    ]
    expected = as_trained(alone["records"])
    assert as_trained(records).keys() == expected.keys()
    for ids, found in as_trained(records).items():
        assert found["updates"] == 2
        for key, values in expected[ids].items():
            assert found[key] == pytest.approx(values, abs=1e-4), (ids, key)


# ---- settings


@pytest.mark.parametrize(("value", "said"), [(-1, "[0, inf)"), (1.5, "whole number"), (True, "number")])
def test_invalid_resample_limit_is_refused_by_name(value, said, tmp_path):
    with pytest.raises(ValueError, match="resample_limit") as error:
        A2TGPOConfig(str(tmp_path), use_cpu=True, bf16=False, resample_limit=value)
    assert said in str(error.value)
