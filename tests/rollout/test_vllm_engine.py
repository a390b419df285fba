"""Streaming from vLLM gives what TRL's `generate` gives, rollout by rollout, from the current weights.

Tests marked `vllm` need vLLM, and fail without it; its CPU build is enough. Sleep mode has no CPU backend, so vLLM
refuses it there: a stand-in sets the real engine's weights to NaN, because sleep discards them, and fails if the
engine is used while it sleeps.
"""

import math
import sys
from contextlib import contextmanager
from dataclasses import replace
from types import MethodType, SimpleNamespace

import pytest
import stream
import tiny
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from vllm_on_cpu import keep_weights

from a2tgpo_trl.rollout.rollout import Rollout
from a2tgpo_trl.rollout.trainer import ToolTrainer
from a2tgpo_trl.rollout.vllm_engine import VLLMStream, sampled_logprobs


LONGEST = 24  # tokens of a completion
TEXTS = ["question", "the capital of France is " * 3, "search", "user question answer " * 9, "Paris France"]


@contextmanager
def awake(trainer):
    """Hold the vLLM of TRL's trainer ready, as `ToolTrainer` does."""
    trainer._push_weights = MethodType(ToolTrainer._push_weights, trainer)
    with ToolTrainer._awake(trainer):
        yield


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("policy"))
    tokenizer = tiny.make_tokenizer()
    tiny.make_model(tokenizer, head_dim=32).save_pretrained(folder)  # on CPU, vLLM has no attention for smaller heads
    tokenizer.save_pretrained(folder)
    args = GRPOConfig(
        folder,
        use_cpu=True,
        bf16=False,
        use_vllm=True,
        vllm_mode="colocate",
        vllm_max_model_length=512,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=LONGEST,
        report_to="none",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_CPU_CI_ENV", "1")  # no compiling, which takes longer than all tests together
        # On CPUs vLLM 0.31 inspects the objects of all modules, and fails on one of llvmlite, which bm25s loads for
        # other tests.
        patch.delitem(sys.modules, "llvmlite.binding.ffi", raising=False)
        keep_weights()
        yield GRPOTrainer(
            folder,
            lambda completions, **_: [0.0] * len(completions),
            args,
            train_dataset=Dataset.from_dict({"prompt": TEXTS}),
            processing_class=tokenizer,
        )


@pytest.fixture
def generation(trainer, monkeypatch):
    """TRL's side of a vLLM that has the policy's weights, and samples greedily unless a test changes that."""
    with awake(trainer):
        pass
    monkeypatch.setattr(trainer.vllm_generation, "temperature", 0.0)
    return trainer.vllm_generation


@pytest.fixture
def contexts(trainer):
    return [trainer.processing_class(text)["input_ids"] for text in TEXTS]


def stream_all(generation, contexts) -> tuple[list[list[int]], list[list[float | None]]]:
    with VLLMStream(generation) as engine:
        for key, context in enumerate(contexts):
            engine.submit(key, context)
        samples = {}
        while engine.has_work():
            samples.update({sample.key: sample for sample in engine.collect()})
    rows = [samples[key] for key in range(len(contexts))]
    return [sample.ids for sample in rows], [sample.logprobs for sample in rows]


def numbers(logprobs) -> torch.Tensor:
    return torch.tensor([number for row in logprobs for number in row])


def turn(trainer, contexts):
    """A turn as TRL samples it."""
    return trainer._generate_single_turn(contexts, None, {}, 1)


# ---- the same as TRL


@pytest.mark.vllm
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 1.3, "top_p": 0.9, "min_p": 0.01, "generation_kwargs": {"seed": 5}},
        {"temperature": 0.7, "top_k": 7, "repetition_penalty": 1.2, "generation_kwargs": {"seed": 6}},
    ],
    ids=["greedy", "seeded", "penalised"],
)
def test_a_stream_gives_the_tokens_and_log_probabilities_that_trl_gives(
    trainer, generation, contexts, changes, monkeypatch
):
    for name, value in changes.items():
        monkeypatch.setattr(generation, name, value)
    ids, logprobs = stream_all(generation, contexts)
    expected_ids, expected_logprobs = turn(trainer, contexts)
    assert ids == expected_ids
    assert len({len(context) for context in contexts}) > 3
    # vLLM runs the model in bfloat16, and rows that are computed together may round differently.
    torch.testing.assert_close(numbers(logprobs), numbers(expected_logprobs), atol=0.02, rtol=0)
    assert all(type(number) is float for row in logprobs for number in row)


