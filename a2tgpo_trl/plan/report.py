"""a plan, and what was measured beside it -> text for a user, or an object for a machine."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from .hardware import GIB
from .measured import Measured
from .planning import Plan


# part -> settings that make it smaller, the least harmful first
CURES = {
    "weights": "split them (--sharding zero3 or fsdp2), load them in bfloat16 (dtype), or in 4 bits under LoRA "
    "(use_peft, load_in_4bit)",
    "optimiser": "split it (--sharding zero2), or train an adapter (use_peft)",
    "reference model": "beta: 0, or an adapter (use_peft), whose base is the reference",
    "gathered weights": "a lower stage3_max_live_parameters (more GPUs do not help)",
    "vLLM": "lower vllm_gpu_memory_utilization, or vllm_enable_sleep_mode: true",
    "gathered for generation": "ds3_gather_for_generation: false (slow), or use_vllm: true",
    "KV cache": "lower sampling_token_budget or sampling_batch_size, or use_vllm: true",
    "sampling's work": "lower sampling_token_budget or sampling_batch_size, or use_vllm: true",
    "KV cache of an evaluation": "evaluate fewer rollouts at once (per_device_eval_batch_size), or use_vllm: true",
    "work of an evaluation": "evaluate fewer rollouts at once (per_device_eval_batch_size), or use_vllm: true",
    "packed rows": "lower gain_token_budget",
    "activations": "gradient_checkpointing: true, fewer rows at once (per_device_train_batch_size, with more "
    "gradient_accumulation_steps), or a lower max_completion_length",
    "gradients": "split them (--sharding zero2), or train an adapter (use_peft)",
    "gradient buffers": "an adapter (use_peft), which has few gradients to reduce",
    "optimiser's work": "split the optimiser (--sharding zero2)",
    "runtime": "nothing: a driver takes it",
}


@dataclass(frozen=True)
class Run:
    """What was measured, and what it tells about the run."""

    measured: Measured
    planned_bytes: float  # for completions as long as those measured
    steps: int

    @property
    def hours(self) -> float:
        return self.steps * self.measured.step_seconds / 3600


def as_text(plan: Plan, run: Run | None) -> Iterator[str | Table]:
    """Yield the lines and tables that a user reads."""
    setting, sharding, numbers = plan.setting, plan.sharding, plan.parameters
    trained = "all trained" if numbers.frozen == 0 else f"{numbers.trained / 1e6:.1f} M of them trained"
    sampler = setting.sampler if setting.sampler == "transformers" else f"vLLM ({setting.sampler})"
    yield f"{plan.model}: {numbers.all / 1e9:.3g} B weights, {trained}; sampled by {sampler}"
    yield (
        f"{sharding.devices} x {plan.device.name}, {sharding.kind}; {setting.micro_batches} micro-batches of "
        f"{setting.rows} rollouts per device and step"
    )
    yield "\nMemory per device with the longest rollouts, in GiB, computed:"
    yield _memory_table(plan)
    yield verdict(plan)
    for line in plan.assumptions:
        yield f"  - {line}"
    if run is None:
        yield "Seconds are not computed: --gpu this measures them, on the machine where the recipe is to run."
    else:
        yield from _run_as_text(run)


def _run_as_text(run: Run) -> Iterator[str | Table]:
    measured = run.measured
    yield "\nSeconds of a step, measured on the second of two batches:"
    table = _table("stage", "seconds", "share")
    for stage, seconds in measured.seconds.items():
        table.add_row(stage, f"{seconds:.3g}", f"{seconds / measured.step_seconds:.0%}")
    table.add_row("step", f"{measured.step_seconds:.3g}", "")
    yield table
    yield f"{run.steps} step(s): {run.hours:.3g} hours, without evaluations and checkpoints."
    yield (
        f"Peak of these batches, whose longest completion had {measured.longest_completion} tokens: "
        f"{measured.peak_bytes / GIB:.3g} GiB measured, {run.planned_bytes / GIB:.3g} planned."
    )


def verdict(plan: Plan) -> str:
    """Return whether it fits, by how much, and what to change if not."""
    memory, room = plan.memory, plan.device.memory_bytes
    peak = f"{memory.peak / GIB:.3g} of {room / GIB:.3g} GiB, in the stage {memory.peak_stage!r}"
    if plan.fits:
        return f"It fits: {peak}; {(room - memory.peak) / GIB:.3g} are left."
    part = max((p for p in memory.peak_parts if p != "runtime"), key=lambda p: memory.peak_parts[p])
    return f"It does not fit: {peak}. The largest part: {part}. What helps: {CURES[part]}."


def _memory_table(plan: Plan) -> Table:
    memory = plan.memory
    table = _table("", "part", "GiB")
    for part, size in memory.stays.items():
        table.add_row("always", part, f"{size / GIB:.2f}")
    for stage, parts in memory.stages.items():
        for part, size in parts.items():
            table.add_row(f"in {stage}", part, f"{size / GIB:.2f}")
    table.add_row("peak", f"in {memory.peak_stage}", f"{memory.peak / GIB:.2f}")
    return table


def _table(*heads: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(head, justify="right" if head in ("GiB", "seconds", "share") else "left", no_wrap=True)
    return table


def as_json(plan: Plan, run: Run | None) -> dict[str, Any]:
    """Return the same for machines, in bytes and seconds."""
    memory = plan.memory
    found = {
        "model": plan.model,
        "weights": plan.parameters.all,
        "trained_weights": plan.parameters.trained,
        "device": plan.device.name,
        "device_memory": plan.device.memory_bytes,
        "devices": plan.sharding.devices,
        "sharding": plan.sharding.kind,
        "fits": plan.fits,
        "verdict": verdict(plan),
        "memory": {
            "always": memory.stays,
            "stages": memory.stages,
            "peak": memory.peak,
            "peak_stage": memory.peak_stage,
        },
        "assumptions": plan.assumptions,
    }
    if run is not None:
        found["measured"] = {
            "seconds": run.measured.seconds,
            "step_seconds": run.measured.step_seconds,
            "steps": run.steps,
            "hours": run.hours,
            "peak": run.measured.peak_bytes,
            "planned_peak": run.planned_bytes,
            "longest_completion": run.measured.longest_completion,
        }
    return found
