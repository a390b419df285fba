"""Sampling by vLLM: contexts -> requests to the vLLM of this process -> samples, each as soon as it is finished.

    with awake(generation, push, stale=False), VLLMStream(generation) as engine:
        submit(key, context) ... collect() -> [Sample], until has_work() is False

TRL's `generate` returns when its longest completion is finished. Here the same requests, with the same settings, go to
the same vLLM one by one, so a rollout whose sample is finished goes on while others are sampled. `awake` does once for
all turns of a batch what TRL does around each `generate` (pushing weights after an update, sleeping between calls).

What a user should know. `use_vllm: true` samples with vLLM, in the trainer's process (`vllm_mode: colocate`) or on a
server, as in TRL:

    use_vllm: true
    vllm_importance_sampling_mode: token_truncate        # set it, unless rollouts have only a few tokens
    vllm_max_model_length: 8192                          # prompt and completion
    vllm_enable_sleep_mode: true                         # colocate: its memory is free while the policy is trained

    CUDA_VISIBLE_DEVICES=4,5,6,7 trl vllm-serve --model MODEL --tensor_parallel_size 4 --max_model_len 14384
    CUDA_VISIBLE_DEVICES=0,1,2,3 a2tgpo train RECIPE --config_file zero3 --num_processes 4 --use_vllm true \\
        --vllm_mode server --vllm_server_base_url http://localhost:8000

vLLM rounds differently from the trainer. Importance weights correct for this (`vllm_importance_sampling_correction`,
on by default). By default a rollout has one weight, the product over its tokens, and is left out if the weight is
above 3; with `token_truncate` each token has its own, capped at 3. The weights are right as long as both sides know
how tokens were drawn: the trainer knows `temperature`, but not `top_p`, `top_k`, `min_p`, penalties or whatever else
`generation_kwargs` holds. With these, a rollout's weight goes to zero as it gets longer, and a warning says so.

A server refuses requests that might not fit: set its `--max-model-len` to the longest prompt plus twice
`max_completion_length`, or rollouts end earlier, as context_full.

Tested with vLLM's build for CPUs: one and two processes, LoRA, tensor parallelism, a server. Not tested, because they
need GPUs: sleep mode, and sending weights to a server.
"""

import copy
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from ..errors import RunStopped
from ..ranks import Ranks
from .engines import ContextLimit, Engine, LogProbs, Sample, Seeds, context_of


if TYPE_CHECKING:
    from trl.generation.vllm_generation import VLLMGeneration
    from vllm import RequestOutput, SamplingParams


def can_stream(generation: "VLLMGeneration") -> bool:
    """Whether this rank can step its vLLM alone: it is in this process and shares its steps with no other rank."""
    return generation.mode == "colocate" and generation.tensor_parallel_size == 1


class VLLMStream(Engine):
    """Sends requests to the vLLM of this process, which samples them together with whatever else is pending.

    It is made for one batch of rollouts, with the sampling settings that TRL has at that moment. Leaving its context,
    or `close`, drops what is still pending.
    """

    lockstep = False

    def __init__(self, generation: "VLLMGeneration", seeds: Sequence[int] | None = None):
        from vllm.sampling_params import RequestOutputKind

        if not can_stream(generation):
            raise ValueError(
                f"Streaming needs a colocated vLLM with one GPU per rank; got vllm_mode={generation.mode!r} and "
                f"vllm_tensor_parallel_size={generation.tensor_parallel_size}. Let TRL generate all rollouts "
                "together."
            )
        self._llm = generation.llm.llm_engine
        if self._llm.has_unfinished_requests():
            raise RuntimeError(
                "vLLM still has requests of an earlier batch: the code that made them must end them first."
            )
        self.params = sampling_params(generation)
        self.params.output_kind = RequestOutputKind.FINAL_ONLY  # a step then returns finished requests, nothing else
        self._seeds = Seeds(seeds)
        self._pending: dict[str, int] = {}  # request -> rollout

    def __enter__(self) -> "VLLMStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, key: int, context: list[int], max_tokens: int | None = None) -> None:
        """Request the next turn of a rollout, of at most `max_tokens` if that is less than the settings allow."""
        name = str(key)
        assert name not in self._pending, f"rollout {key} has a request already"
        params, seed = self.params, self._seeds.next(key)
        if max_tokens is not None or seed is not None:
            params = params.clone()
            params.max_tokens = min(max_tokens or params.max_tokens, params.max_tokens)
            params.seed = params.seed if seed is None else seed
        (prompt,) = self._llm.renderer.render_cmpl([{"prompt_token_ids": context}])
        self._llm.add_request(name, prompt, params)
        self._pending[name] = key

    def has_work(self) -> bool:
        return bool(self._pending)

    def collect(self, *, wait: bool = True) -> list[Sample]:
        samples: list[Sample] = []
        while self._pending and not samples:
            assert self._llm.has_unfinished_requests(), "vLLM has lost requests"
            samples = [self._sample(output) for output in self._llm.step() if output.finished]
            if not wait:
                break
        return samples

    def _sample(self, output: "RequestOutput") -> Sample:
        (completion,) = output.outputs
        return Sample(self._pending.pop(output.request_id), list(completion.token_ids), sampled_logprobs(completion))

    def close(self) -> None:
        """Drop all pending requests.

        A request left behind would be sampled with the next batch, and while one holds its memory, vLLM does not
        drop what it computed with the weights from before the next update.
        """
        self._llm.abort_request(list(self._pending))
        self._pending.clear()