@pytest.mark.vllm
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.3, "top_p": 0.8, "top_k": 5, "min_p": None, "repetition_penalty": 1.1},
        {"max_completion_length": 7, "generation_kwargs": {"seed": 1, "stop": ["a"], "frequency_penalty": 0.5}},
        {"structured_outputs_regex": "[a-z]+"},
        {"generation_kwargs": {"structured_outputs": {"regex": "[0-9]+"}, "max_tokens": 3}},
    ],
)
def test_vllm_is_given_the_requests_that_trl_gives_it(generation, contexts, changes, monkeypatch):
    core = generation.llm.llm_engine.engine_core
    requests = []
    add = core.add_request
    monkeypatch.setattr(core, "add_request", lambda request: (requests.append(request), add(request)))
    for name, value in changes.items():
        monkeypatch.setattr(generation, name, value)
    generation.generate(contexts, None, 1)
    stream_all(generation, contexts)
    by_trl, by_stream = requests[: len(contexts)], requests[len(contexts) :]
    assert [request.sampling_params for request in by_stream] == [request.sampling_params for request in by_trl]
    assert [request.prompt_token_ids for request in by_stream] == contexts
    assert [request.prompt_token_ids for request in by_trl] == contexts


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"temperature": 1.0, "generation_kwargs": {"n": 2}}, "n=2"),
        ({"mode": "server"}, "vllm_mode='server'"),
        ({"tensor_parallel_size": 2}, "vllm_tensor_parallel_size=2"),
    ],
)
def test_settings_that_cannot_be_streamed_raise_with_the_reason(generation, changes, named, monkeypatch):
    for name, value in changes.items():
        monkeypatch.setattr(generation, name, value)
    with pytest.raises(ValueError, match=named):
        VLLMStream(generation)


@pytest.mark.vllm
def test_context_without_room_raises_like_trl_and_the_stream_stays_usable(generation, contexts):
    long = [5] * 600  # the limit is 512
    with pytest.raises(Exception, match="512") as theirs:
        generation.generate([long], None, 1)
    with VLLMStream(generation) as engine:
        with pytest.raises(theirs.type, match="512"):
            engine.submit(0, long)
        engine.submit(0, contexts[0])
        assert [sample.key for sample in engine.collect()] == [0]


def test_sampled_logprob_is_that_of_the_token_and_none_for_nan():
    # Two tokens, one with its best alternative as well; TRL's settings ask only for the sampled one.
    found = [{3: -2.0, 8: -0.5}, {4: float("nan")}]
    rows = [{token: SimpleNamespace(logprob=number) for token, number in row.items()} for row in found]
    assert sampled_logprobs(SimpleNamespace(token_ids=[3, 4], logprobs=rows)) == [-2.0, None]
    assert sampled_logprobs(SimpleNamespace(token_ids=[3, 4], logprobs=None)) is None


# ---- the stream


@pytest.mark.vllm
def test_a_short_turn_comes_before_a_long_one_and_new_work_joins_in(generation, contexts):
    (alone,), _ = stream_all(generation, contexts[:1])
    assert len(alone) == LONGEST
    with VLLMStream(generation) as engine:
        engine.submit(0, contexts[0])
        engine.submit(1, contexts[1], max_tokens=3)
        assert [(sample.key, len(sample.ids)) for sample in engine.collect()] == [(1, 3)]
        engine.submit(2, contexts[2], max_tokens=5)
        engine.submit(1, contexts[1], max_tokens=2)  # the rollout's next turn
        assert [(sample.key, len(sample.ids)) for sample in engine.collect()] == [(1, 2)]
        assert [(sample.key, len(sample.ids)) for sample in engine.collect()] == [(2, 5)]
        (last,) = engine.collect()
        assert not engine.has_work()
        assert engine.collect() == []
    # The requests that came and went did not change it.
    assert last.key == 0 and last.ids == alone


