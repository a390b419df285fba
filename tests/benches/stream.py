"""random lengths and tool times -> seconds of the same rollouts with a barrier after each turn, and without.

    together   all rollouts sample a turn in one call of vLLM, then all wait for the slowest tool of the turn
    stream     each rollout asks for its next turn as soon as its own tool has answered

One vLLM serves both, with empty caches at the start of each run. Turns have the lengths that were drawn: the end token
ends nothing, and each request samples exactly that many tokens. Tools only sleep, all at the same time, like tools
that wait for a network; so with a barrier a turn's tools cost as much as the slowest of them, not their sum.
"""

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from a2tgpo_trl.cli.bench import add_numbers, show, table
from a2tgpo_trl.cli.machine import device_name
from a2tgpo_trl.rollout.vllm_engine import VLLMStream, sampling_params
from a2tgpo_trl.tasks.atlas import POLICY


if TYPE_CHECKING:
    from trl.generation.vllm_generation import VLLMGeneration


@dataclass(frozen=True)
class Load:
    """Sizes of a batch. Lengths of turns and times of tools are lognormal about their medians."""

    rollouts: int
    turns: int  # the answer turn included, after which no tool is called
    tokens: int  # median of a turn
    longest: int  # most tokens of a turn
    tool_seconds: float  # median of a call
    spread: float  # standard deviation of the logarithms: with 1, one in a hundred is ten times the median
    prompt_tokens: int
    result_tokens: int

    def __post_init__(self):
        if self.longest < self.tokens:
            raise ValueError(f"--longest {self.longest} cuts off more than half of the turns: --tokens {self.tokens}.")
        if not self.spread >= 0:
            raise ValueError(f"--spread {self.spread} must be at least 0.")

    @property
    def context(self) -> int:
        """The most tokens that a rollout can have."""
        return self.prompt_tokens + self.turns * self.longest + (self.turns - 1) * self.result_tokens


@dataclass(frozen=True)
class Work:
    """What each rollout does in each turn, drawn in advance and the same for both ways."""

    prompts: list[list[int]]
    lengths: list[list[int]]
    tool_seconds: list[list[float]]
    results: list[list[list[int]]]

    @property
    def tokens(self) -> int:
        return sum(map(sum, self.lengths))


def make_work(load: Load, vocabulary: int, seed: int) -> Work:
    draw = random.Random(seed)

    def times(median: float, number: int) -> list[float]:
        return [median * draw.lognormvariate(0, load.spread) for _ in range(number)]

    def tokens(number: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(number)]

    rollouts = range(load.rollouts)
    return Work(
        prompts=[tokens(load.prompt_tokens) for _ in rollouts],
        lengths=[[min(max(round(x), 1), load.longest) for x in times(load.tokens, load.turns)] for _ in rollouts],
        tool_seconds=[times(load.tool_seconds, load.turns - 1) for _ in rollouts],
        results=[[tokens(load.result_tokens) for _ in range(load.turns - 1)] for _ in rollouts],
    )


# ---- the two ways


def together(generation: "VLLMGeneration", work: Work, tools: ThreadPoolExecutor) -> list[list[int]]:
    """Roll out turn by turn; return the final contexts."""
    contexts = [list(prompt) for prompt in work.prompts]
    settings = sampling_params(generation)
    for turn in range(len(work.lengths[0])):
        limits = []
        for lengths in work.lengths:
            limits.append(settings.clone())
            limits[-1].max_tokens = lengths[turn]
        prompts = [{"prompt_token_ids": context} for context in contexts]
        outputs = generation.llm.generate(prompts, sampling_params=limits, use_tqdm=False)
        for context, output in zip(contexts, outputs, strict=True):
            context += output.outputs[0].token_ids
        if turn < len(work.results[0]):
            list(tools.map(time.sleep, [seconds[turn] for seconds in work.tool_seconds]))
            for context, results in zip(contexts, work.results, strict=True):
                context += results[turn]
    return contexts


def stream(generation: "VLLMGeneration", work: Work, tools: ThreadPoolExecutor) -> list[list[int]]:
    """Let each rollout run at its own pace; return the final contexts."""
    contexts = [list(prompt) for prompt in work.prompts]
    turns = [0] * len(contexts)
    called: dict[Future[None], int] = {}
    with VLLMStream(generation) as engine:
        for key, context in enumerate(contexts):
            engine.submit(key, context, max_tokens=work.lengths[key][0])
        while engine.has_work() or called:
            if called and not engine.has_work():
                wait(called, return_when=FIRST_COMPLETED)
            for call in [call for call in called if call.done()]:
                key = called.pop(call)
                contexts[key] += work.results[key][turns[key]]
                turns[key] += 1
                engine.submit(key, contexts[key], max_tokens=work.lengths[key][turns[key]])
            for sample in engine.collect(wait=not called):
                contexts[sample.key] += sample.ids
                if turns[sample.key] < len(work.results[sample.key]):
                    seconds = work.tool_seconds[sample.key][turns[sample.key]]
                    called[tools.submit(time.sleep, seconds)] = sample.key
    return contexts


WAYS = {"together": together, "stream": stream}


# ---- timing


@dataclass(frozen=True)
class StreamTimes:
    """Timings of both ways, by name. `least_tool_seconds` would remain if sampling took no time."""

    tokens: int
    timings: dict[str, list[float]]
    steps: dict[str, float]
    least_tool_seconds: dict[str, float]

    def seconds(self, way: str) -> float:
        return statistics.median(self.timings[way])

    @property
    def ratio(self) -> float:
        """Median ratio of neighbouring timings: anything that slows the machine for a while slows both."""
        return statistics.median(
            one / other for one, other in zip(self.timings["together"], self.timings["stream"], strict=True)
        )


