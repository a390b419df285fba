"""Short runs that together log every metric there is, in one offline run of W&B.

usage: every_metric.py FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import tiny
import torch
import trl.trainer.grpo_trainer
from training import make, questions, rollouts_of_tokens, settings, spread, write
from trl import GRPOTrainer

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.rewards import exact_match


ONE_STEP = {"max_steps": 1}
# The first has the settings of most runs, and evaluations.
RUNS: dict[str, dict[str, Any]] = {
    "everything at once": {
        **{"beta": 0.1, "entropy_coef": 0.01, "num_iterations": 2, "resample_limit": 1, "log_completions": True},
        **{"turn_rewards": {"failed_call": -0.1}, "eval_strategy": "steps", "eval_steps": 1, "eval_gains": True},
    },
    "failures shaped": {**ONE_STEP, "credit": "gtpo", "shaping_embedding": "ngrams"},
    "states": {**ONE_STEP, "credit": "gigpo", "beta": 0.0},
    "cispo": {**ONE_STEP, "loss_type": "cispo", "epsilon_high": 5.0, "clip_adaptation": 0.0},
    "vespo": {**ONE_STEP, "loss_type": "vespo", "clip_adaptation": 0.0},
}


def main(folder: str) -> None:
    torch.set_num_threads(1)
    tokenizer = tiny.make_tokenizer()
    # Without this, the reference policy would come from the hub.
    trl.trainer.grpo_trainer.create_model_from_path = lambda *_, **__: tiny.make_model(tokenizer, seed=1)

    def config(name: str, **changes: Any) -> A2TGPOConfig:
        changes = {"report_to": "wandb", "run_name": "every metric", **changes}
        return A2TGPOConfig(**settings(Path(folder, name.replace(" ", "_")), **changes))

    for name, changes in RUNS.items():
        make(tokenizer, config(name, **changes), eval_dataset=questions(2)).train()

    experts = tiny.architectures()["qwen3-moe"]()
    experts.config.output_router_logits = True
    tiny.script(experts, tokenizer, write)
    balanced = config("experts", router_aux_loss_coef=0.01, **ONE_STEP)
    A2TGPOTrainer(experts, exact_match, balanced, questions(), processing_class=tokenizer, tools=[tiny.search]).train()

    with_logprobs = config("a sampler of its own", num_iterations=2, **ONE_STEP)
    make(tokenizer, with_logprobs, tools=None, rollout_func=rollouts_of_tokens, reward_funcs=spread).train()

    # As with vLLM: tokens come with log-probabilities, which training uses for a correction.
    sampled = ([[20, 21, tokenizer.eos_token_id]] * 4, [[-1.0, -2.0, -3.0]] * 4)
    GRPOTrainer._generate_single_turn = lambda *_, **__: sampled
    trainer = make(tokenizer, config("vLLM", **ONE_STEP), tools=None, reward_funcs=spread, scripted=False)
    trainer.use_vllm, trainer._last_loaded_step = True, 0
    trainer.train()


if __name__ == "__main__":
    main(sys.argv[1])