@pytest.mark.vllm
def test_stop_tokens_end_a_turn_before_others(generation, contexts, monkeypatch):
    whole, _ = stream_all(generation, contexts)
    stop = whole[0][2]
    monkeypatch.setattr(generation, "generation_kwargs", {"stop_token_ids": [stop]})
    ends = [row.index(stop) + 1 if stop in row else LONGEST for row in whole]
    assert ends[0] <= 3 and max(ends) > 3
    with VLLMStream(generation) as engine:
        for key, context in enumerate(contexts):
            engine.submit(key, context)
        order = []
        while engine.has_work():
            order += engine.collect()
    assert [len(sample.ids) for sample in order] == sorted(ends)
    assert {sample.key: sample.ids for sample in order} == {
        key: row[:end] for key, (row, end) in enumerate(zip(whole, ends, strict=True))
    }


@pytest.mark.vllm
def test_without_waiting_the_engine_makes_one_step_at_most(generation, contexts, monkeypatch):
    llm, steps = generation.llm.llm_engine, []
    step = llm.step
    monkeypatch.setattr(llm, "step", lambda: (steps.append(1), step())[1])
    with VLLMStream(generation) as engine:
        assert engine.collect(wait=False) == [] and steps == []
        engine.submit(0, contexts[0], max_tokens=3)
        found = [engine.collect(wait=False) for _ in range(3)]
    assert [len(samples) for samples in found] == [0, 0, 1] and len(steps) == 3


# ---- cleaning up


@pytest.mark.vllm
def test_exception_leaves_no_pending_requests_for_the_next_batch(generation, contexts):
    llm = generation.llm.llm_engine
    before = stream_all(generation, contexts)[0]
    with pytest.raises(ConnectionError), VLLMStream(generation) as engine:
        for key, context in enumerate(contexts):
            engine.submit(key, context)
        engine.collect(wait=False)
        assert not llm.reset_prefix_cache()  # a request left behind would keep old values cached for new weights
        with pytest.raises(RuntimeError, match="earlier batch"):
            VLLMStream(generation)
        raise ConnectionError("a tool's server is gone")
    assert not llm.has_unfinished_requests() and not engine.has_work()
    assert llm.reset_prefix_cache()
    assert stream_all(generation, contexts)[0] == before


@pytest.mark.vllm
def test_failed_step_does_not_affect_the_next_batch(generation, contexts, monkeypatch):
    before = stream_all(generation, contexts)[0]
    with pytest.raises(MemoryError), VLLMStream(generation) as engine, pytest.MonkeyPatch.context() as patch:
        for key, context in enumerate(contexts):
            engine.submit(key, context)
        engine.collect(wait=False)
        patch.setattr(generation.llm.llm_engine.model_executor, "execute_model", raising(MemoryError("no room")))
        engine.collect()
    assert stream_all(generation, contexts)[0] == before


def raising(error):
    def fail(*_, **__):
        raise error

    return fail


# ---- weights


@contextmanager
def other_weights(trainer):
    """Give the policy other weights for a while, as after an update."""
    was = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    other = tiny.make_model(trainer.processing_class, seed=1, head_dim=32)
    trainer.model.load_state_dict(other.state_dict())
    trainer.state.global_step += 1
    try:
        yield
    finally:
        trainer.model.load_state_dict(was)
        trainer.state.global_step += 1


@pytest.mark.vllm
def test_awake_stream_samples_from_the_current_weights(trainer, generation, contexts):
    old = stream_all(generation, contexts)[0]
    with other_weights(trainer):
        assert stream_all(generation, contexts)[0] == old  # vLLM has not been told
        with awake(trainer):
            new = stream_all(generation, contexts)[0]
        assert all(one != other for one, other in zip(new, old, strict=True))
        assert new == turn(trainer, contexts)[0]
    with awake(trainer):
        assert stream_all(generation, contexts)[0] == old


