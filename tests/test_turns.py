import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from a2tgpo_trl.turns import count_turns, seen_before_turns, to_tokens, turn_index, turn_means, turn_sums


masks = st.integers(1, 12).flatmap(
    lambda width: st.lists(st.lists(st.integers(0, 1), min_size=width, max_size=width), min_size=1, max_size=5)
)


@pytest.mark.parametrize(
    ("mask", "turns"),
    [
        ([1, 1, 0, 0, 1, 0], [0, 0, -1, -1, 1, -1]),
        ([0, 1, 0, 1, 1, 1], [-1, 0, -1, 1, 1, 1]),  # the environment writes first
        ([0, 0, 0, 0, 0, 0], [-1] * 6),
        ([1, 0, 1, 0, 1, 0], [0, -1, 1, -1, 2, -1]),
    ],
)
def test_turns_are_the_runs_of_model_tokens(mask, turns):
    assert turn_index(torch.tensor([mask])).tolist() == [turns]
    assert turn_index(torch.tensor([mask])).dtype == torch.long


def test_tool_mask_padding_makes_no_phantom_turn():
    # TRL pads tool_mask with ones: 1 0 1 | 1 1 would end in a longer last turn, 1 0 | 1 1 1 in an extra turn.
    tool_mask = torch.tensor([[1, 0, 1, 1, 1], [1, 0, 1, 1, 1]])
    completion_mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    assert turn_index(tool_mask * completion_mask).tolist() == [[0, -1, 1, -1, -1], [0, -1, -1, -1, -1]]


@given(masks)
def test_turns_equal_a_loop_over_tokens(rows):
    expected = []
    for row in rows:
        turn, line = -1, []
        for j, token in enumerate(row):
            turn += token == 1 and (j == 0 or row[j - 1] == 0)
            line.append(turn if token else -1)
        expected.append(line)
    assert turn_index(torch.tensor(rows)).tolist() == expected
    assert count_turns(turn_index(torch.tensor(rows))) == max(1, max(max(line) for line in expected) + 1)


@given(masks)
def test_turn_values_spread_over_tokens_average_back_to_themselves(rows):
    turn_BT = turn_index(torch.tensor(rows))
    num_turns = count_turns(turn_BT)
    values_BK = torch.arange(1.0, 1 + len(rows) * num_turns).view(len(rows), num_turns)
    tokens_BT = to_tokens(values_BK, turn_BT, fill=-9.0)
    assert (tokens_BT[turn_BT < 0] == -9).all()
    counts_BK = turn_sums(torch.ones_like(tokens_BT), turn_BT, num_turns)
    torch.testing.assert_close(turn_means(tokens_BT, turn_BT, num_turns), values_BK * (counts_BK > 0))


def test_to_tokens_as_in_its_docstring():
    assert to_tokens(torch.tensor([[5.0, 7.0]]), torch.tensor([[0, 0, -1, 1]])).tolist() == [[5, 5, 0, 7]]


@pytest.mark.parametrize(
    ("mask", "seen"),
    [
        ([1, 1, 0, 0, 1], [0, 4]),
        ([1, 1, 0, 0], [0, 4]),
        ([1, 1, 0, 0, 1, 0], [0, 4, 6]),
        ([1, 1], [0]),
        ([0, 1, 0, 1], [1, 3]),
        ([0, 0], [0]),
        ([], [0]),
    ],
)
def test_values_are_taken_before_each_turn_and_after_the_last_tool_result(mask, seen):
    assert seen_before_turns(mask) == seen
