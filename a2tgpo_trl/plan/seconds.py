"""policy, setting, sharding, lengths, machine -> seconds of an optimiser step, by stage.

Operations are those that the model's code was seen to run; each takes max(flops / rate, bytes / bandwidth) and the
cost of an operation. vLLM's are not seen: a sampled token takes the reading of its weights and of its cache, or the
arithmetic, and a fixed time for its scheduler.
"""

import math
from dataclasses import dataclass

from .hardware import Machine
from .lengths import Lengths
from .memory import gain_rows
from .policy import Policy
from .setting import Setting
from .sharding import Sharding
from .tracing import Work


VLLM_STEP_SECONDS = 3e-3  # scheduler and sampler
VLLM_BYTES = 2  # of a weight and of a number in its cache
SYNC_SECONDS = 1e-3  # of one tensor that is handed to vLLM
VLLM_FREE = 0.9  # of its memory beside weights: the rest are activations and graphs
STAGES = (
    "sampling",
    "tools",
    "gain pass",
    "old log-probabilities",
    "reference log-probabilities",
    "loss and backward",
    "optimiser",
    "communication",
    "weight sync",
)


@dataclass(frozen=True)
class Case:
    """All that the seconds of a step depend on."""

    policy: Policy
    setting: Setting
    sharding: Sharding
    lengths: Lengths
    machine: Machine

    @property
    def row(self) -> int:
        return math.ceil(self.lengths.longest_row)

    @property
    def link(self) -> float:
        return self.sharding.link(self.machine.node_link, self.machine.cluster_link)

    @property
    def weights(self) -> float:
        """Bytes of all weights as they are gathered."""
        return self.policy.parameters.all * self.setting.compute_bytes


def plan_seconds(case: Case) -> dict[str, float]:
    """Seconds of an optimiser step by stage, of those that there are."""
    setting, machine, policy = case.setting, case.machine, case.policy
    per_step = setting.generations
    accumulating = setting.micro_batches > 1 or case.sharding.kind != "none"
    micro_batch = machine.seconds(policy.learn(setting.rows, case.row, accumulating))
    scoring = machine.seconds(policy.score(setting.rows, case.row)) * setting.generated / setting.rows * per_step
    found = {
        "sampling": _sampling(case) * per_step,
        "tools": _tools(case) * per_step,
        "gain pass": _gain(case) * per_step if setting.gain else 0.0,
        "old log-probabilities": scoring if needs_old_logps(case) else 0.0,
        "reference log-probabilities": scoring if setting.reference != "none" else 0.0,
        "loss and backward": micro_batch * setting.micro_batches,
        "optimiser": _optimizer(case),
        "communication": _communication(case),
        "weight sync": _sync(case) * per_step,
    }
    return {stage: found[stage] for stage in STAGES if found[stage] > 0}


def needs_old_logps(case: Case) -> bool:
    """Whether a pass of their own is made for them."""
    shared = case.setting.gain and case.setting.shares_logps and case.policy.packed is not None
    return case.setting.old_logps and not shared


# ---- sampling and tools


def _sampling(case: Case) -> float:
    """Of one generation batch on one device."""
    how = _transformers_turn if case.setting.engine.kind == "transformers" else _vllm_turn
    return sum(how(case, number) for number in range(len(case.lengths.turns)))


def _rows(case: Case, number: int) -> int:
    return max(1, math.ceil(case.lengths.turns[number].share * case.setting.generated))


def _transformers_turn(case: Case, number: int) -> float:
    """All contexts are read anew in each turn, and all rows are sampled until the longest is finished."""
    turn, reached = case.lengths.turns[number], _rows(case, number)
    rows = min(reached, case.setting.sampled_at_once or reached)
    context = math.ceil(case.lengths.context(number))
    middle = context + math.ceil(turn.longest / 2)
    token = case.machine.seconds(case.policy.decode(rows, middle)) + case.machine.sampling_seconds
    once = case.machine.seconds(case.policy.prefill(rows, context)) + turn.longest * token
    return math.ceil(reached / rows) * once


def _vllm_turn(case: Case, number: int) -> float:
    """What is in the cache of an earlier turn is not read again."""
    turn, engine = case.lengths.turns[number], case.setting.engine
    sharers = engine.gpus / case.sharding.devices if engine.kind == "server" else 1.0
    rows = _rows(case, number) / sharers
    new = turn.results if number else case.lengths.prompt
    one = case.policy.decode(1, math.ceil(case.lengths.context(number)))
    flops = sum(op.flops * count for op, count in one.ops.items() if op.kind == "matmul")  # of a token
    reading = rows * new * flops / case.machine.matmul.at(math.inf)
    at_once = min(rows, _vllm_rows(case))
    cache = at_once * _cache_bytes(case) * (case.lengths.context(number) + turn.longest / 2)
    weights = case.policy.parameters.all * VLLM_BYTES / engine.tensor_parallel
    token = max(
        (weights + cache) / case.machine.bandwidth.at(math.inf), at_once * flops / case.machine.matmul.at(math.inf)
    )
    return reading + math.ceil(rows / at_once) * turn.longest * (token + VLLM_STEP_SECONDS)