class SleepingLLM:
    """The real `LLM` with a simulated sleep: level 2 spoils the weights, and parts that sleep cannot be used."""

    def __init__(self, llm):
        self._llm, self.asleep, self.calls = llm, {"weights", "kv_cache"}, []

    def __getattr__(self, name):
        if name in ("generate", "llm_engine"):
            needed = {"weights"} if name == "llm_engine" else {"weights", "kv_cache"}
            assert not needed & self.asleep, f"{name} while {self.asleep} sleep"
        return getattr(self._llm, name)

    def sleep(self, level):
        assert level == 2 and not self._llm.llm_engine.has_unfinished_requests()
        for tensor in self._llm.llm_engine.model_executor.driver_worker.model_runner.model.parameters():
            tensor.data.fill_(torch.nan)
        self.asleep = {"weights", "kv_cache"}
        self.calls.append("sleep")

    def wake_up(self, tags):
        self.asleep -= set(tags)
        self.calls.append(tags)


@pytest.fixture
def sleepy(trainer, generation, monkeypatch):
    """`generation` with sleep mode, asleep as TRL leaves it; restored at the end."""
    monkeypatch.setattr(generation, "llm", SleepingLLM(generation.llm))
    monkeypatch.setattr(generation, "enable_sleep_mode", True)
    monkeypatch.setattr(generation, "_llm_weights_sleeping", True)
    yield generation
    trainer._last_loaded_step = -1  # its weights are spoilt


@pytest.mark.vllm
def test_vllm_has_no_sleep_mode_on_cpu():
    # If this fails, the stand-in can be removed.
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("not a CPU")
    assert not current_platform.is_sleep_mode_available()


@pytest.mark.vllm
def test_awake_wakes_once_for_all_turns_where_trl_wakes_at_each(trainer, contexts, generation, sleepy):
    llm = sleepy.llm
    first, second = turn(trainer, contexts), turn(trainer, contexts)  # the control
    assert llm.calls == [["weights"], ["kv_cache"], "sleep"] * 2
    assert first == second
    expected, logprobs = first
    assert numbers(logprobs).isfinite().all()
    llm.calls.clear()
    with awake(trainer):
        assert stream_all(sleepy, contexts)[0] == expected
        assert turn(trainer, contexts)[0] == expected  # a lock-step engine benefits as well
        with awake(trainer):
            assert stream_all(sleepy, contexts)[0] == expected
        assert llm.calls == [["weights"], ["kv_cache"]]
    assert llm.calls == [["weights"], ["kv_cache"], "sleep"]
    assert sleepy.enable_sleep_mode and sleepy._llm_weights_sleeping
    assert turn(trainer, contexts)[0] == expected  # TRL finds vLLM as it left it


@pytest.mark.vllm
def test_awake_goes_to_sleep_after_an_exception_too(trainer, contexts, sleepy):
    with pytest.raises(ConnectionError), awake(trainer), VLLMStream(sleepy) as engine:
        engine.submit(0, contexts[0])
        engine.collect(wait=False)
        raise ConnectionError("a tool's server is gone")
    assert sleepy.llm.asleep == {"weights", "kv_cache"}
    assert sleepy.enable_sleep_mode and sleepy._llm_weights_sleeping


def test_awake_leaves_a_trainer_without_colocated_vllm_alone():
    # Neither has the attributes that anything beyond a look at the mode would need.
    for trainer in (SimpleNamespace(use_vllm=False), SimpleNamespace(use_vllm=True, vllm_mode="server")):
        before = dict(vars(trainer))
        with ToolTrainer._awake(trainer):
            assert vars(trainer) == before


# ---- the bench


@pytest.mark.vllm
def test_stream_bench_needs_fewer_steps_without_the_barrier(generation, monkeypatch):
    monkeypatch.setattr(generation, "generation_kwargs", {"ignore_eos": True})
    # With the barrier, 8 + 8 steps: each turn takes as long as its longest. Without it, each rollout samples 8 + 1; a
    # tool's answer may come a few steps late.
    work = stream.Work([[5, 6]] * 2, [[8, 1], [1, 8]], [[0.0]] * 2, [[[7]]] * 2)
    monkeypatch.setattr(stream, "make_work", lambda *_: work)
    load = stream.Load(2, 2, 4, LONGEST, 0.0, 1.0, 2, 1)
    found = stream.measure(generation, load, repeats=1, seed=0)
    assert found.tokens == 18
    assert found.steps["together"] == 16
    assert 9 <= found.steps["stream"] < 14


