"""A transformers model that keeps what it has read samples the same turns as `generate`, with less work."""

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import tiny
import torch
from peft import LoraConfig
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel

from a2tgpo_trl import A2TGPOTrainer
from a2tgpo_trl.rollout.drawing import Sampling, sampling_of
from a2tgpo_trl.rollout.engines import Engine, LockStep, Request, most_tokens
from a2tgpo_trl.rollout.keeping import keeping_error, obstacle_to_keeping
from a2tgpo_trl.rollout.seeds import own_draws
from a2tgpo_trl.rollout.trainer import ToolTrainer
from a2tgpo_trl.rollout.transformers_engine import TransformersStream
from a2tgpo_trl.tasks.atlas import POLICY
from a2tgpo_trl.tasks.atlas.task import atlas


END = 2
GENERATION = {"do_sample": True, "max_new_tokens": 9, "pad_token_id": 0, "eos_token_id": END}
# Keys and values can be kept for all models whose rows can be packed; these also have dropout.
DROPOUT = ("gpt2", "opt")
KEPT = [name for name in tiny.architectures() if name not in (*tiny.UNPACKABLE, *DROPOUT)]
TURNS = 4


class Tail(NamedTuple):
    ids: list[int]
    gold: list[bool]


def make(name: str) -> PreTrainedModel:
    """A model of this family whose predictions are not certain."""
    model = tiny.architectures()[name]()
    with torch.no_grad():
        for weight in model.get_output_embeddings().parameters():
            weight.mul_(0.3)
    return model


def tokens(generator: random.Random, number: int) -> list[int]:
    return [generator.randrange(3, 384) for _ in range(number)]


