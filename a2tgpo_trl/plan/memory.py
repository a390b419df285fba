"""policy, setting, sharding, lengths -> bytes on each device, by part and by stage of a step: `Memory`.

What stays for the whole run and what a stage adds are kept apart: stages do not overlap, so the peak is what stays and
the most that any one of them adds.
"""

import math
from dataclasses import dataclass

from .hardware import Machine
from .lengths import Lengths
from .policy import Parameters, Policy
from .setting import Setting
from .sharding import LIVE_PARAMETERS, REDUCE_BUCKET, Sharding


FULL = 4  # bytes of float32
# 4 bits a weight, and one float32 for each block of 64, which use_bnb_nested_quant makes smaller still.
QUANTIZED_BYTES = {4: 0.5 + FULL / 64, 8: 1.0}

# What sampling holds has other cures in an evaluation, so it has other names there.
EVALUATED = {"KV cache": "KV cache of an evaluation", "sampling's work": "work of an evaluation"}


@dataclass(frozen=True)
class Memory:
    """Bytes. `stays`: part -> bytes. `stages`: stage -> part -> bytes that it adds."""

    stays: dict[str, float]
    stages: dict[str, dict[str, float]]

    @property
    def peak_stage(self) -> str:
        return max(self.stages, key=lambda stage: sum(self.stages[stage].values()))

    @property
    def peak(self) -> float:
        return sum(self.peak_parts.values())

    @property
    def peak_parts(self) -> dict[str, float]:
        """What is there at the peak."""
        return {**self.stays, **self.stages[self.peak_stage]}


def weight_bytes(parameters: Parameters, setting: Setting) -> float:
    """Weights of one whole copy, as they are kept."""
    quantized = parameters.quantizable if setting.quantized_bits else 0
    plain = (parameters.all - quantized) * setting.stored_bytes
    return plain + (quantized * QUANTIZED_BYTES[setting.quantized_bits] if setting.quantized_bits else 0.0)


def states(
    parameters: Parameters, setting: Setting, sharding: Sharding, optimizer_bytes_per_weight: float
) -> tuple[dict[str, float], float]:
    """Parts that stay, and the bytes of the gradients, on each device.

    Example: Adam in float32, 1,000 weights, one device -> weights 4,000, optimiser 8,000; gradients 4,000
             ZeRO-3 in bfloat16, 8 devices -> weights 250, optimiser 1,500 (master copy too); gradients 250
    """
    split = sharding.devices
    weights = weight_bytes(parameters, setting)
    parts = {"weights": weights / split if sharding.splits_weights else weights}
    optimizer = optimizer_bytes_per_weight * parameters.trained
    if sharding.deepspeed:
        optimizer += FULL * parameters.trained  # the copy that is updated
    parts["optimiser"] = optimizer / split if sharding.splits_optimizer else optimizer
    if setting.reference == "model":
        parts["reference model"] = parts["weights"]
    if sharding.kind == "zero3":
        parts["gathered weights"] = min(parameters.all, LIVE_PARAMETERS) * setting.compute_bytes
    elif sharding.kind == "fsdp2":
        parts["gathered weights"] = 2 * parameters.largest_block * setting.compute_bytes  # one in use, one on its way
    gradients = parameters.trained * setting.stored_bytes
    return parts, gradients / split if sharding.splits_gradients else gradients


def _buffers(parameters: Parameters, setting: Setting, sharding: Sharding) -> float:
    """What reducing gradients takes beside them."""
    if sharding.kind == "ddp":
        return parameters.trained * setting.stored_bytes  # its buckets hold all of them once more
    if sharding.deepspeed:
        return 2 * min(parameters.trained, REDUCE_BUCKET) * setting.stored_bytes
    if sharding.kind == "fsdp2":
        return min(parameters.trained, parameters.largest_block) * setting.compute_bytes
    return 0.0