def _cache_bytes(case: Case) -> float:
    """vLLM's, of a token."""
    return case.policy.cache_numbers * VLLM_BYTES


def _vllm_rows(case: Case) -> float:
    """Rows of full length that its cache holds at once."""
    engine = case.setting.engine
    share = engine.memory_share if engine.kind == "colocate" else VLLM_FREE
    weights = case.policy.parameters.all * VLLM_BYTES / engine.tensor_parallel
    free = (share * case.machine.memory_bytes - weights) * VLLM_FREE
    rows = free / (_cache_bytes(case) * case.row)
    if rows < 1:
        raise ValueError(
            f"vLLM has {share:.0%} of {case.machine.memory_bytes / 1e9:.0f} GB, which does not hold the weights "
            f"({weights / 1e9:.1f} GB) and the cache of one row. Raise vllm_gpu_memory_utilization or "
            "vllm_tensor_parallel_size."
        )
    return rows


def _tools(case: Case) -> float:
    """Waited for once a turn; with more calls than may run at once, several times. A stream hides part of it."""
    return sum(
        turn.tool_seconds * math.ceil(turn.tool_share * _rows(case, number) / case.setting.tool_concurrency)
        for number, turn in enumerate(case.lengths.turns)
        if turn.tool_share > 0
    )


# ---- forwards


def _gain(case: Case) -> float:
    setting, lengths = case.setting, case.lengths
    scored = setting.generated + setting.scored_twice
    if case.policy.packed is not None:
        rows, width = gain_rows(setting, lengths, case.row)
        if rows < setting.generated:  # rows of like length go together, so that not all are as wide as the longest
            width -= case.row - math.ceil(lengths.row)
        return scored / rows * case.machine.seconds(case.policy.score(rows, width))
    total = 0.0
    for number in range(math.ceil(lengths.contexts)):
        width = math.ceil(lengths.context(number) + lengths.probe)
        rows = min(setting.generated, max(1, setting.gain_token_budget // width))
        share = 1.0 if number == 0 else lengths.turns[number - 1].share * lengths.turns[number - 1].tool_share
        total += share * scored / rows * case.machine.seconds(case.policy.score(rows, width))
    return total


def _optimizer(case: Case) -> float:
    """Each device updates its own part; what an operation costs is not divided."""
    work, machine = case.policy.update(), case.machine
    if not case.sharding.splits_optimizer:
        return machine.seconds(work)
    part = Work(
        type(work.ops)({op._replace(bytes=op.bytes // case.sharding.devices): n for op, n in work.ops.items()})
    )
    return machine.seconds(part)


# ---- between devices


def _communication(case: Case) -> float:
    """All of it, as if none were hidden behind the computing."""
    setting, sharding, numbers = case.setting, case.sharding, case.policy.parameters
    if sharding.devices == 1:
        return 0.0
    gradients = sharding.gathered(numbers.trained * setting.stored_bytes)
    weights = sharding.gathered(case.weights)
    reductions = setting.micro_batches if sharding.kind in ("zero2", "zero3", "fsdp2") else 1
    total = reductions * gradients
    if not sharding.splits_gradients:
        total += gradients  # and sent back to all
    if sharding.kind in ("zero1", "zero2"):
        total += sharding.gathered(numbers.trained * setting.compute_bytes)
    if sharding.splits_weights:
        total += weights * (2 * setting.micro_batches + setting.generations * _gathering_forwards(case))
    return total / case.link


def _gathering_forwards(case: Case) -> float:
    """Forwards of one generation batch that gather all weights, beside those of the loss."""
    setting, lengths = case.setting, case.lengths
    scoring = setting.generated / setting.rows
    forwards = scoring * (needs_old_logps(case) + (setting.reference != "none"))
    if setting.gain:
        rows = gain_rows(setting, lengths, case.row)[0]
        forwards += math.ceil(setting.generated / rows) + math.ceil(setting.scored_twice / rows)
    if setting.engine.kind == "transformers":
        once = case.sharding.kind == "zero3" and setting.gathers_for_generation
        forwards += sum(1 if once else 1 + turn.longest for turn in lengths.turns)
    return forwards


def _sync(case: Case) -> float:
    """New weights for vLLM, gathered where they are split."""
    engine, sharding = case.setting.engine, case.sharding
    if engine.kind == "transformers":
        return 0.0
    sent = sharding.gathered(case.weights) / case.link if sharding.splits_weights else 0.0
    size = case.policy.parameters.all * VLLM_BYTES
    copied = size / (case.machine.cluster_link if engine.kind == "server" else case.machine.bandwidth.at(math.inf) / 2)
    return sent + copied + SYNC_SECONDS * case.policy.parameters.tensors