def sampled_logprobs(completion: Any) -> LogProbs | None:
    """One number for each sampled token, None where vLLM gave NaN; None instead of a list if none were requested."""
    if completion.logprobs is None:
        return None
    numbers = [found[token].logprob for token, found in zip(completion.token_ids, completion.logprobs, strict=True)]
    return [None if math.isnan(number) else number for number in numbers]


# ---- settings


class _StandIn:
    """Stands in for vLLM's `LLM`: samples nothing, keeps the settings that it is called with."""

    params: "SamplingParams"

    def generate(self, prompts: list, *, sampling_params: "SamplingParams", **_: Any) -> list:
        self.params = sampling_params
        return []


def sampling_params(generation: "VLLMGeneration") -> "SamplingParams":
    """The settings with which TRL's `generate` would sample now: it makes them itself, called without a prompt."""
    stand_in = _StandIn()
    twin = copy.copy(generation)
    twin.llm, twin.enable_sleep_mode = stand_in, False
    twin.generate([], None, 1)
    if stand_in.params.n != 1:
        raise ValueError(
            f"generation_kwargs asks for n={stand_in.params.n}, but a rollout needs one sample per turn. Leave out "
            "`n`; num_generations sets the number of rollouts per prompt."
        )
    return stand_in.params


def context_limit(generation: "VLLMGeneration | None", config: PreTrainedConfig, ranks: Ranks) -> ContextLimit:
    """Tokens that a rollout may have, and how many of them must be left for its next turn.

    A vLLM in this process samples until its context is full. A server refuses a request that might not fit, so room
    for a whole turn must be left; the first rank asks it, and all ranks take part. Without vLLM (`generation` None),
    the model's own limit counts.

    Example: a server that reads 8192 tokens, turns of up to 1024 -> (8192, 1024): a context of 7168 may be continued
    """
    if generation is None:
        return ContextLimit(context_of(config) or sys.maxsize)
    if generation.mode == "colocate":
        return ContextLimit(generation.llm.llm_engine.model_config.max_model_len)
    reads, error = 0, None
    if ranks.index == 0:
        try:
            reads = generation.vllm_client.get_server_info()["model_config"]["max_model_len"]
        except Exception as raised:  # told to all ranks, and raised by all
            error = f"The vLLM server did not report its context length: {raised!r}."
    error = ranks.first_text(error)
    if error is not None:
        raise RunStopped(error)
    reads = ranks.max(reads)
    turn = generation.generation_kwargs.get("max_tokens", generation.max_completion_length)
    if turn >= reads:
        raise ValueError(
            f"The vLLM server has a context length of {reads} tokens, and a turn may have {turn} "
            "(max_completion_length), so it would refuse every request. Start it with a --max-model-len of at least "
            "the longest prompt plus twice max_completion_length."
        )
    return ContextLimit(reads, turn)


# ---- weights and sleep


@contextmanager
def awake(generation: "VLLMGeneration", push: Callable[[], None], *, stale: bool) -> Iterator[None]:
    """Keep the vLLM of this process ready, with the policy's current weights, for all turns of a batch of rollouts.

    With sleep mode, TRL's `generate` ends with a sleep that throws the weights away, and pushes them again at its next
    call: once per turn. In here they are pushed once, and sleep comes at the end, also after an exception. Without
    sleep mode, this only pushes weights if vLLM's are older than the last update, as TRL does before it generates.

    Collective if weights are sharded: all ranks enter together.

    Args:
        generation: TRL's interface to vLLM.
        push: gives vLLM the policy's weights.
        stale: whether the weights that vLLM has are older.
    """
    sleeps = generation.enable_sleep_mode
    if stale or (sleeps and generation._llm_weights_sleeping):
        push()
    if not sleeps:
        yield
        return
    generation.llm.wake_up(tags=["kv_cache"])
    generation.enable_sleep_mode = False  # or the first `generate` in here would end with a sleep
    try:
        yield
    finally:
        generation.enable_sleep_mode = True
        generation.llm.sleep(level=2)
        generation._llm_weights_sleeping = True
