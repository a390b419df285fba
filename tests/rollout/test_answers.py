"""Where right answers come from: the data set, or environments that own their data."""

import itertools

import pytest
import training
from training import logged, make, questions, settings

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.preflight.data import check_answers
from a2tgpo_trl.rollout.answers import UNKNOWN, Answer, find_answer, rows_with_answers


class Riddles(training.Library):
    """Two riddles that alternate from rollout to rollout; no data set contains them."""

    answer: str | list[str] | None = None
    made = itertools.count()

    def __init__(self):
        self.number = next(Riddles.made)

    def reset(self, **row) -> str:
        super().reset()
        self.answer = ("Paris", "Rome")[self.number % 2]
        return "What is the capital?"


class Failing(Riddles):
    def reset(self, **row) -> str:
        text = super().reset()
        if self.answer == "Rome":
            raise RuntimeError("no riddle left")
        return text


def train(tokenizer, tmp_path, environment, **keywords):
    """A trainer after one step on environments alone, and its records."""
    keywords = {"tools": None, "environment_factory": environment, "train_dataset": None, **keywords}
    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path, max_steps=1)), **keywords)
    records = []
    trainer.on_rollouts = records.extend
    trainer.train()
    return trainer, records


def test_environments_with_answers_train_with_gains_and_no_data_set(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(Riddles, "made", itertools.count())
    trainer, records = train(tokenizer, tmp_path, Riddles)
    assert [record["answer"] for record in records] == ["Paris", "Rome", "Paris", "Rome"]
    assert {record["prompt"][-1]["content"] for record in records} == {"What is the capital?"}
    # The prompts are equal, so the value depends on the answer; the policy says Paris, Rome, Paris and Oslo.
    before = [record["values"][0] for record in records]
    assert before[0] == before[2] != before[1] == before[3]
    assert [record["rewards"]["exact_match"] for record in records] == [1.0, 1.0, 1.0, 0.0]
    assert len(logged(trainer, "gain/mean")) == 1


def test_answer_of_the_environment_takes_precedence_over_the_row():
    game = Riddles()
    assert find_answer({"gold": "Oslo"}, "gold", game).text == "Oslo"
    game.answer = ["Bern", "Berne"]
    assert find_answer({"gold": "Oslo"}, "gold", game).text == ["Bern", "Berne"]
    assert find_answer({"gold": "Oslo"}, "gold", training.Library()).text == "Oslo"
    # A failed reset leaves an old answer.
    assert find_answer({"gold": "Oslo"}, "gold", game, failed=True).text == "Oslo"
    assert find_answer({}, "gold", game, failed=True).text == UNKNOWN


def test_rewards_read_answer_of_all_rows_or_of_none():
    rows = [{"prompt": "a", "gold": "Oslo"}, {"prompt": "b", "answer": "hers", "gold": "Rome"}, {"prompt": "c"}]
    answers = [Answer("Oslo", ""), Answer("Bern", ""), Answer(None, "")]
    assert [row["answer"] for row in rows_with_answers(rows, answers)] == ["Oslo", "Bern", None]
    assert rows_with_answers(rows[2:], answers[2:]) == [{"prompt": "c"}]
    # With two columns, the one that answer_column names counts.
    row = {"prompt": "a", "gold": "Oslo", "answer": "It lies on the fjord, so it is Oslo."}
    assert rows_with_answers([row], [find_answer(row, "gold")]) == [{**row, "answer": "Oslo"}]


def test_failing_environment_with_answers_loses_its_rollout_only(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(Riddles, "made", itertools.count())
    trainer, records = train(tokenizer, tmp_path, Failing)
    assert [record["ended"] == "reset" for record in records] == [False, True, False, True]
    # Two rollouts are left to sample; in them the scripted policy says Paris and Rome.
    assert [record["rewards"]["exact_match"] for record in records] == [1.0, None, 0.0, None]
    assert logged(trainer, "rollouts/excluded") == [0.5]


def test_answer_left_from_an_earlier_reset_is_not_reused(tokenizer, tmp_path):
    class Forgetful(Riddles):
        def reset(self, **row) -> str:
            if not hasattr(self, "asked"):
                self.answer = "Paris"
            return super(Riddles, self).reset()

    args = A2TGPOConfig(**settings(tmp_path, max_steps=2))
    trainer = make(tokenizer, args, tools=None, train_dataset=None, environment_factory=Forgetful)
    with pytest.raises(ValueError, match="Forgetful, after reset, holds None"):
        trainer.train()
    assert trainer.state.global_step == 1


class Silent(Riddles):
    def reset(self, **row) -> str:
        return super(Riddles, self).reset()


class Submits(training.Library):
    def answer(self, text: str) -> str:
        """Give the answer.

        Args:
            text: The answer.
        """
        return text


@pytest.mark.parametrize(
    ("environment", "dataset", "words"),
    [
        (training.Library, None, "no data set was given, and Library declares none.*answer: str.*credit='gtpo'"),
        (Submits, None, "no data set was given, and Submits declares none"),
        (Silent, None, "attribute answer of Silent, after reset, holds None.*credit='gtpo'"),
        (
            training.Library,
            questions().remove_columns("answer"),
            "no column 'answer'; it has prompt.*credit='gtpo'",
        ),
    ],
)
def test_missing_answers_of_an_environment_are_an_error_with_remedies(
    environment, dataset, words, tokenizer, tmp_path
):
    with pytest.raises(ValueError, match=words):
        train(tokenizer, tmp_path, environment, train_dataset=dataset)


def test_environment_without_answers_trains_by_turn_rewards(tokenizer, tmp_path):
    args = A2TGPOConfig(**settings(tmp_path, max_steps=1, credit="gtpo", shaping_embedding="ngrams"))
    keywords = {"tools": None, "train_dataset": None, "reward_funcs": None}
    trainer = make(tokenizer, args, environment_factory=training.Library, **keywords)
    trainer.train()
    assert trainer.state.global_step == 1 and not logged(trainer, "gain/mean")
    assert logged(trainer, "rewards/Library/mean") and logged(trainer, "turn_rewards/bad_format/mean")


def test_check_accepts_environments_that_give_the_answer(tokenizer, tmp_path):
    args = A2TGPOConfig(**settings(tmp_path))
    data = {"training": questions().remove_columns("answer")}
    assert check_answers(data, args, tokenizer, {training.Library})[0] == "fail"
    status, message = check_answers(data, args, tokenizer, {Riddles})
    assert status == "pass" and "Riddles" in message
    only_tested = {"evaluation": questions()}
    status, message = check_answers(only_tested, args, tokenizer, {training.Library})
    assert status == "fail" and "no data set was given" in message
