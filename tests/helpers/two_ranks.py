"""Run by test_distributed.py, alone or under torchrun: one generation batch, and what each rank made of it, as JSON.

usage: two_ranks.py OUTPUT_FOLDER PER_DEVICE_BATCH TOKEN_BUDGET
"""

import json
import sys
from pathlib import Path

import tiny
import torch
from datasets import Dataset

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer


MASKS = [
    [1, 1, 0, 0, 1, 0, 0, 1, 1],
    [1, 0, 0, 0, 1],
    [1, 1, 1],
    [1, 0, 1, 0, 1, 0],
    [1] * 3 + [0] * 40 + [1] * 5,
    [1, 0, 1, 1],
    [0, 1, 0, 1],
    [1, 0, 0],
]


def rollout(prompts: list, trainer: A2TGPOTrainer) -> dict:
    """The rollouts of this rank's share of the batch: the same eight for any number of ranks."""
    first = trainer.accelerator.process_index * len(prompts)
    mine = range(first, first + len(prompts))
    return {
        "prompt_ids": [[5 + i, 6, 7] for i in mine],
        "completion_ids": [[(13 * i + 7 * j) % 300 for j in range(len(MASKS[i]))] for i in mine],
        "logprobs": [[-1.0] * len(MASKS[i]) for i in mine],
        "env_mask": [MASKS[i] for i in mine],
        "number": list(mine),
    }


def main(folder: str, batch_size: str, token_budget: str) -> None:
    tokenizer = tiny.make_tokenizer()
    args = A2TGPOConfig(
        folder,
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=int(batch_size),
        num_generations=4,
        num_iterations=2,
        max_steps=2,
        learning_rate=1e-3,
        epsilon=0.2,  # so that some tokens of the second step are clipped, and others are not
        epsilon_high=0.2,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        shuffle_dataset=False,
        gain_token_budget=int(token_budget),
        importance_sampling_level="turn",
        loss_type="grpo",
        record_every=2,
    )
    dataset = Dataset.from_dict({"prompt": ["one", "two"], "answer": ["Paris", "Rome"]})
    trainer = A2TGPOTrainer(
        tiny.make_model(tokenizer),
        lambda number, **_: [float(i * i % 5) for i in number],
        args,
        dataset,
        processing_class=tokenizer,
        rollout_func=rollout,
    )
    credited = {}
    assign = trainer.credit_batch

    def watch(output: dict, batch) -> dict:
        values = batch.turn_scores.values_BK.tolist()
        output = assign(output, batch)
        for row, (tokens, turns) in enumerate(zip(output["completion_ids"], output["turn_index"], strict=True)):
            length = int(output["completion_mask"][row].sum())
            credited["-".join(map(str, tokens[:length].tolist()))] = {
                "values": [v for v in values[row] if v == v],
                "turns": turns[:length].tolist(),
                "advantages": output["advantages"][row, :length].tolist(),
                "clip_scale": output["clip_scale"][row, :length].tolist(),
                "old_logps": output["old_per_token_logps"][row, :length].tolist(),
            }
        return output

    trainer.credit_batch = watch
    trainer.train()
    history, second = trainer.state.log_history[:2]
    report = {
        "processes": trainer.accelerator.num_processes,
        "type": str(trainer.accelerator.distributed_type),
        "wrapped": type(trainer.model_wrapped).__name__,
        "credited": credited,
        "forwards": history.get("gain/forwards"),
        "metrics": {key: value for key, value in history.items() if key.split("/")[0] in ("gain", "value", "turns")},
        "ratios": {key: value for key, value in second.items() if key.startswith(("turn_ratio/", "clip_fraction/"))},
        "weights": torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).double().norm().item(),
        "sample": trainer.model.lm_head.weight.detach().flatten()[:200].tolist(),
    }
    Path(folder, f"rank{trainer.accelerator.process_index}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
