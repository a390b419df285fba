"""Evaluations sample from the current weights and leave them unchanged; tables show the advantages trained with."""

import math

import pandas
import pytest
import tiny
import torch
from training import make, questions, settings, spread
from trl import GRPOTrainer

from a2tgpo_trl import A2TGPOConfig, evaluation


# ---- a sampler with its own weights


class Sampler:
    """A stand-in for TRL's side of vLLM, with its own weights, which only `sync_weights` updates."""

    mode, tensor_parallel_size, enable_sleep_mode = "colocate", 1, False

    def __init__(self, trainer):
        self._trainer, self.end = trainer, trainer._tokenizer.eos_token_id
        self.weights, self.sampled_by = None, []

    def sync_weights(self):
        self.weights = self._trainer.model.lm_head.weight.detach().clone()

    def generate(self, prompts, images, num_generations, profiler):
        self.sampled_by.append(self.weights)
        return None, [[20 + i, self.end] for i in range(len(prompts))], [[[-1.0], [-1.0]] for _ in prompts], None


def sampled_elsewhere(tokenizer, tmp_path, **changes):
    """A trainer whose rollouts come from a `Sampler`; the policy of the first step earns most."""

    def worse_each_time(completions, trainer_state, **_):
        return [float(i % 2) - trainer_state.global_step for i in range(len(completions))]

    args = A2TGPOConfig(**settings(tmp_path, **changes))
    trainer = make(tokenizer, args, tools=None, reward_funcs=worse_each_time, eval_dataset=questions(1))
    trainer.use_vllm, trainer.vllm_mode, trainer._last_loaded_step = True, "colocate", -1
    trainer.vllm_generation = Sampler(trainer)
    return trainer


BEST = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


@pytest.mark.parametrize("by", ["trainer.evaluate", "evaluation.evaluate", "trainer.roll_out"])
def test_after_the_best_weights_are_loaded_the_sampler_has_them_too(by, tokenizer, tmp_path):
    trainer = sampled_elsewhere(tokenizer, tmp_path, load_best_model_at_end=True, **BEST)
    trainer.train()
    assert trainer.state.best_global_step == 1 and trainer.state.global_step == 2
    last = trainer.vllm_generation.weights
    assert not torch.equal(last, trainer.model.lm_head.weight)
    if by == "trainer.evaluate":
        trainer.evaluate()
    elif by == "trainer.roll_out":
        trainer.roll_out(list(questions(1)))
    else:
        evaluation.evaluate(trainer, questions(1), tmp_path / "after.jsonl")
    assert torch.equal(trainer.vllm_generation.sampled_by[-1], trainer.model.lm_head.weight)


def test_an_evaluation_samples_from_weights_that_a_user_has_loaded(tokenizer, tmp_path):
    trainer = sampled_elsewhere(tokenizer, tmp_path)
    trainer.evaluate()
    trainer.model.load_state_dict(tiny.make_model(tokenizer, seed=1).state_dict())
    trainer.evaluate()
    first, second = trainer.vllm_generation.sampled_by
    assert not torch.equal(first, second) and torch.equal(second, trainer.model.lm_head.weight)


def test_a_second_run_of_one_step_samples_from_the_weights_of_the_first(tokenizer, tmp_path):
    # Both runs sample at step 0 only.
    trainer = sampled_elsewhere(tokenizer, tmp_path, max_steps=1)
    trainer.train()
    after = trainer.model.lm_head.weight.detach().clone()
    trainer.train()
    assert torch.equal(trainer.vllm_generation.sampled_by[-1], after)


# ---- a sampler that spoils the model


SMALL = {"num_blocks": 16, "max_batch_tokens": 64}


def batched(tokenizer, tmp_path, **changes):
    """A trainer whose rollouts, a few tokens each, are sampled by continuous batching in transformers."""
    common = {"use_transformers_continuous_batching": True, "transformers_continuous_batching_config": SMALL}
    args = A2TGPOConfig(**settings(tmp_path, max_completion_length=3, **common, **changes))
    return make(tokenizer, args, tools=None, reward_funcs=spread, scripted=False)


