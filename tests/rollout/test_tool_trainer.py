"""`ToolTrainer` by itself: TRL's GRPO on rollouts that are safe, and records of any rows."""

import pytest
import torch
from training import logged, make, questions, settings, weights
from trl import GRPOConfig, GRPOTrainer

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer, ToolConfig, ToolTrainer


def test_tool_trainer_trains_exactly_like_grpo_on_the_same_rollouts(tokenizer, tmp_path):
    common = settings(tmp_path, num_iterations=2, steps_per_generation=2)
    grpo = make(tokenizer, GRPOConfig(**common), trainer=GRPOTrainer)
    grpo.train()
    ours = make(tokenizer, ToolConfig(**common), trainer=ToolTrainer)
    start = weights(ours)
    ours.train()
    assert all(torch.equal(a, b) for a, b in zip(weights(grpo).values(), weights(ours).values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(start.values(), weights(ours).values(), strict=True))
    assert logged(ours, "loss") == logged(grpo, "loss")
    # Rollouts of 2, 1, 0 and 3 tool turns, each followed by an answer; all of them ended well.
    assert logged(ours, "turns/mean")[0] == 2.5 and logged(ours, "turns/ok")[0] == 1.0
    assert not logged(ours, "gain/mean")


def test_seeded_roll_out_is_reproducible_and_leaves_no_state_behind(tokenizer, tmp_path):
    trainer = make(tokenizer, ToolConfig(**settings(tmp_path)), trainer=ToolTrainer, scripted=False)
    trainer.num_generations_eval = 2
    rows, seen = [questions()[0]] * 3, []
    trainer.on_rollouts = seen.extend
    state, training = torch.get_rng_state(), trainer.model.training
    first = trainer.roll_out(rows, seed=1)
    assert torch.equal(torch.get_rng_state(), state) and trainer.model.training == training
    assert seen == [] and not trainer._metrics["eval"] and trainer._batch is None
    assert [record["row"] for record in first] == [0, 0, 1, 1, 2, 2]
    texts = [record["completion"] for record in first]
    assert len({str(text) for text in texts}) == 6  # each draws with its own seed, though all read the same
    assert [record["completion"] for record in trainer.roll_out(rows, seed=1)] == texts
    assert [record["completion"] for record in trainer.roll_out(rows[1:], seed=1, first=1)] == texts[2:]
    assert [record["completion"] for record in trainer.roll_out(rows, seed=2)] != texts
    # A batch of four rollouts holds two rows; no rows need no batch.
    asked, inner = [], trainer._evaluate_batch
    trainer._evaluate_batch = lambda rows: (asked.append(len(rows)), inner(rows))[1]
    assert [record["completion"] for record in trainer.roll_out(rows, seed=1)] == texts
    assert trainer.rows_per_batch == 2 and asked == [4, 2] and trainer.roll_out([]) == []


def test_settings_of_another_class_are_refused(tokenizer, tmp_path):
    with pytest.raises(TypeError, match="args must be a ToolConfig, got GRPOConfig"):
        make(tokenizer, GRPOConfig(**settings(tmp_path)), trainer=ToolTrainer)
    make(tokenizer, A2TGPOConfig(**settings(tmp_path)), trainer=ToolTrainer)  # this is a ToolConfig and more


@pytest.mark.parametrize("ours", [(ToolTrainer, ToolConfig), (A2TGPOTrainer, A2TGPOConfig)], ids=["tools", "a2tgpo"])
def test_batch_sets_only_one_attribute_that_trl_does_not(ours, tokenizer, tmp_path):
    def assigned(kind, config) -> set[str]:
        names: set[str] = set()

        class Watched(kind):
            def __setattr__(self, name, value):
                names.add(name)
                super().__setattr__(name, value)

        trainer = make(tokenizer, config(**settings(tmp_path)), trainer=Watched)
        batch = [dict(row) for row in trainer.train_dataset.select([0] * 4)]
        names.clear()
        for training in (True, False):
            trainer.model.train(training)
            trainer._generate_and_score_completions(batch)
        return names

    beside = assigned(*ours) - assigned(GRPOTrainer, GRPOConfig)
    # An evaluation skips two of TRL's passes, and counts its rollouts for their seeds.
    assert beside - {"beta", "vllm_importance_sampling_correction", "evaluated_rollouts"} == {"_batch"}