def plan_memory(
    policy: Policy, setting: Setting, sharding: Sharding, lengths: Lengths, machine: Machine, full: bool
) -> Memory:
    """`full`: rollouts as long as max_completion_length allows, all of them, instead of the lengths assumed."""
    row = lengths.longest_prompt + setting.max_completion_length if full else lengths.longest_row
    row = math.ceil(row)

    def shapes(rollouts: int) -> list[tuple[int, int]]:
        return [(rollouts, row)] if full else sampled_shapes(rollouts, lengths)

    update = policy.update()
    numbers = policy.parameters
    per_weight = update.kept_bytes / max(numbers.trained, 1) * _widened(policy, setting, sharding)
    stays, gradients = states(numbers, setting, sharding, per_weight)
    if machine.runtime_bytes:
        stays["runtime"] = machine.runtime_bytes
    engine = setting.engine
    if engine.kind == "colocate" and not engine.sleeps:
        stays["vLLM"] = engine.memory_share * machine.memory_bytes
    accumulating = setting.micro_batches > 1 or sharding.kind != "none"
    loss: dict[str, float] = {"activations": policy.learn(setting.rows, row, accumulating).peak_bytes}
    if accumulating:
        loss["gradients"] = gradients
        loss["gradient buffers"] = _buffers(numbers, setting, sharding)
    stages: dict[str, dict[str, float]] = {
        "sampling": _sampling(policy, setting, sharding, machine, shapes(setting.generated)),
        "loss": loss,
        "optimiser": {
            "gradients": gradients,
            "optimiser's work": max(update.peak_bytes - update.kept_bytes, 0) / sharding.devices,
        },
    }
    if setting.evaluated:  # it samples and scores, nothing else
        sampled = _sampling(policy, setting, sharding, machine, shapes(setting.evaluated))
        stages["evaluation"] = {EVALUATED.get(part, part): size for part, size in sampled.items()}
    if setting.gain:
        stages["gain pass"] = {"packed rows": policy.score(*gain_rows(setting, lengths, row)).peak_bytes}
    if setting.old_logps or setting.reference != "none":
        stages["log-probabilities"] = {"activations": policy.score(setting.rows, row).peak_bytes}
    return Memory(stays, stages)


def _widened(policy: Policy, setting: Setting, sharding: Sharding) -> float:
    """How much larger than traced the optimiser's state is: it was on the forward's weights, and may be on float32."""
    updates_full = sharding.deepspeed or setting.stored_bytes == FULL
    return FULL / policy.training.dtype.itemsize if updates_full and not setting.quantized_bits else 1.0


def gain_rows(setting: Setting, lengths: Lengths, row: int) -> tuple[int, int]:
    """Rows of one forward of the packed gain pass, and their width: as many as the token budget takes.

    Example: budget 16384, rollouts of 900 tokens, 4 contexts with probes of 16 -> 16 rows of 964
    """
    width = row + math.ceil(math.ceil(lengths.contexts) * lengths.probe)
    return min(setting.generated, max(1, setting.gain_token_budget // width)), width


def _sampling(
    policy: Policy, setting: Setting, sharding: Sharding, machine: Machine, shapes: list[tuple[int, int]]
) -> dict[str, float]:
    engine = setting.engine
    if engine.kind == "server":
        return {}
    if engine.kind == "colocate":
        return {"vLLM": engine.memory_share * machine.memory_bytes} if engine.sleeps else {}
    parts: dict[str, float] = {}
    if sharding.kind == "zero3" and setting.gathers_for_generation:
        parts["gathered for generation"] = policy.parameters.all * setting.compute_bytes
    shapes = [(min(rows, setting.sampled_at_once or rows), context) for rows, context in shapes]
    rows, context = max(shapes, key=lambda shape: shape[0] * shape[1])
    step, first = policy.decode(rows, context), policy.prefill(rows, context)
    parts["KV cache"] = step.kept_bytes
    parts["sampling's work"] = max(step.peak_bytes, first.peak_bytes) - step.kept_bytes
    return parts


def sampled_shapes(rollouts: int, lengths: Lengths) -> list[tuple[int, int]]:
    """Rows of each turn's generation, and the tokens of their contexts at its end."""
    return [
        (max(1, math.ceil(turn.share * rollouts)), math.ceil(lengths.context(k) + turn.longest))
        for k, turn in enumerate(lengths.turns)
    ]
