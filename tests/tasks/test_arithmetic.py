"""Arithmetic: the same everywhere, too hard to do in the head, with several steps that Python takes one by one."""

import hashlib
import json

import pytest
import torch
from arithmetic import (
    CLUMSY,
    FAULTLESS,
    Habits,
    Scratch,
    batch,
    demonstration,
    imitate,
    python_tool,
    slip_of,
    tokenizer_of_task,
    work,
)
from closed_book import answers_at_once
from imitation import make_model
from transformers import AutoTokenizer

from a2tgpo_trl.rewards import exact_number
from a2tgpo_trl.tasks.arithmetic import POLICY
from a2tgpo_trl.tasks.arithmetic.problems import NOUNS, PARTS, Operation, Problem, Step, make_problem
from a2tgpo_trl.tasks.arithmetic.task import arithmetic
from a2tgpo_trl.tasks.rng import Rng
from a2tgpo_trl.tools.python import python_sessions


ADD, SUBTRACT = Operation("+", 121), Operation("-", 122)
# 100 * 101 = 10100, which is even: + 121 = 10221; remainder of a division by 500: 221.
PROBLEM = Problem((100, 101), (Step(ADD, SUBTRACT), Step(Operation("%", 500), Operation("%", 500))))


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of_task()


@pytest.fixture(scope="module")
def task():
    return arithmetic()


# ---- problems


def test_a_seed_gives_the_same_problems_on_every_machine(task):
    # If you change the problems, change the digest, and make a new policy if the words changed.
    rows = json.dumps([task.train_dataset.to_list(), task.test_dataset.to_list()])
    assert hashlib.sha256(rows.encode()).hexdigest()[:16] == "c064ef848b601146"
    other = arithmetic(seed=1, train_questions=3, test_questions=3)
    assert other.test_dataset.to_list() != task.test_dataset.to_list()[:3]
    assert len(other.train_dataset) == 3


def test_training_and_test_have_no_product_in_common_whatever_the_seed():
    drawn = {part: {make_problem(2, part, Rng(part, i)).factors for i in range(400)} for part in PARTS}
    assert not any(drawn[one] & drawn[other] for one in PARTS for other in PARTS if one != other)
    assert sorted(residue for residues in PARTS.values() for residue in residues) == list(range(8))


def test_the_sets_have_the_promised_numbers_of_steps(task):
    assert sorted(set(task.train_dataset["steps"])) == [1, 2, 3, 4]
    assert [task.test_dataset["steps"].count(steps) for steps in (2, 3, 4)] == [100, 100, 100]
    assert task.group_by == "steps"


def test_answer_is_the_last_value_of_the_steps():
    assert PROBLEM.values == [10100, 10221, 221] and PROBLEM.answer == "221"
    odd = Problem((101, 101), PROBLEM.steps)  # 10201 - 122 = 10079, and 10079 = 20 * 500 + 79
    assert odd.values == [10201, 10079, 79]


def test_problem_text_is_a_calculation_or_a_story():
    assert PROBLEM.text == (
        "Multiply 100 by 101. If it is even, add 121, else subtract 122. "
        "Then keep the remainder of a division by 500. What is the result?"
    )
    assert Problem(PROBLEM.factors, PROBLEM.steps, "eggs").text == (
        "There are 100 boxes of 101 eggs. If their number is even, 121 more eggs arrive, else 122 of the eggs are "
        "sold. Then they go out in loads of 500 and the rest stays. How many eggs are there?"
    )


def test_numbers_are_bounded_and_parity_is_balanced():
    problems = [make_problem(4, "train", Rng("numbers", i)) for i in range(1000)]
    assert all(0 <= value < 1_010_000 for problem in problems for value in problem.values)
    assert {problem.noun for problem in problems} == {None, *NOUNS}
    # Half of 1,000 products are even, give or take four standard errors (1.6 %).
    assert 0.43 < sum(problem.values[0] % 2 for problem in problems) / 1000 < 0.57


# ---- demonstrations


def test_faultless_work_takes_one_call_per_step_and_per_parity_check():
    assert work(PROBLEM, Scratch().python, FAULTLESS, Rng(1)) == (
        [("n = 100 * 101; n", "10100"), ("n % 2", "0"), ("n += 121; n", "10221"), ("n %= 500; n", "221")],
        "221",
    )


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_faultless_work_finds_the_answer(steps):
    for i in range(50):
        problem = make_problem(steps, "school", Rng("faultless", steps, i))
        assert work(problem, Scratch().python, FAULTLESS, Rng(i))[1] == problem.answer