def measure(generation: "VLLMGeneration", load: Load, *, repeats: int, seed: int) -> StreamTimes:
    """Run each way once to warm up, then time them alternately."""
    vocabulary = generation.llm.llm_engine.model_config.get_vocab_size()
    work = make_work(load, vocabulary, seed)
    timings: dict[str, list[float]] = {way: [] for way in WAYS}
    steps: dict[str, list[int]] = {way: [] for way in WAYS}
    with ThreadPoolExecutor(load.rollouts) as tools:
        for number in range(repeats + 1):
            for way, run in WAYS.items():
                seconds, made = _timed(run, generation, work, tools)
                if number > 0:
                    timings[way].append(seconds)
                    steps[way].append(made)
    return StreamTimes(
        tokens=work.tokens,
        timings=timings,
        steps={way: statistics.median(made) for way, made in steps.items()},
        least_tool_seconds={
            "together": sum(map(max, zip(*work.tool_seconds, strict=True))),
            "stream": max(map(sum, work.tool_seconds)),
        },
    )


def _timed(run: Callable, generation: "VLLMGeneration", work: Work, tools: ThreadPoolExecutor) -> tuple[float, int]:
    """Seconds, and the number of steps that vLLM made."""
    assert generation.llm.reset_prefix_cache()
    with _counted_steps(generation.llm.llm_engine) as steps:
        start = time.perf_counter()
        contexts = run(generation, work, tools)
        seconds = time.perf_counter() - start
    expected = [
        sum(map(len, (prompt, *results))) + sum(lengths)
        for prompt, results, lengths in zip(work.prompts, work.results, work.lengths, strict=True)
    ]
    assert [len(context) for context in contexts] == expected, "a turn has not the length that was asked for"
    return seconds, len(steps)


@contextmanager
def _counted_steps(llm_engine) -> Iterator[list[None]]:
    steps: list[None] = []
    step = llm_engine.step

    def counted():
        steps.append(None)
        return step()

    llm_engine.step = counted
    try:
        yield steps
    finally:
        llm_engine.step = step


# ---- model and machine


class _Named(nn.Module):
    """All that TRL needs to know of a policy to start vLLM: where vLLM finds the weights."""

    def __init__(self, name_or_path: str):
        super().__init__()
        self.name_or_path: str = name_or_path


def load_vllm(name: str | None, load: Load, memory: float) -> "VLLMGeneration":
    """vLLM as TRL makes it in colocate mode, with the shipped policy if no name is given."""
    from accelerate import Accelerator
    from trl.generation.vllm_generation import VLLMGeneration

    return VLLMGeneration(
        _Named(name or str(POLICY)),
        Accelerator(cpu=not torch.cuda.is_available()),
        None,
        max_model_length=load.context + 1,
        max_num_seqs=load.rollouts,
        gpu_memory_utilization=memory,
        max_completion_length=load.longest,
        generation_kwargs={"ignore_eos": True},
    )


def describe(generation: "VLLMGeneration", load: Load) -> Iterable[str]:
    """Everything about the machine, model and load that the numbers depend on."""
    import vllm

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = generation.llm.llm_engine.model_config
    text = config.hf_text_config
    yield f"{device_name(device)}; torch {torch.__version__}; vLLM {vllm.__version__}"
    yield (
        f"{config.hf_config.architectures[0]}, {text.num_hidden_layers} layers of {text.hidden_size}, vocabulary "
        f"{text.vocab_size}, {str(config.dtype).removeprefix('torch.')}"
    )
    tail = math.exp(2.33 * load.spread)
    yield (
        f"{load.rollouts} rollouts of {load.turns} turns; half of the turns have under {load.tokens} tokens and half "
        f"of the tools take under {load.tool_seconds:g} s, one in a hundred {tail:.1f} times as much or more "
        f"(turns end at {load.longest} tokens)"
    )


# ---- the program


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Times rollouts on a colocated vLLM, with and without a barrier.")
    parser.add_argument("--model", help="name or path of a model that vLLM can serve (default: the shipped policy)")
    numbers = (
        ("--rollouts", 1, 32, "rollouts in a batch"),
        ("--turns", 1, 4, "turns of a rollout, the answer turn included"),
        ("--tokens", 1, 32, "tokens of the median turn"),
        ("--longest", 1, 256, "tokens of a turn at most"),
        ("--tool-ms", 0, 200, "milliseconds of the median tool call"),
        ("--prompt-tokens", 1, 64, "tokens of a prompt"),
        ("--result-tokens", 1, 32, "tokens of a tool result"),
        ("--repeats", 1, 3, "timings of each way, in turns, after a warm-up"),
        ("--seed", 0, 0, "of lengths, times and tokens"),
    )
    add_numbers(parser, numbers)
    parser.add_argument("--spread", type=float, default=1.0, help="of the logarithms of lengths and times (default 1)")
    parser.add_argument("--memory", type=float, default=0.5, help="share of the GPU's memory for vLLM (default 0.5)")
    args = parser.parse_args(words)
    sizes = (args.tokens, args.longest, args.tool_ms / 1000, args.spread, args.prompt_tokens, args.result_tokens)
    load = Load(args.rollouts, args.turns, *sizes)
    generation = load_vllm(args.model, load, args.memory)
    show("\n".join(describe(generation, load)))
    found = measure(generation, load, repeats=args.repeats, seed=args.seed)
    lines = [
        [way, f"{found.seconds(way):.4g}", f"{found.steps[way]:.0f}", f"{found.least_tool_seconds[way]:.2f}"]
        for way in WAYS
    ]
    show(table(["way", "s", "vLLM\nsteps", "tools alone\ns"], lines))
    show(f"{found.tokens} tokens sampled; together / stream: {found.ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