def test_evaluation_with_continuous_batching_restores_mode_and_precision(tokenizer, tmp_path):
    trainer = batched(tokenizer, tmp_path, bf16=True, num_generations_eval=2)
    before = {name: tensor.clone() for name, tensor in (*trainer.model.state_dict().items(), *buffers(trainer))}
    found = trainer.evaluate(questions(4))  # two batches of two prompts
    assert trainer.evaluated_rollouts == 8 and found["eval_reward"] == 0.75  # 0, 1, 2 and 0
    assert not trainer.model.training and not trainer._metrics["train"]
    after = dict((*trainer.model.state_dict().items(), *buffers(trainer)))
    assert all(
        torch.equal(tensor, after[name]) and tensor.dtype == after[name].dtype for name, tensor in before.items()
    )


def buffers(trainer):
    return trainer.model.named_buffers()


def test_weights_trained_by_continuous_batching_keep_their_precision(tokenizer, tmp_path):
    trainer = batched(tokenizer, tmp_path, bf16=True, max_steps=1, learning_rate=1e-4)
    trainer.train()
    # Steps at a learning rate of 1e-4 are lost if weights of 0.2 are kept in 16 bits.
    weight = trainer.model.model.layers[0].mlp.up_proj.weight
    moved = (weight - tiny.make_model(tokenizer).model.layers[0].mlp.up_proj.weight).abs()
    assert weight.dtype == torch.float32 and (moved[moved > 0] < 1.1e-4).all() and (moved > 0).float().mean() > 0.9


def test_gradients_that_wait_for_their_step_keep_their_precision(tokenizer, tmp_path, monkeypatch):
    # Rollouts are sampled between two micro-batches of a step.
    trainer = batched(tokenizer, tmp_path, bf16=True)
    model = trainer.model.train()
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, 1 / 3)
    parameters = list(map(id, model.parameters()))

    def spoil(self, prompt_ids, *_, **__):
        self.model.to(torch.bfloat16).eval()
        return [[5]] * len(prompt_ids), None

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", spoil)
    trainer._generate_and_score_completions([questions(1)[0]] * 4)
    assert list(map(id, model.parameters())) == parameters and model.training
    assert all(weight.grad.dtype == weight.dtype == torch.float32 for weight in model.parameters())
    assert all((weight.grad == 1 / torch.tensor(3.0)).all() for weight in model.parameters())


# ---- what the table of completions shows


def test_the_table_of_completions_shows_the_advantages_that_were_trained_with(tokenizer, tmp_path):
    args = A2TGPOConfig(**settings(tmp_path, max_steps=1, log_completions=True))
    trainer = make(tokenizer, args)
    credited, assign = [], trainer.credit_batch
    trainer.credit_batch = lambda *batch: (credited.append(assign(*batch)), credited[-1])[1]
    trainer.train()
    (batch,) = credited
    (file,) = (tmp_path / "completions").glob("*.parquet")
    table = pandas.read_parquet(file)
    for shown, mean, advantages, turns in zip(
        table["turn_advantages"], table["advantage"], batch["advantages"], batch["turn_index"], strict=True
    ):
        of_turns = [advantages[turns == turn][0].item() for turn in range(int(turns.max()) + 1)]
        assert list(shown) == pytest.approx(of_turns, abs=1e-4)
        assert mean == pytest.approx(sum(of_turns) / len(of_turns), abs=1e-6)
    assert len({len(shown) for shown in table["turn_advantages"]}) == 4  # 1 to 4 turns
    assert any(len(set(shown)) > 1 for shown in table["turn_advantages"])  # the parent's one number cannot show this


def test_the_table_of_an_evaluation_shows_no_advantage(tokenizer, tmp_path):
    args = A2TGPOConfig(**settings(tmp_path, log_completions=True))
    trainer = make(tokenizer, args)
    trainer.evaluate(questions(1))
    (file,) = (tmp_path / "completions").glob("*.parquet")
    table = pandas.read_parquet(file)
    assert len(table) == 4 and all(map(math.isnan, table["advantage"]))
    assert [len(shown) for shown in table["turn_advantages"]] == [0] * 4
