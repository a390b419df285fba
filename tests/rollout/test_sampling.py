"""Rows that draw with their own seeds: the right distribution, whatever rows are sampled together."""

import pytest
import tiny
import torch
from datasets import Dataset
from torch.overrides import TorchFunctionMode

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.evaluation import evaluate
from a2tgpo_trl.rollout.seeds import OwnDraws, own_draws, seed_of


def drawn(scores: torch.Tensor, seeds: list[int]) -> list[int]:
    """The token of each row that can still be drawn."""
    left = OwnDraws(seeds)(torch.zeros(len(scores), 1, dtype=torch.long), scores)
    assert ((left > -torch.inf).sum(dim=1) == 1).all()
    return left.argmax(dim=1).tolist()


def test_tokens_are_drawn_as_often_as_they_are_probable():
    # 4,000 draws: the standard error of a share of one half is 0.008.
    probabilities = torch.tensor([0.2, 0.5, 0.0, 0.3])
    tokens = torch.tensor(drawn(probabilities.log().expand(4000, 4), list(range(4000))))
    shares = tokens.bincount(minlength=4) / 4000
    assert shares.tolist() == pytest.approx(probabilities.tolist(), abs=0.03)
    assert shares[2] == 0


def test_certain_tokens_are_drawn_even_at_the_end_of_a_large_vocabulary():
    scores = torch.full((3, 50_000), -torch.inf)
    scores[:, -1] = -3.0
    assert drawn(scores, [1, 2, 3]) == [49_999] * 3
    scores = torch.full((2, 50_000), -torch.inf)
    scores[:, 0] = 7.0
    assert drawn(scores, [1, 2]) == [0, 0]


def test_non_finite_scores_stay_non_finite():
    left = OwnDraws([1, 2])(torch.zeros(2, 1), torch.tensor([[torch.nan, 0.0], [0.0, 0.0]]))
    assert left[0].isnan().any() and not left[1].isnan().any()


class OnApple(torch.Tensor):
    """A tensor that says it is on Apple's MPS."""

    device = property(lambda self: torch.device("mps"))


