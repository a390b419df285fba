"""How the tiny policy is made: demonstrations as the tool loop writes them, faultless or clumsy by chance."""

import tiny
import torch
from atlas import CLUMSY, FAULTLESS, Habits, batch, demonstration, imitate, steps_of
from atlas_tokenizer import make_tokenizer
from datasets import Dataset
from imitation import longest, loss_and_hits, make_model, orthogonal

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.tasks.atlas.task import INSTRUCTION
from a2tgpo_trl.tasks.atlas.world import library, make_part
from a2tgpo_trl.tasks.rng import Rng
from a2tgpo_trl.tools.search import search_tool


WORLD = make_part("school", "test")
SEARCH = search_tool(library([WORLD], "test"), top_k=2)
TOKENIZER = make_tokenizer(INSTRUCTION, [SEARCH])


def test_faultless_demonstration_searches_each_fact_once():
    question = WORLD.question(3, Rng(1))
    first, second, third = question.chain
    assert steps_of(question, FAULTLESS, Rng(1)) == [
        f"{first.relation} of {first.subject}",
        f"{second.relation} of {second.subject}",
        f"{third.relation} of {third.subject}",
        question.answer,
    ]


def test_bad_habits_waste_a_search_or_stop_early():
    question = WORLD.question(3, Rng(1))
    hasty = steps_of(question, Habits(hasty=1.0), Rng(1))
    assert hasty == [f"{question.chain[0].relation} of {question.chain[0].subject}", question.chain[0].object]
    # Of 2,000 first steps 25 % are wasted, give or take four standard errors (1 %).
    first = [steps_of(question, CLUMSY, Rng(i))[0] for i in range(2000)]
    assert 0.21 < sum(query == question.chain[0].subject for query in first) / 2000 < 0.29


def test_a_demonstration_is_what_the_tool_loop_makes_of_the_same_steps(tmp_path):
    question = WORLD.question(2, Rng(2))
    ids, written = demonstration(TOKENIZER, question, SEARCH, FAULTLESS, Rng(2))
    *queries, answer = steps_of(question, FAULTLESS, Rng(2))
    model = tiny.make_model(TOKENIZER)
    texts = [*map(tiny.call, queries), tiny.final(answer)]
    tiny.script(model, TOKENIZER, lambda turn, row: texts[turn])
    prompt = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": question.text}]
    trainer = A2TGPOTrainer(
        model,
        lambda completions, **_: [0.0] * len(completions),
        A2TGPOConfig(
            str(tmp_path),
            use_cpu=True,
            bf16=False,
            report_to="none",
            num_generations=2,
            per_device_train_batch_size=2,
            max_completion_length=400,
            chat_template_kwargs={"enable_thinking": False},
        ),
        Dataset.from_list([{"prompt": prompt, "answer": answer}] * 2),
        processing_class=TOKENIZER,
        tools=[SEARCH],
    )
    written_by_the_loop = []
    generate = trainer._generate
    trainer._generate = lambda prompts: (written_by_the_loop.append(generate(prompts)), written_by_the_loop[-1])[1]
    trainer._generate_and_score_completions([{"prompt": prompt, "answer": answer}] * 2)
    prompt_ids, completion_ids, mask = written_by_the_loop[0][:3]
    assert prompt_ids[0] + completion_ids[0] == ids
    assert [0] * len(prompt_ids[0]) + mask[0] == written


def test_the_loss_counts_what_the_policy_wrote_and_nothing_else():
    torch.manual_seed(0)
    model = make_model(TOKENIZER)
    _, ids, written = batch(TOKENIZER, hops=1, size=3, habits=FAULTLESS, seed=0)
    loss, right = loss_and_hits(model, ids, written)
    logits = model(ids).logits[:, :-1].log_softmax(-1)
    picked = logits.gather(-1, ids[:, 1:, None]).squeeze(-1)[written[:, 1:].bool()]
    torch.testing.assert_close(loss, -picked.mean())
    assert not right.any()


def test_muon_steps_along_the_orthogonal_part():
    # Singular values of a random matrix lie far apart; those of the step lie around 1.
    torch.manual_seed(0)
    for shape in ((12, 30), (30, 12)):
        spread = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert 0.5 < spread.min() and spread.max() < 1.5


def test_a_few_steps_lower_the_loss(capsys):
    torch.manual_seed(0)
    model = make_model(TOKENIZER)
    imitate(model, TOKENIZER, 12, FAULTLESS, tokens=600)
    first, last = (line for line in capsys.readouterr().out.splitlines() if line.startswith("step"))
    assert float(last.split()[3]) < 0.9 * float(first.split()[3])


def test_chains_grow_over_the_first_third_of_a_phase():
    assert [longest(step, 9, 4) for step in range(9)] == [1, 2, 3, 4, 4, 4, 4, 4, 4]
    assert longest(0, 9, 4) == 1 and longest(8, 9, 2) == 2
