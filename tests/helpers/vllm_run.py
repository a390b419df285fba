"""Run by test_vllm_training.py, alone or under torchrun: training with tools whose turns vLLM samples, as JSON.

usage: vllm_run.py OUTPUT_FOLDER POLICY_FOLDER {full,lora,parallel,ADDRESS_OF_A_SERVER} [parent|best]

vLLM's log-probabilities of the tokens that it sampled are compared with the policy's (`sampler_gap/absolute`), so that
a small gap shows two things: the tokens belong to this very context, and vLLM has the current weights. In the last
step vLLM gets no update, which shows that a gap would be seen.

With `best` it gets all updates; after the last step the best weights, those of the first step, are loaded and
evaluated: the report says how far vLLM's weights then are from the policy's.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

import tiny
import torch
from datasets import Dataset
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer
from vllm_on_cpu import keep_weights

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.evaluation import evaluate
from a2tgpo_trl.models import base_model
from a2tgpo_trl.rollout import parsing


SYNCED_STEPS, STEPS = 2, 3
ENDS = list(range(0, 384, 4))  # a policy of random weights hardly ever samples its own end of a turn
CALLS = (2, 1, 0, 3)  # requested by the prompts of a batch, in turn: unequal on two ranks as well as on one
PARENTS_CALLS = (1, 1, 1, 0)  # equally many turns on both ranks, as the parent needs, and unequal numbers of rollouts
BEST = {
    **{"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4, "num_generations_eval": 2},
    **{"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True},
}
LORA = LoraConfig(r=8, lora_alpha=64, target_modules=["q_proj", "v_proj", "o_proj", "up_proj"])


def obey_the_prompt() -> None:
    """Treat turns as calls, as many as the prompt asks for, because a policy of random weights calls no tool."""
    parse, parents = parsing.TurnParser.parse, grpo_trainer.parse_response

    def calls(tokenizer, prefix):
        text = tokenizer.decode(prefix)
        due = int(re.search(r"calls (\d+)", text)[1]) > text.count("<tool_response>")
        return [{"function": {"name": "search", "arguments": {"query": "x"}}, "type": "function"}] if due else []

    def parse_turn(parser, ids, prefix, tools):
        message = parse(parser, ids, prefix, tools).message
        return parsing.Parsed({**message, "tool_calls": calls(parser._tokenizer, prefix)})

    def parse_response(tokenizer, ids, prefix, tools):
        message = parents(tokenizer, ids, prefix=prefix, tools=tools)
        return {**message, "tool_calls": calls(tokenizer, prefix)}

    parsing.TurnParser.parse, grpo_trainer.parse_response = parse_turn, parse_response


def without_weight_transfer() -> None:
    """Send no weights: TRL sends them to a server only by NCCL, from GPU to GPU. On a CPU the server keeps the weights
    that it has loaded, and only who gets which completion can be tested."""
    VLLMClient.init_communicator = lambda self, **_: None
    VLLMGeneration.sync_weights = lambda self: None


def settings(folder: str, way: str) -> dict:
    where = {
        "full": {"vllm_mode": "colocate"},
        "lora": {"vllm_mode": "colocate"},
        "parallel": {"vllm_mode": "colocate", "vllm_tensor_parallel_size": 2},
    }.get(way, {"vllm_mode": "server", "vllm_server_base_url": way})
    return {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": False,
        "use_vllm": True,
        "vllm_max_model_length": 512,
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 400,
        "generation_kwargs": {"stop_token_ids": ENDS},
        "max_steps": STEPS,
        "learning_rate": 0.0 if way.startswith("http") else 1e-2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "shuffle_dataset": False,
        "gradient_checkpointing": False,
        **where,
    }


def sync_for_a_while(trainer) -> None:
    generation = trainer.vllm_generation
    sync = generation.sync_weights
    generation.sync_weights = lambda: sync() if trainer.state.global_step < SYNCED_STEPS else None


def held_by_vllm(trainer) -> torch.Tensor:
    """The part of a first-layer weight that vLLM holds on this rank."""
    worker = trainer.vllm_generation.llm.llm_engine.model_executor.driver_worker
    return worker.model_runner.model.model.layers[0].self_attn.o_proj.weight


def split(trainer) -> int:
    """The number of ranks over which vLLM's weights are spread."""
    return trainer.model.model.layers[0].self_attn.o_proj.weight.numel() // held_by_vllm(trainer).numel()