class Apple(TorchFunctionMode):
    """Lets tensors go to and from MPS, and refuses float64 results there."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.to and args[1] in (torch.device("mps"), torch.device("cpu")):
            return args[0].as_subclass(OnApple if args[1].type == "mps" else torch.Tensor)
        result = function(*args, **(kwargs or {}))
        if isinstance(result, OnApple) and result.dtype == torch.float64:
            raise TypeError("the MPS framework doesn't support float64")
        return result


def test_on_a_device_without_float64_the_same_tokens_are_drawn():
    scores = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    expected = drawn(scores, [1, 2, 3, 4, 5])
    with Apple():
        there = scores.to(torch.device("mps"))
        with pytest.raises(TypeError, match="float64"):
            there.cumsum(dim=-1, dtype=torch.float64)
        assert drawn(there, [1, 2, 3, 4, 5]) == expected


def test_more_rows_than_rollouts_are_refused_by_name():
    with pytest.raises(ValueError, match="seeded_rollouts=False"):
        OwnDraws([1])(torch.zeros(2, 1), torch.zeros(2, 3))


def test_seeds_depend_on_every_part_and_their_order():
    assert len({seed_of(1, 2), seed_of(2, 1), seed_of(12), seed_of(1, 2, 0), seed_of("1", 2)}) == 5
    assert seed_of(1, [2, 3]) == seed_of(1, [2, 3]) < 2**63


def generate(model, contexts: list[list[int]], seeds: list[int] | None, **settings) -> list[list[int]]:
    width = max(map(len, contexts))
    ids = torch.tensor([[0] * (width - len(context)) + context for context in contexts])
    mask = torch.tensor([[0] * (width - len(context)) + [1] * len(context) for context in contexts])
    options = {"do_sample": True, "max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": 2, **settings}
    with own_draws(model, seeds):
        return model.generate(ids, attention_mask=mask, **options)[:, width:].tolist()


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}, {"top_k": 20, "top_p": 0.9}])
def test_a_row_draws_the_same_alone_and_beside_others(settings):
    model = tiny.make_model(tiny.make_tokenizer(), initializer_range=0.05)
    contexts, seeds = [[5, 6, 7], [9], [5, 6, 7], [11, 12]], [1, 2, 3, 4]
    together = generate(model, contexts, seeds, **settings)
    assert together[0] != together[2]  # one context, two seeds
    torch.manual_seed(99)
    for context, seed, tokens in zip(contexts, seeds, together, strict=True):
        (alone,) = generate(model, [context], [seed], **settings)
        assert tokens[: len(alone)] == alone
    assert "_get_logits_processor" not in vars(model)


def test_seeded_draws_obey_top_k_and_greedy_decoding():
    model = tiny.make_model(tiny.make_tokenizer(), initializer_range=0.05)
    greedy = generate(model, [[5, 6, 7]] * 2, None, do_sample=False)
    assert generate(model, [[5, 6, 7]] * 2, [1, 2], top_k=1) == greedy
    assert generate(model, [[5, 6, 7]] * 2, [1, 2], do_sample=False) == greedy


# ---- in the trainer


def trainer_of(folder, per_device_batch: int, **changes) -> A2TGPOTrainer:
    tokenizer = tiny.make_tokenizer()
    settings = {
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": per_device_batch,
        "per_device_eval_batch_size": 4,
        "gradient_accumulation_steps": 8 // per_device_batch,
        "num_generations": 4,
        "num_generations_eval": 2,
        "max_completion_length": 12,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        **changes,
    }
    rows = {"prompt": ["one", "two", "three", "two"], "answer": ["Paris", "Rome", "Oslo", "Rome"]}
    return A2TGPOTrainer(
        tiny.make_model(tokenizer, initializer_range=0.05),
        lambda completions, **_: [float(len(text) % 3) for text in completions],
        A2TGPOConfig(str(folder), **settings),
        Dataset.from_dict(rows),
        processing_class=tokenizer,
    )


def completions_of(trainer: A2TGPOTrainer) -> list[list[str]]:
    batches: list[list[str]] = []
    trainer.on_rollouts = lambda records: batches.append([record["completion"] for record in records])
    trainer.train()
    return batches


def test_rollouts_are_equal_for_any_micro_batch_size_but_differ_between_batches(tmp_path):
    one, other = (completions_of(trainer_of(tmp_path, size)) for size in (8, 4))
    assert one == other
    assert len({text for batch in one for text in batch}) > 12  # of 16


def test_a_prompt_that_is_rolled_out_again_in_its_place_gets_other_rollouts(tmp_path):
    trainer = trainer_of(tmp_path, 8, max_steps=1, resample_limit=1)
    trainer.reward_funcs[0] = lambda completions, **_: [0.0] * len(completions)  # teaches nothing, so all are
    first, second = completions_of(trainer)
    assert len(first) == len(second) == 8 and not set(first) & set(second)


def test_two_evaluations_of_a_policy_that_stands_still_are_the_same(tmp_path):
    trainer, completions = trainer_of(tmp_path, 8), []
    trainer.on_rollouts = lambda records: completions.extend(record["completion"] for record in records)
    for _ in range(2):
        trainer.evaluate(trainer.train_dataset)  # two batches
    assert completions[:8] == completions[8:] and len(set(completions)) == 8


def test_rollouts_do_not_depend_on_how_many_are_sampled_at_once(tmp_path):
    at_once = []

    def rollouts(size: int | None) -> list[list[str]]:
        trainer = trainer_of(tmp_path, 8, sampling_batch_size=size)
        generate = trainer.model.generate
        trainer.model.generate = lambda input_ids, **kw: (at_once.append(len(input_ids)), generate(input_ids, **kw))[1]
        return completions_of(trainer)

    assert rollouts(None) == rollouts(3)
    assert at_once == [8, 8, 3, 3, 2, 3, 3, 2]


@pytest.mark.parametrize("name", ["sampling_batch_size", "sampling_token_budget"])
@pytest.mark.parametrize("engine", ["use_vllm", "use_transformers_continuous_batching"])
def test_settings_of_our_sampling_are_refused_where_they_would_have_no_effect(name, engine, tmp_path):
    with pytest.raises(ValueError, match=f"{name} has no effect with vLLM or continuous batching"):
        A2TGPOConfig(str(tmp_path), use_cpu=True, bf16=False, **{name: 2, engine: True})


def test_seed_and_seeded_rollouts_change_the_rollouts(tmp_path):
    with_seeds = completions_of(trainer_of(tmp_path, 8))
    assert with_seeds != completions_of(trainer_of(tmp_path, 8, seed=7))
    assert with_seeds != completions_of(trainer_of(tmp_path, 8, seeded_rollouts=False))


def test_an_evaluation_draws_the_same_in_batches_of_any_size(tmp_path):
    found = []
    for size in (2, 6):
        trainer = trainer_of(tmp_path, 8, per_device_eval_batch_size=size)
        records = evaluate(trainer, trainer.train_dataset, tmp_path / "rollouts.jsonl", seed=3)
        found.append([record["completion"] for record in records])
    assert found[0] == found[1] and found[0][0] != found[0][1]
    assert found[0][2:4] != found[0][6:8]  # a question that occurs twice is sampled again
    trainer.rollout_seed = 3
    again = evaluate(trainer, trainer.train_dataset, tmp_path / "rollouts.jsonl", seed=4)
    assert [record["completion"] for record in again] != found[0] and trainer.rollout_seed == 3


def test_evaluation_in_training_draws_the_same_on_the_second_of_two_ranks(tmp_path):
    def evaluated(trainer: A2TGPOTrainer, questions: list[int]) -> list[str]:
        found = []
        trainer.reward_funcs[0] = lambda completions, **_: found.extend(completions) or [0.0] * len(completions)
        trainer.evaluate(trainer.train_dataset.select(questions))
        return found

    alone = evaluated(trainer_of(tmp_path, 8), [0, 1, 2, 3])
    # A batch is a question for each rank, with two rollouts: the second rank has questions 1 and 3.
    second = trainer_of(tmp_path, 8, per_device_eval_batch_size=2)
    second._ranks.index, second._ranks.number = 1, 2
    assert evaluated(second, [1, 3]) == alone[2:4] + alone[6:8]
    assert len(set(alone)) == 8


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_transformers_continuous_batching": True}, "continuous_batching"),
        ({"use_vllm": True, "vllm_mode": "server"}, "vLLM unless it is colocated"),
        ({"use_vllm": True, "vllm_mode": "colocate", "stream_turns": False}, "stream_turns"),
        ({"full_determinism": True}, "full_determinism"),
    ],
)
def test_seeded_rollouts_is_refused_where_it_has_no_effect(settings, said, tmp_path):
    common = {"use_cpu": True, "bf16": False, **settings}
    with pytest.raises(ValueError, match=said):
        A2TGPOConfig(str(tmp_path), seeded_rollouts=True, **common)
    assert not A2TGPOConfig(str(tmp_path), **common).seeds_rollouts
    assert A2TGPOConfig(str(tmp_path), use_cpu=True, bf16=False).seeds_rollouts
    with pytest.raises(ValueError, match="seeded_rollouts must be"):
        A2TGPOConfig(str(tmp_path), use_cpu=True, bf16=False, seeded_rollouts="yes")


@pytest.mark.parametrize("engine", [{}, {"use_vllm": True}, {"use_vllm": True, "vllm_mode": "server"}])
@pytest.mark.parametrize("given", [{"seed": 0, "stop": ["x"]}, '{"seed": 3}'])
def test_one_seed_for_all_requests_is_refused(engine, given, tmp_path):
    with pytest.raises(ValueError, match="leave out seed.*rollouts of a prompt.*seeded_rollouts=True"):
        A2TGPOConfig(str(tmp_path), use_cpu=True, bf16=False, generation_kwargs=given, **engine)
