"""How the policy for TextWorld's houses is made: demonstrations by one who knows what it was told, and no more."""

import pytest
import torch
from houses import CALLS, demonstration, imitate, lesson, rounded, save, walk
from houses_tokenizer import make_tokenizer, names
from imitation import make_model
from transformers import AutoModelForCausalLM

from a2tgpo_trl.tasks.rng import Rng
from a2tgpo_trl.tasks.textworld.play import Play


pytestmark = pytest.mark.textworld


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def asked():
    return [(house, question) for house, few in (lesson("test", i) for i in range(12)) for question in few]


def test_replies_in_a_demonstration_are_those_of_the_game(asked):
    for number, (house, question) in enumerate(asked):
        game = Play({"it": house})
        game.reset("it")
        calls, _ = walk(question, house, Rng(number))
        assert [game.act(command) for command, _ in calls] == [reply for _, reply in calls]


def test_a_demonstration_finds_the_thing_and_does_not_know_where_it_is(asked):
    found = [walk(question, house, Rng(0)) for house, question in asked]
    right = [answer == question.answer for (_, answer), (_, question) in zip(found, asked, strict=True)]
    assert sum(right) / len(right) > 0.9  # the others are at the limit of their calls
    assert all(question.moves <= len(calls) <= CALLS for (calls, _), (_, question) in zip(found, asked, strict=True))
    # Who knew would need the shortest walk.
    assert sum(len(calls) for calls, _ in found) > 1.2 * sum(question.moves for _, question in asked)


def test_names_are_few_tokens_and_demonstration_marks_the_text_of_the_policy(tokenizer, asked):
    assert all(name in names() for house, _ in asked for name in house.start.kinds)
    assert max(len(tokenizer(name)["input_ids"]) for name in names()) <= 5  # "Quote of the Day Calendar"
    house, question = asked[0]
    ids, written = demonstration(tokenizer, question, house, Rng(0))
    calls, answer = walk(question, house, Rng(0))
    said = tokenizer.decode([token for token, by_policy in zip(ids, written, strict=True) if by_policy])
    assert said.startswith('<tool_call>\n{"name": "act", "arguments": {"command": "' + calls[0][0] + '"}}')
    assert said.endswith(f"<answer>{answer}</answer><|im_end|>")
    assert all(reply in tokenizer.decode(ids) for _, reply in calls)


def test_a_few_steps_lower_the_loss_and_what_is_saved_is_read_as_32_bits(tokenizer, capsys, tmp_path):
    torch.manual_seed(0)
    model = make_model(tokenizer, layers=2, heads=2, intermediate_size=64)
    imitate(model, tokenizer, 26, size=4, houses=20)
    first, last = (line for line in capsys.readouterr().out.splitlines() if line.startswith("step"))
    assert float(last.split()[3]) < 0.9 * float(first.split()[3])
    save(model, tokenizer, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, weights in loaded.state_dict().items():
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights, model.state_dict()[name], rtol=1 / 16, atol=0)


def test_weights_are_rounded_to_four_binary_digits():
    # 0.3 = 1.2 / 4 lies between 1.125 / 4 and 1.25 / 4.
    assert rounded(torch.tensor([0.3, -0.3, 0.0, 1.0, 1.95])).tolist() == [0.3125, -0.3125, 0.0, 1.0, 2.0]
