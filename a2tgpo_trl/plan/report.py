"""a plan -> what a user reads of it, or a machine: parts, stages, verdict, what to change, and what was assumed."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .hardware import GIB
from .seconds import VLLM_STEP_SECONDS


if TYPE_CHECKING:
    from . import Plan

# part -> settings that make it smaller, the most harmless first
CURES = {
    "weights": "split them (--sharding zero3 or fsdp2), load them in bfloat16 (dtype), or in 4 bits under LoRA "
    "(use_peft, load_in_4bit)",
    "optimiser": "split it (--sharding zero2), or train an adapter (use_peft)",
    "reference model": "beta: 0, or an adapter (use_peft), whose base is the reference",
    "gathered weights": "more GPUs do not help here; a lower stage3_max_live_parameters does",
    "vLLM": "lower vllm_gpu_memory_utilization, or vllm_enable_sleep_mode: true",
    "gathered for generation": "ds3_gather_for_generation: false (slow), or use_vllm: true",
    "KV cache": "sample fewer rollouts at once (steps_per_generation), or use_vllm: true",
    "sampling's work": "sample fewer rollouts at once (steps_per_generation), or use_vllm: true",
    "KV cache of an evaluation": "evaluate fewer rollouts at once (per_device_eval_batch_size), or use_vllm: true",
    "work of an evaluation": "evaluate fewer rollouts at once (per_device_eval_batch_size), or use_vllm: true",
    "packed rows": "lower gain_token_budget",
    "activations": "gradient_checkpointing: true, fewer rows at once (per_device_train_batch_size, with more "
    "gradient_accumulation_steps), or a lower max_completion_length",
    "gradients": "split them (--sharding zero2), or train an adapter (use_peft)",
    "gradient buffers": "an adapter (use_peft) has few gradients to reduce",
    "optimiser's work": "split the optimiser (--sharding zero2)",
    "runtime": "nothing: a driver takes it",
}
FASTER = {
    "sampling": "use_vllm: true where it is not, more rollouts at once (steps_per_generation), or shorter turns",
    "tools": "faster tools, more at once (tool_concurrency), a shorter tool_timeout; vLLM in the process hides part "
    "of it (stream_turns)",
    "gain pass": "a higher gain_token_budget; a model that packs rows",
    "old log-probabilities": "steps_per_generation that fits gradient_accumulation_steps",
    "reference log-probabilities": "beta: 0",
    "loss and backward": "gradient_checkpointing: false where it fits, or more rows at once "
    "(per_device_train_batch_size)",
    "optimiser": "split it (--sharding zero2)",
    "communication": "fewer, larger micro-batches; less splitting (zero2 in place of zero3); faster links",
    "weight sync": "more rollouts for each update (steps_per_generation)",
}


def as_text(plan: "Plan", notes: Sequence[str]) -> Iterator[Any]:
    """Lines, and tables of rich."""
    setting, sharding, numbers = plan.setting, plan.sharding, plan.parameters
    trained = "all trained" if numbers.frozen == 0 else f"{numbers.trained / 1e6:.1f} M of them trained"
    yield f"{plan.model}: {numbers.all / 1e9:.3g} B weights, {trained}; sampled by {setting.engine.kind}"
    yield (
        f"{sharding.devices} x {plan.machine.name} ({plan.machine.source}), {sharding.nodes} node(s), "
        f"{sharding.kind}; {setting.micro_batches} micro-batches of {setting.rows} rollouts a device and step"
    )
    yield f"\nMemory of a device, GiB ({origin(plan)}):"
    yield _memory_table(plan)
    yield verdict(plan)
    yield f"\nSeconds of a step ({origin(plan)}):"
    yield _seconds_table(plan)
    yield f"Bottleneck: {plan.bottleneck}. What helps: {FASTER[plan.bottleneck]}."
    yield f"{plan.steps} step(s): {plan.hours:.3g} hours, without evaluations and checkpoints."
    yield "\nA step's tokens, all devices: " + ", ".join(f"{name} {n:,.0f}" for name, n in tokens(plan).items())
    yield "Assumed:"
    for note in [*notes, *assumptions(plan)]:
        yield f"  - {note}"


def origin(plan: "Plan") -> str:
    """Whether figures rest on a data sheet."""
    return "computed" if plan.machine.source != "measured" else "computed for this machine, which was measured"


def verdict(plan: "Plan") -> str:
    """Whether it fits, and what to change if not."""
    memory, room = plan.full_memory, plan.machine.memory_bytes
    peak = f"{memory.peak / GIB:.3g} of {room / GIB:.3g} GiB, in the stage {memory.peak_stage!r}"
    if plan.fits:
        return f"It fits: {peak}."
    part = max((p for p in memory.peak_parts if p != "runtime"), key=lambda p: memory.peak_parts[p])
    return f"It does not fit: {peak}. The largest part: {part}. What helps: {CURES[part]}."


def _memory_table(plan: "Plan") -> Any:
    table = _table("", "part", "these lengths", "longest rollouts")
    both = (plan.memory, plan.full_memory)
    for part in plan.memory.stays:
        table.add_row("always", part, *(_gib(memory.stays[part]) for memory in both))
    for stage in plan.memory.stages:
        for part in plan.memory.stages[stage]:
            table.add_row(f"in {stage}", part, *(_gib(memory.stages[stage][part]) for memory in both))
    table.add_row("peak", f"in {plan.full_memory.peak_stage}", *(_gib(memory.peak) for memory in both))
    return table


def _seconds_table(plan: "Plan") -> Any:
    table = _table("stage", "seconds", "share")
    for stage, seconds in plan.seconds.items():
        table.add_row(stage, f"{seconds:.3g}", f"{seconds / plan.step_seconds:.0%}")
    table.add_row("step", f"{plan.step_seconds:.3g}", "")
    return table


def _table(*heads: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        numbers = head in ("these lengths", "longest rollouts", "seconds", "share")
        table.add_column(head, justify="right" if numbers else "left", no_wrap=True)
    return table


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def tokens(plan: "Plan") -> dict[str, float]:
    """Of an optimiser step, on all devices."""
    lengths = plan.lengths
    each = {"prompts": lengths.prompt, "sampled": lengths.sampled, "tool results": lengths.results}
    return {name: number * plan.rollouts for name, number in each.items()}


def assumptions(plan: "Plan") -> list[str]:
    """What the figures take for granted, a line each."""
    machine, setting = plan.machine, plan.setting
    lines = []
    if machine.source != "measured":
        rates = (machine.matmul, machine.attention, machine.bandwidth)
        matmul, attention, memory = (rate.at(0) for rate in rates)
        lines.append(
            f"reached of the data sheet: {matmul / 1e12:.0f} TFLOP/s (attention {attention / 1e12:.0f}), "
            f"{memory / 1e9:.0f} GB/s of memory, {machine.node_link / 1e9:.0f} GB/s in a node and "
            f"{machine.cluster_link / 1e9:.0f} a GPU between nodes; {machine.forward_op_seconds * 1e6:.0f} us an "
            "operation"
        )
    if setting.engine.kind != "transformers":
        lines.append(
            f"vLLM keeps what it has read of a rollout, and takes {VLLM_STEP_SECONDS * 1e3:.0f} ms beside each token"
        )
    if setting.engine.streams:
        lines.append("sampling and tools are counted one after the other; stream_turns hides part of the tools")
    if plan.sharding.devices > 1:
        lines.append("communication is counted as if none of it were hidden behind computing")
    lines.append("longest rollouts: all as long as max_completion_length, at once")
    lines.append("not counted: rewards, data loading, the arithmetic of credit, groups that are sampled again")
    return lines


def as_json(plan: "Plan", notes: Sequence[str]) -> dict[str, Any]:
    """The same for machines; bytes and seconds."""
    memory = {
        name: {"always": found.stays, "stages": found.stages, "peak": found.peak, "peak_stage": found.peak_stage}
        for name, found in (("memory", plan.memory), ("longest_memory", plan.full_memory))
    }
    return {
        "model": plan.model,
        "weights": plan.parameters.all,
        "trained_weights": plan.parameters.trained,
        "device": plan.machine.name,
        "device_source": plan.machine.source,
        "device_memory": plan.machine.memory_bytes,
        "devices": plan.sharding.devices,
        "nodes": plan.sharding.nodes,
        "sharding": plan.sharding.kind,
        "fits": plan.fits,
        "verdict": verdict(plan),
        **memory,
        "tokens_per_step": tokens(plan),
        "rollouts_per_step": plan.rollouts,
        "seconds": plan.seconds,
        "step_seconds": plan.step_seconds,
        "bottleneck": plan.bottleneck,
        "steps": plan.steps,
        "hours": plan.hours,
        "assumptions": [*notes, *assumptions(plan)],
    }