def distance_to_vllm(trainer) -> float:
    """How far that weight in the policy is from vLLM's, which is rounded to 16 bits."""
    layer = base_model(trainer.model).model.layers[0].self_attn.o_proj
    policy = layer.weight
    if isinstance(layer, LoraLayer):
        policy = layer.get_base_layer().weight + layer.get_delta_weight("default")
    return (policy.detach() - held_by_vllm(trainer).float()).abs().max().item()


def best_report(trainer, folder: str) -> dict:
    """How far vLLM is from the policy before and after an evaluation of the best weights."""
    before = distance_to_vllm(trainer)
    records = evaluate(trainer, trainer.eval_dataset, Path(folder, "after.jsonl"))
    after = distance_to_vllm(trainer)
    return {"best": trainer.state.best_global_step, "rollouts": len(records), "before": before, "after": after}


def adapter_report(trainer, before: dict) -> dict:
    """Whether the weights under the adapter are unchanged, with the adapter beside them."""
    layers = [module for module in trainer.model.modules() if isinstance(module, LoraLayer)]
    base = {name: tensor for name, tensor in trainer.model.state_dict().items() if "lora_" not in name}
    assert base.keys() == {name for name in before if "lora_" not in name}
    return {
        "layers": len(layers),
        "merged": any(layer.merged for layer in layers),
        "base_moved": max((tensor - before[name]).abs().max().item() for name, tensor in base.items()),
        "adapter": max(layer.get_delta_weight("default").abs().max().item() for layer in layers),
    }


def main(folder: str, policy: str, way: str, which: str = "ours") -> None:
    if way.startswith("http"):
        without_weight_transfer()
    else:
        keep_weights()
    obey_the_prompt()
    config, trainer_class = (GRPOConfig, GRPOTrainer) if which == "parent" else (A2TGPOConfig, A2TGPOTrainer)
    calls = PARENTS_CALLS if which == "parent" else CALLS
    prompts = [f"mark {i * 7} calls {calls[i % 4]}" for i in range(4 * STEPS)]
    rows = {"prompt": [[{"role": "user", "content": text}] for text in prompts], "answer": ["Paris"] * len(prompts)}

    def reward(completions, trainer_state, **_):
        """Any reward that falls from step to step, so that the first evaluation is the best one."""
        return [float(len(messages[0]["content"]) % 3) - 10 * trainer_state.global_step for messages in completions]

    trainer = trainer_class(
        policy,
        reward,
        config(**settings(folder, way), **(BEST if which == "best" else {"save_strategy": "no"})),
        Dataset.from_dict(rows),
        eval_dataset=Dataset.from_dict({name: column[:2] for name, column in rows.items()}),
        processing_class=AutoTokenizer.from_pretrained(policy),
        tools=[tiny.search],
        peft_config=LORA if way == "lora" else None,
    )
    if which != "best":
        sync_for_a_while(trainer)
    trainer.vllm_generation.max_completion_length = 40  # of a turn, which ends long before: a server has room for it
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    records = []
    trainer.on_rollouts = records.extend
    trainer.train()
    after = trainer.model.state_dict()
    gap = "sampling/sampling_logp_difference/max" if way.startswith("http") else "sampler_gap/absolute"
    report = {
        "rank": trainer.accelerator.process_index,
        "processes": trainer.accelerator.num_processes,
        "steps": trainer.state.global_step,
        "gaps": [entry[gap] for entry in trainer.state.log_history if gap in entry],
        "ends": sorted({record["turns"][-1]["status"] for record in records}),
        "history": [entry for entry in trainer.state.log_history if "loss" in entry],
        "moved": max((tensor - before[name]).abs().max().item() for name, tensor in after.items()),
        "weights": hashlib.sha256(torch.cat([t.flatten() for t in after.values()]).numpy().tobytes()).hexdigest(),
        "turns": [len(record["turns"]) for record in records],
        "split": split(trainer) if way in ("full", "parallel") else None,
        "adapter": adapter_report(trainer, before) if way == "lora" else None,
        "best": best_report(trainer, folder) if which == "best" else None,
    }
    Path(folder, f"rank{report['rank']}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
