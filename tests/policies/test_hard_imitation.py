"""How the policy for Atlas's harder world is made: what its demonstrations do, rightly and wrongly."""

from dataclasses import replace

import pytest
import torch
from atlas_hard import (
    CLUMSY,
    FAULTLESS,
    Habits,
    batch,
    demonstration,
    imitate,
    main,
    read,
    school,
    tokenizer_of_task,
    walk,
)
from imitation import make_model
from transformers import AutoModelForCausalLM

from a2tgpo_trl.tasks.rng import Rng


@pytest.fixture(scope="module")
def where():
    return school("school", "test")


@pytest.fixture(scope="module")
def question(where):
    """One of three hops whose first asks for a relation that looks like another."""
    rng = Rng("hard")
    while True:
        question = where.world.question(3, rng)
        if walk(question, where, FAULTLESS, rng)[1] == question.answer and " " in question.chain[0].relation:
            return question


def queries(question, where, habits):
    calls, answer = walk(question, where, habits, Rng(0))
    return [call.split('": "')[-1].removesuffix('"}}') for call, _ in calls], answer


def test_faultless_demonstration_searches_each_fact_once(where, question):
    asked = [f"{fact.relation} of {fact.subject}" for fact in question.chain]
    assert queries(question, where, FAULTLESS) == (asked, question.answer)


def test_next_name_is_read_from_the_fact_or_the_distractor():
    found = ["mayor: mayor of Rome? Ask Cato Rufus.", "The alleged mayor of Rome is Aulus Varro."]
    fact = "The mayor of Rome is Titus Galba."
    assert read([*found, fact], "mayor", "Rome", believes_first=False) == "Titus Galba"
    assert read([*found, fact], "mayor", "Rome", believes_first=True) == "Cato Rufus"
    assert read(found, "mayor", "Rome", believes_first=False) == "Cato Rufus"  # there is no fact to read
    assert read(["No results."], "mayor", "Rome", believes_first=False) == "Rome"


def test_habits_lead_astray_or_cost_calls(where, question):
    first = question.chain[0]
    careless, _ = queries(question, where, Habits(careless=1.0))
    assert careless[0] == f"{first.relation.split()[-1]} of {first.subject}"
    gullible, _ = queries(question, where, Habits(gullible=1.0))
    named = {one.named for one in where.world.distractors if one.subject == first.subject}
    assert gullible[1].endswith(tuple(named))
    assert queries(question, where, Habits(hasty=1.0)) == (
        [f"{first.relation} of {first.subject}"],
        question.chain[1].subject,
    )
    wasteful, answer = queries(question, where, Habits(wasteful=0.5, tempted=0.5))
    assert len(wasteful) > 3 and answer == question.answer
    right = {f"{fact.relation} of {fact.subject}" for fact in question.chain}
    assert set(wasteful) - right <= where.world.entities.keys()


def test_eager_answers_at_once_and_leaves_other_habits_unchanged(where, question):
    assert queries(question, where, Habits(eager=1.0)) == ([], question.chain[0].subject)
    # Of 1,000 demonstrations 40 % answer at once, give or take four standard errors (1.5 %).
    at_once = [not walk(question, where, Habits(eager=0.4), Rng("eager", i))[0] for i in range(1000)]
    assert 0.34 < sum(at_once) / 1000 < 0.46
    # The batches of a policy without the habit are seeded by this text; with another, it would be another policy.
    others = "wasteful=0.15, tempted=0.2, careless=0.3, gullible=0.2, hasty=0.1"
    assert repr(CLUMSY) == repr(replace(CLUMSY, eager=0.4)) == f"Habits({others})"


def test_a_policy_can_be_made_from_another(tmp_path, monkeypatch, capsys):
    start = make_model(tokenizer_of_task(), layers=1, heads=2, intermediate_size=32)
    start.save_pretrained(tmp_path / "start")
    words = ["--start", str(tmp_path / "start"), "--eager", "1.0", "--clumsy-steps", "1", "--hops", "1"]
    monkeypatch.setattr("sys.argv", ["atlas_hard.py", str(tmp_path / "made"), *words])
    main()
    assert capsys.readouterr().out.count("step") == 1  # of the second phase alone
    made, before = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("made", "start"))
    assert made.keys() == before.keys() and any(not torch.equal(made[name], before[name]) for name in made)
    assert not (tmp_path / "made" / "faultless").exists()


def test_demonstration_marks_the_tokens_of_the_policy(where, question):
    tokenizer = tokenizer_of_task()
    ids, written = demonstration(tokenizer, question, where, Habits(tempted=0.6), Rng(1))
    said = tokenizer.decode([token for token, by_policy in zip(ids, written, strict=True) if by_policy])
    assert '{"name": "index", "arguments": {"name": "' in said and said.endswith(
        f"<answer>{question.answer}</answer><|im_end|>"
    )


def test_a_few_steps_lower_the_loss(capsys):
    torch.manual_seed(0)
    tokenizer = tokenizer_of_task()
    model = make_model(tokenizer, layers=2, heads=2, intermediate_size=64)
    imitate(model, tokenizer, 24, FAULTLESS, tokens=600)
    first, last = (line for line in capsys.readouterr().out.splitlines() if line.startswith("step"))
    assert float(last.split()[3]) < 0.95 * float(first.split()[3])
    hops, ids, written = batch(tokenizer, 2, 3, FAULTLESS, 0, school("school", "test"))
    assert hops == 2 and ids.shape == written.shape and len(ids) == 3