def prompts(number: int = 6) -> list[list[int]]:
    """Prompts, each of them twice."""
    generator = random.Random(1)
    different = [tokens(generator, 5 + 7 * i) for i in range(number // 2)]
    return [different[i // 2] for i in range(number)]


def result(key: int, turn: int) -> list[int]:
    """The tool result of this rollout after this turn."""
    return tokens(random.Random(100 * key + turn), 1 + (3 * key + 5 * turn) % 11)


def play(
    engine: Engine, contexts: list[list[int]], hold_back: Callable[[int], bool] = lambda key: False
) -> list[list[int]]:
    """Play all turns of rollouts; return their contexts.

    Tools answer immediately; those held back answer when nothing else is pending.
    """
    contexts, turns, late = [list(context) for context in contexts], [0] * len(contexts), []
    for key, context in enumerate(contexts):
        engine.submit(key, context, 9 - key % 3)
    while engine.has_work() or late:
        samples = engine.collect(wait=not late) if engine.has_work() else []
        if not engine.has_work() and not samples:
            samples, late = [(key, None) for key in reversed(late)], []
        for key, *sampled in samples:
            if sampled[0] is not None:
                contexts[key] += sampled[0]
                turns[key] += 1
                if turns[key] == TURNS:
                    engine.forget(key)
                    continue
                contexts[key] += result(key, turns[key])
                if hold_back(key):
                    late.append(key)
                    continue
            engine.submit(key, contexts[key], 9 - key % 3)
    return contexts


def by_generate(model: PreTrainedModel, seeds: list[int], **settings) -> LockStep:
    def sample(requests: list[Request]) -> tuple[list[list[int]], None]:
        width = max(len(request.context) for request in requests)
        ids = torch.tensor([[0] * (width - len(one.context)) + one.context for one in requests])
        mask = torch.tensor([[0] * (width - len(one.context)) + [1] * len(one.context) for one in requests])
        limit = min(most_tokens(requests) or 9, 9)
        with own_draws(model, [request.seed for request in requests]):
            given = {**GENERATION, "max_new_tokens": limit, **settings}
            found = model.generate(ids, attention_mask=mask, **given)[:, width:].tolist()
        cut = [row[: row.index(END) + 1] if END in row else row for row in found]
        return [row[: request.max_tokens] for row, request in zip(cut, requests, strict=True)], None

    return LockStep(sample, seeds=seeds)


def stream_of(
    model: PreTrainedModel, seeds: list[int] | None, tails: list[Tail] | None = None, **settings
) -> TransformersStream:
    limits = {name: settings.pop(name) for name in ("token_budget", "most_rows") if name in settings}
    limits |= {"temperature": settings.get("temperature", 1.0), "device": torch.device("cpu")}
    sampling = sampling_of(model, GenerationConfig(**{**GENERATION, **settings}), [END])
    assert isinstance(sampling, Sampling)
    return TransformersStream(model, sampling, seeds, tails=tails, **{"token_budget": 2**16, **limits})


def tails_of(contexts: list[list[int]]) -> list[Tail]:
    """The tail of each context, the same for all rollouts of a prompt."""
    made = {tuple(context): tokens(random.Random(len(context)), 4) for context in contexts}
    gold = {False: [False, True, False, True], True: [True, False, False, True]}
    return [Tail(made[tuple(context)], gold[len(context) > 10]) for context in contexts]


def plain(model: PreTrainedModel, context: list[int], tail: Tail, temperature: float = 1.0) -> float:
    ids = torch.tensor([[*context, *tail.ids]])
    with torch.no_grad():
        logps = (model(input_ids=ids).logits[0].float() / temperature).log_softmax(dim=-1)
    places = [len(context) + i for i, gold in enumerate(tail.gold) if gold]
    return sum(logps[place - 1, ids[0, place]].item() for place in places)


# ---- the same tokens and scores


@pytest.mark.parametrize("name", KEPT)
def test_tokens_and_scores_equal_whole_contexts_in_any_order_of_results(name):
    model, contexts, seeds = make(name), prompts(), list(range(6))
    expected = play(by_generate(model, seeds), contexts)
    assert len({len(context) for context in expected}) > 3
    tails = tails_of(contexts)
    for hold_back in (lambda key: False, lambda key: key % 2 == 1, lambda key: key in (0, 4)):
        stream = stream_of(model, seeds, tails)
        assert play(stream, contexts, hold_back) == expected
        for key, scores in stream.scores.items():
            assert len(scores) == TURNS
            for length, score in scores.items():
                assert score.total == pytest.approx(plain(model, expected[key][:length], tails[key]), abs=1e-4)
                assert score.tokens == 2


@pytest.mark.parametrize("settings", [{"temperature": 0.6}, {"top_k": 20, "top_p": 0.8}, {"do_sample": False}])
def test_tokens_are_drawn_by_the_settings_of_generate(settings):
    model, contexts, seeds = make("qwen3"), prompts(), list(range(6))
    assert play(stream_of(model, seeds, **settings), contexts) == play(by_generate(model, seeds, **settings), contexts)


def test_scores_are_taken_at_the_temperature():
    model, contexts = make("llama"), prompts()
    tails = tails_of(contexts)
    stream = stream_of(model, list(range(6)), tails, temperature=0.5)
    ended = play(stream, contexts)
    for length, score in stream.scores[3].items():
        assert score.total == pytest.approx(plain(model, ended[3][:length], tails[3], 0.5), abs=1e-4)


def test_a_tail_that_does_not_fit_in_the_context_is_not_scored():
    model, contexts = make("llama"), prompts()
    tails, seeds = tails_of(contexts), list(range(6))
    whole = stream_of(model, seeds, tails)
    play(whole, contexts)
    lengths = sorted(whole.scores[3])
    model.config.max_position_embeddings = lengths[1] + len(tails[3].ids) - 1
    short = stream_of(model, seeds, tails)
    play(short, contexts)
    assert sorted(short.scores[3]) == lengths[:2] and len(lengths) > 2


def test_without_seeds_tokens_come_from_the_global_random_state():
    model, contexts = make("qwen3"), prompts()
    torch.manual_seed(3)
    first = play(stream_of(model, None), contexts)
    torch.manual_seed(3)
    assert play(stream_of(model, None), contexts) == first
    assert play(stream_of(model, None), contexts) != first


def test_weights_that_have_diverged_are_named():
    model = make("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = torch.nan
    with pytest.raises(RuntimeError, match="weights .* have diverged"):
        play(stream_of(model, list(range(6))), prompts())


# ---- less work, bounded memory


class Watched:
    """The tokens (rows x columns) of each forward of a model."""

    def __init__(self, model: PreTrainedModel):
        self.shapes: list[tuple[int, int]] = []
        self._handle = model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, _, args, kwargs) -> None:
        self.shapes.append(tuple(kwargs["input_ids"].shape))


def test_prompts_are_read_once_a_group_and_nothing_is_read_twice():
    model, contexts = make("qwen3"), prompts()
    watched = Watched(model)
    ended = play(stream_of(model, list(range(6))), contexts)
    read = sum(rows * columns for rows, columns in watched.shapes if columns > 1)
    # All tool results and the token that ended each turn; padding and single tokens come on top.
    answered = sum(len(result(key, turn)) + 1 for key in range(6) for turn in range(1, TURNS))
    assert watched.shapes[0] == (3, max(map(len, contexts)))  # each of the six prompts occurs twice
    assert read < 3 * max(map(len, contexts)) + 3 * answered
    assert read < sum(map(len, ended))


def test_rows_whose_turn_has_ended_leave_the_batch():
    model, contexts = make("qwen3"), prompts()
    watched = Watched(model)
    stream = stream_of(model, list(range(6)))
    for key, context in enumerate(contexts):
        stream.submit(key, context, 1 if key < 5 else 9)  # one babbles
    while stream.has_work():
        stream.collect()
    assert [shape for shape in watched.shapes[1:]] == [(1, 1)] * (len(watched.shapes) - 1)


@pytest.mark.parametrize("budget", [1, 60, 120, 250])
def test_cached_columns_are_bounded_and_evicted_rows_are_read_again(budget):
    model, contexts, seeds = make("qwen3"), prompts(), list(range(6))
    expected = play(stream_of(model, seeds), contexts)
    stream = stream_of(model, seeds, token_budget=budget)
    held, at_once = [], []
    forward = stream._forward

    def watched(*args):
        held.append(stream.held)
        at_once.append(len(stream._live.turns))
        return forward(*args)

    stream._forward = watched
    assert play(stream, contexts, lambda key: key == 2) == expected
    assert all(number <= budget for number, rows in zip(held, at_once, strict=True) if rows > 1)
    assert (max(at_once) < 6) == (budget < 120)


def test_most_rows_bounds_the_rows_sampled_at_once():
    model, contexts, seeds = make("qwen3"), prompts(), list(range(6))
    stream = stream_of(model, seeds, most_rows=2)
    watched = Watched(model)
    assert play(stream, contexts) == play(stream_of(model, seeds), contexts)
    assert max(rows for rows, columns in watched.shapes[:20] if columns == 1) <= 2


def test_context_that_does_not_extend_the_cache_is_read_again():
    model = make("llama")
    stream = stream_of(model, [1])
    stream.submit(0, [5, 6, 7, 8])
    (first,) = stream.collect()
    other = [9, *first.ids, 11]
    stream.submit(0, other)
    (second,) = stream.collect()
    engine = by_generate(model, [1])
    engine.submit(0, [5, 6, 7, 8])
    engine.collect()
    engine.submit(0, other)
    assert engine.collect()[0].ids == second.ids


# ---- where contexts are not kept


@pytest.mark.parametrize("name", [*tiny.UNPACKABLE, *DROPOUT])
def test_model_that_caches_more_than_keys_and_values_keeps_no_contexts(name):
    assert obstacle_to_keeping(tiny.architectures()[name]()) is not None


@pytest.mark.parametrize("name", KEPT)
def test_the_trial_agrees_with_whole_contexts(name):
    assert obstacle_to_keeping(tiny.architectures()[name]()) is None
    assert keeping_error(tiny.architectures()[name](), torch.device("cpu")) < 1e-5


def test_the_trial_finds_a_model_that_ignores_positions():
    model = tiny.architectures()["llama"]()
    model.register_forward_pre_hook(lambda _, args, kwargs: (args, {**kwargs, "position_ids": None}), with_kwargs=True)
    assert keeping_error(model, torch.device("cpu")) > 1e-2


def test_model_with_its_own_generate_keeps_no_contexts():
    model = tiny.architectures()["llama"]()
    model.generate = lambda **_: None
    assert obstacle_to_keeping(model) == "it has its own `generate`"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"repetition_penalty": 1.2}, "RepetitionPenalty"),
        ({"min_new_tokens": 3}, "MinNewTokens"),
        ({"no_repeat_ngram_size": 2}, "NoRepeatNGram"),
        ({"num_beams": 2}, "num_beams=2"),
        ({"stop_strings": ["x"]}, "stop_strings"),
        ({"use_cache": False}, "use_cache=False"),
        ({"cache_implementation": "static"}, "cache_implementation"),
    ],
)
def test_settings_that_look_at_more_than_the_next_token_are_left_to_generate(settings, named):
    found = sampling_of(make("llama"), GenerationConfig(**{**GENERATION, **settings}), [END])
    assert isinstance(found, str) and named in found