def test_the_work_of_the_bench_is_drawn_from_its_seed_within_its_bounds():
    load = stream.Load(200, 3, 10, 30, 0.1, 1.0, 4, 2)
    work = stream.make_work(load, 50, 0)
    assert work == stream.make_work(load, 50, 0) != stream.make_work(load, 50, 1)
    lengths = sorted(length for row in work.lengths for length in row)
    assert lengths[0] >= 1 and lengths[-1] == 30
    assert lengths[len(lengths) // 2] == pytest.approx(10, abs=2)
    assert all(
        len(seconds) == len(results) == 2 for seconds, results in zip(work.tool_seconds, work.results, strict=True)
    )
    assert load.context == 4 + 3 * 30 + 2 * 2
    with pytest.raises(ValueError, match="--longest 5"):
        stream.Load(2, 2, 10, 5, 0.1, 1.0, 4, 2)


# ---- our trainer


@pytest.mark.vllm
@pytest.mark.parametrize("streams", [True, False])
def test_our_trainer_rolls_turns_out_through_vllm_and_learns(trainer, streams, tmp_path, monkeypatch):
    from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer

    # A process has one engine: our trainer takes over the existing one, with its policy.
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", lambda **_: trainer.vllm_generation)
    made = []
    monkeypatch.setattr(VLLMStream, "submit", spied(VLLMStream.submit, made))
    args = A2TGPOConfig(
        str(tmp_path),
        use_cpu=True,
        bf16=False,
        use_vllm=True,
        vllm_mode="colocate",
        vllm_max_model_length=512,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=300,
        max_steps=2,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        stream_turns=streams,
        vllm_importance_sampling_correction=True,
        learning_rate=1e-3,
        max_tool_calling_iterations=2,
    )
    ours = A2TGPOTrainer(
        trainer.model,
        lambda completions, **_: [float(len(c[0]["content"]) % 3) for c in completions],
        args,
        Dataset.from_dict(
            {"prompt": [[{"role": "user", "content": text}] for text in TEXTS], "answer": ["Paris"] * 5}
        ),
        processing_class=trainer.processing_class,
        tools=[tiny.search],
    )
    # A policy of random weights calls no tool: every turn is taken for a call until there is one result.
    parse = ours._tool_loop._parser.parse

    def calling(ids, prefix, tools):
        parsed = parse(ids, prefix, tools)
        asked = "<tool_response>" in trainer.processing_class.decode(prefix)
        wanted = {"function": {"name": "search", "arguments": {"query": "x"}}, "type": "function"}
        return replace(parsed, message={**parsed.message, "tool_calls": [] if asked else [wanted]}, unread=0)

    ours._tool_loop._parser.parse = calling
    # It does not end turns either: a turn that the engine cut after 20 tokens is taken for ended.
    monkeypatch.setattr(trainer.vllm_generation, "max_completion_length", 20)
    monkeypatch.setattr(Rollout, "_ends", lambda self, ids: True)
    records = []
    ours.on_rollouts = records.extend
    ours.train()
    assert len(records) == 8 and bool(made) == streams
    assert all(record["turns"][0]["calls"][0]["result"] == "The x is Paris." for record in records)
    assert all(len(record["turns"]) == 2 for record in records)
    logs = [entry for entry in ours.state.log_history if "loss" in entry]
    assert all(math.isfinite(entry["loss"]) for entry in logs)
    # vLLM and the policy give the samples equal log-probabilities, up to the rounding of bfloat16.
    assert all(entry["sampling/sampling_logp_difference/mean"] < 0.2 for entry in logs)


def spied(method, calls):
    def submit(self, *args, **kwargs):
        calls.append(args)
        return method(self, *args, **kwargs)

    return submit
