"""policy, setting, sharding, length of a rollout -> bytes on each device, by part and by stage of a step: `Memory`.

What stays for the whole run is kept apart from what a stage adds: stages do not overlap, so the peak is what stays
plus the most that any one stage adds.
"""

from dataclasses import dataclass

from .hardware import Device
from .policy import FULL, Parameters, Policy
from .setting import Setting
from .sharding import LIVE_PARAMETERS, REDUCE_BUCKET, Sharding


VLLM_BYTES = 2  # of a weight and of a number in its cache
VLLM_FREE = 0.9  # of its memory besides weights: the rest is for activations and graphs

# 4 bits per weight, and one float32 for each block of 64, which use_bnb_nested_quant makes even smaller.
QUANTIZED_BYTES = {4: 0.5 + FULL / 64, 8: 1.0}

# In an evaluation, what sampling holds has other cures, so it has other names.
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
        """The parts that are in memory at the peak."""
        return {**self.stays, **self.stages[self.peak_stage]}


def weight_bytes(parameters: Parameters, setting: Setting) -> float:
    """Return the bytes of one whole copy of the weights, as they are kept."""
    quantized = parameters.quantizable if setting.quantized_bits else 0
    plain = (parameters.all - quantized) * setting.stored_bytes
    return plain + (quantized * QUANTIZED_BYTES[setting.quantized_bits] if setting.quantized_bits else 0.0)


def states(
    parameters: Parameters, setting: Setting, sharding: Sharding, optimizer_bytes_per_weight: float
) -> tuple[dict[str, float], float]:
    """Return the parts that stay, and the bytes of the gradients, on each device.

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
    """Return the bytes that reducing gradients takes besides them."""
    if sharding.kind == "ddp":
        return parameters.trained * setting.stored_bytes  # its buckets hold all of them again
    if sharding.deepspeed:
        return 2 * min(parameters.trained, REDUCE_BUCKET) * setting.stored_bytes
    if sharding.kind == "fsdp2":
        return min(parameters.trained, parameters.largest_block) * setting.compute_bytes
    return 0.0


def plan_memory(policy: Policy, setting: Setting, sharding: Sharding, device: Device, row: int) -> Memory:
    """Return a step's memory. `row`: tokens of a rollout with its prompt; all of a batch have this length."""
    numbers = policy.parameters
    update = policy.update()
    per_weight = update.kept / max(numbers.trained, 1) * _widened(policy, setting, sharding)
    stays, gradients = states(numbers, setting, sharding, per_weight)
    if device.runtime_bytes:
        stays["runtime"] = device.runtime_bytes
    if setting.sampler == "colocate":
        check_vllm(policy, setting, device, row)
        if not setting.vllm_sleeps:
            stays["vLLM"] = setting.vllm_share * device.memory_bytes
    accumulating = setting.micro_batches > 1 or sharding.kind != "none"
    loss: dict[str, float] = {"activations": policy.learn(setting.rows, row, accumulating)}
    if accumulating:
        loss["gradients"] = gradients
        loss["gradient buffers"] = _buffers(numbers, setting, sharding)
    stages: dict[str, dict[str, float]] = {
        "sampling": _sampling(policy, setting, sharding, device, setting.generated, row),
        "loss": loss,
        "optimiser": {
            "gradients": gradients,
            "optimiser's work": (update.peak - update.kept) / (sharding.devices if sharding.splits_optimizer else 1),
        },
    }
    if setting.gain_token_budget:
        stages["gain pass"] = {"packed rows": policy.score(gain_rows(setting, row), row)}
    if setting.evaluated:  # it samples and scores, nothing else
        sampled = _sampling(policy, setting, sharding, device, setting.evaluated, row)
        stages["evaluation"] = {EVALUATED.get(part, part): size for part, size in sampled.items()}
    return Memory(stays, stages)


def _widened(policy: Policy, setting: Setting, sharding: Sharding) -> float:
    """Return how much larger than traced the optimiser's state is: it may be in float32, not the forward's type."""
    updates_full = sharding.deepspeed or setting.stored_bytes == FULL
    return FULL / policy.training.dtype.itemsize if updates_full and not setting.quantized_bits else 1.0


def gain_rows(setting: Setting, row: int) -> int:
    """Return the rows of one forward of the packed gain pass: as many as its token budget allows, at least one.

    The probes, a few tokens per turn, are not counted: with them, rows are longer and fewer.
    """
    return min(setting.generated, max(1, setting.gain_token_budget // row))


def _sampling(
    policy: Policy, setting: Setting, sharding: Sharding, device: Device, rollouts: int, row: int
) -> dict[str, float]:
    if setting.sampler == "server":
        return {}
    if setting.sampler == "colocate":
        return {"vLLM": setting.vllm_share * device.memory_bytes} if setting.vllm_sleeps else {}
    parts: dict[str, float] = {}
    if sharding.kind == "zero3" and setting.gathers_for_generation:
        parts["gathered for generation"] = policy.parameters.all * setting.compute_bytes
    kept = rollouts if setting.sampling_token_budget is None else max(1, setting.sampling_token_budget // row)
    read = policy.read(min(rollouts, setting.sampled_at_once or rollouts, kept), row)
    parts["KV cache"] = read.kept
    parts["sampling's work"] = read.peak - read.kept
    return parts


def check_vllm(policy: Policy, setting: Setting, device: Device, row: int) -> None:
    """Raise an error if vLLM's share of a device does not hold its weights and the cache of one rollout."""
    weights = policy.parameters.all * VLLM_BYTES / setting.vllm_devices
    itemsize = (policy.training.autocast or policy.training.dtype).itemsize
    cache = policy.read(1, row).kept * VLLM_BYTES / itemsize / setting.vllm_devices
    if weights + cache / VLLM_FREE > setting.vllm_share * device.memory_bytes:
        raise ValueError(
            f"vLLM has {setting.vllm_share:.0%} of {device.memory_bytes / 1e9:.0f} GB, too little for its "
            f"weights ({weights / 1e9:.1f} GB) and the cache of a rollout of {row} tokens ({cache / 1e9:.1f} GB). "
            "Raise vllm_gpu_memory_utilization or vllm_tensor_parallel_size."
        )