# ---- in the trainer


def trained(folder, trainer: type = A2TGPOTrainer, **changes) -> SimpleNamespace:
    """Two steps of the tiny policy that searches: the trainer, its records and its log."""
    task = atlas(test_questions=3)
    settings = {
        **{"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True},
        **{"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 256, "max_steps": 2},
        **{"learning_rate": 5e-4, "logging_steps": 1, "chat_template_kwargs": {"enable_thinking": False}, **changes},
    }
    keywords = {"peft_config": settings.pop("peft_config", None)}
    made = trainer(
        str(POLICY),
        task.reward_funcs,
        trainer.config_class(str(folder), **settings),
        task.train_dataset,
        tools=task.tools,
        **keywords,
    )
    records: list = []
    made.on_rollouts = records.extend
    made.train()
    return SimpleNamespace(trainer=made, records=records, log=[e for e in made.state.log_history if "loss" in e])


@pytest.mark.parametrize("adapter", [False, True])
def test_a_run_is_the_same_whether_contexts_are_kept_or_read_again(tmp_path, adapter):
    changes = {"temperature": 0.7}
    if adapter:
        changes["peft_config"] = LoraConfig(r=4, target_modules="all-linear")
    kept, again = (trained(tmp_path / str(streams), stream_turns=streams, **changes) for streams in (True, False))
    assert [record["completion"] for record in kept.records] == [record["completion"] for record in again.records]
    gains = [gain for record in kept.records for gain in record["gains"]]
    assert gains == pytest.approx([gain for record in again.records for gain in record["gains"]], abs=1e-4)
    assert len(gains) > 20
    for one, other in zip(kept.log, again.log, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert one["gain/forwards"] == 0 < other["gain/forwards"]


def test_an_added_end_token_ends_turns_alike_in_both_engines(tmp_path):
    # Rows that end early are padded by `generate`; padding is no part of a turn.
    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "</tool_call>"])
    changes = {"generation_kwargs": {"eos_token_id": ends}, "max_steps": 1, "mask_truncated_completions": True}
    kept, again = (trained(tmp_path / str(streams), stream_turns=streams, **changes) for streams in (True, False))
    lengths = [[[turn["tokens_out"] for turn in record["turns"]] for record in one.records] for one in (kept, again)]
    assert lengths[0] == lengths[1] and len({length for row in lengths[0] for length in row}) > 2
    for name in ("completions/clipped_ratio", "completions/mean_length", "loss"):
        assert kept.log[0][name] == pytest.approx(again.log[0][name], abs=1e-4)
    assert kept.trainer._keeps_contexts and not again.trainer._keeps_contexts


@pytest.mark.parametrize("changes", [{"num_iterations": 2}, {"answer_aliases": "max"}])
def test_gain_pass_runs_only_if_it_finds_more_than_sampling(tmp_path, changes):
    found = trained(tmp_path, max_steps=1, **changes)
    expected = 0 if changes.get("answer_aliases") else 1  # one alias each: nothing more to find
    assert (found.log[0]["gain/forwards"] > 0) == expected


def test_training_without_credit_keeps_contexts_too(tmp_path):
    kept, again = (trained(tmp_path / str(on), ToolTrainer, stream_turns=on, max_steps=1) for on in (True, False))
    assert [record["completion"] for record in kept.records] == [record["completion"] for record in again.records]
    assert kept.trainer._keeps_contexts and not again.trainer._keeps_contexts


def test_evaluation_with_kept_contexts_gives_the_same_completions(tmp_path):
    trainer = trained(tmp_path, max_steps=1).trainer
    rows = atlas(test_questions=3).test_dataset.to_list()
    records = trainer.roll_out(rows)
    trainer.args.stream_turns = False
    del trainer.__dict__["_keeps_contexts"]
    assert [one["completion"] for one in trainer.roll_out(rows)] == [one["completion"] for one in records]


def test_a_policy_whose_kept_contexts_are_wrong_is_sampled_by_generate(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("a2tgpo_trl.rollout.sampling.keeping_error", lambda *_: float("nan"))
    found = trained(tmp_path, max_steps=1)
    assert not found.trainer._keeps_contexts and found.log[0]["gain/forwards"] > 0


@pytest.mark.parametrize("sixteen", [{"model_init_kwargs": {"dtype": "bfloat16"}}, {"bf16": True}], ids=str)
def test_in_16_bits_contexts_are_kept_and_values_come_from_the_pass(tmp_path, sixteen):
    found = trained(tmp_path, max_steps=1, **sixteen)
    assert found.trainer._keeps_contexts and found.log[0]["gain/forwards"] > 0
