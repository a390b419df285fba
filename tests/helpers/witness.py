"""A reward that writes down, on each rank, what its trainer runs on (`--reward_funcs witness.py:witness`)."""

import gc
import json
import os
from pathlib import Path

from a2tgpo_trl import A2TGPOTrainer


def witness(completions, **_) -> list[float]:
    (trainer,) = (found for found in gc.get_objects() if type(found) is A2TGPOTrainer)
    state = trainer.accelerator.state
    deepspeed = trainer.accelerator.deepspeed_config if trainer.is_deepspeed_enabled else {}
    report = {
        "type": state.distributed_type.value,
        "processes": state.num_processes,
        "device": state.device.type,
        "wrapped": type(trainer.model_wrapped).__name__,
        "parameters": sorted({type(parameter).__name__ for parameter in trainer.model.parameters()}),
        "zero_stage": deepspeed.get("zero_optimization", {}).get("stage", 0),
        "accumulation": deepspeed.get("gradient_accumulation_steps"),
        "clipping": deepspeed.get("gradient_clipping"),
    }
    Path(os.environ["WITNESS"], f"rank{state.process_index}.json").write_text(json.dumps(report))
    return [float(len(completion) % 3) for completion in completions]