def test_each_habit_makes_its_named_mistake():
    def habit(**chances):
        return work(PROBLEM, Scratch().python, Habits(**chances), Rng(3))

    assert habit(guessing=1.0)[0] == [] and habit(guessing=1.0)[1] in ("100", "101")
    assert habit(hasty=1.0) == ([("n = 100 * 101; n", "10100")], "10100")
    assert [code for code, _ in habit(blind=1.0)[0]][1] in ("n += 121; n", "n -= 122; n")
    # 10100 + 121 + 121 = 10342, and 10342 = 20 * 500 + 342, which a second division does not change.
    calls, answer = habit(repeating=1.0)
    assert [code for code, _ in calls].count("n += 121; n") == 2 and answer == "342"
    calls, answer = habit(slipping=0.6)
    assert answer == "221" and sum("Error" in result for _, result in calls) > 0


def test_slip_raises_an_error_and_keeps_the_variables():
    for code in ("n = 100 * 101; n", "n % 2", "n += 121; n", "n %= 500; n"):
        for i in range(8):
            scratch = Scratch()
            scratch.python("n = 7; n")
            assert "Error: " in scratch.python(slip_of(code, Rng(i))) and scratch.python("n; n") == "7"
    slips = {slip_of("n += 121; n", Rng(i)) for i in range(8)}
    assert slips == {"n += 121 n", "m += 121; m"}


def test_scratch_interpreter_says_what_the_python_tool_says():
    session, scratch = python_sessions()(), Scratch()
    session.reset()
    for code in ("n = 300 * 400; n", "n % 2", "m += 521; m", "n += 521 n", "n = 3 * 4 n", "m % 2", "n %= 7; n"):
        try:
            said = session.python(code)
        except Exception as error:  # whatever the tool raises, its text is what the policy reads
            said = str(error)
        assert said == scratch.python(code)


def test_a_demonstration_marks_what_the_policy_wrote(tokenizer):
    ids, written = demonstration(tokenizer, PROBLEM, FAULTLESS, Rng(1))
    assert len(ids) == len(written)
    parts = tokenizer.decode([token for token, mine in zip(ids, written, strict=True) if mine]).split("<|im_end|>")
    assert parts[0] == ('<tool_call>\n{"name": "python", "arguments": {"code": "n = 100 * 101; n"}}\n</tool_call>')
    assert parts[-2:] == ["<answer>221</answer>", ""] and len(parts) == 6


def test_a_few_steps_lower_the_loss(tokenizer, capsys):
    torch.manual_seed(0)
    model = make_model(tokenizer, heads=4, intermediate_size=384)
    imitate(model, tokenizer, 12, FAULTLESS, tokens=600)
    first, last = (line for line in capsys.readouterr().out.splitlines() if line.startswith("step"))
    assert float(last.split()[3]) < 0.9 * float(first.split()[3])


def test_demonstrations_use_problems_of_the_school_part_only(tokenizer):
    _, ids, _ = batch(tokenizer, 2, 20, CLUMSY, seed=0)
    asked = [text.split("<|im_start|>user\n")[1].split() for text in tokenizer.batch_decode(ids)]
    for words in asked:
        x, y = [int(word.strip(".")) for word in words if word.strip(".").isdigit()][:2]
        assert (x // 10 + y // 10) % 8 in PARTS["school"]


# ---- the shipped tokenizer and policy


def test_the_tokenizer_gives_back_any_text(tokenizer):
    for text in (
        PROBLEM.text,
        '<tool_call>\n{"name": "python", "arguments": {"code": "n = 100 * 101; n"}}\n</tool_call><|im_end|>',
        "<answer>1234567</answer>",
        "Wörter, 日本語 and 3.14: unknown ones too.",
        "def f(x):\n    return x + 1\n\nprint(f(2))",
        Scratch().python("m += 1; m"),
    ):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_three_digits_are_one_token_wherever_they_stand(tokenizer):
    (number,) = tokenizer("482")["input_ids"]
    for text in ("by 482.", "n += 482; n", "482913", "<answer>482</answer>"):
        assert number in tokenizer(text)["input_ids"]
    assert len(tokenizer("998001")["input_ids"]) == 2


def test_prompt_has_fewer_than_64_tokens(tokenizer, task):
    ids = tokenizer.apply_chat_template(
        task.test_dataset[0]["prompt"],
        tools=[python_tool()],
        add_generation_prompt=True,
        enable_thinking=False,
        return_dict=False,
    )
    assert len(ids) < 64


def test_shipped_policy_is_small_and_its_tokenizer_matches_the_source(tokenizer):
    assert sum(file.stat().st_size for file in POLICY.iterdir()) < 10_000_000
    shipped = AutoTokenizer.from_pretrained(POLICY)
    assert shipped.get_vocab() == tokenizer.get_vocab()
    assert shipped.chat_template == tokenizer.chat_template


def test_shipped_policy_cannot_answer_without_the_tool(task):
    # It answers immediately, with the most likely tokens, and must fail on at least 95 of 100.
    written = answers_at_once(POLICY, task.test_dataset["prompt"], [python_tool()], 5)
    right = exact_number(written, task.test_dataset["answer"])
    assert sum("</answer>" in text for text in written) > 0.9 * len(written)
    assert sum(right) / len(right) <= 0.05
