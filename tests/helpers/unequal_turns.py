"""Run by test_ranks_in_step.py on two ranks: tool turns that differ by rank, and what each made of them, as JSON.

usage: unequal_turns.py OUTPUT_FOLDER {ours,parent} {ddp,zero3,fsdp2} CASE [SECONDS_OF_A_SLOW_TOOL]

The model is a tiny Qwen3 whose layers really run, sharded or not. A script that reads only the context then overwrites
its last logits. So any rank may continue a context, in any company, and the rollout comes out right; a rollout that is
continued from another's context carries the other's mark.
"""

import hashlib
import itertools
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import tiny
import torch
from backends import backend_settings, held, whole, zero_stage
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer


# Tool calls of each prompt of a batch, and letters at the end of its answer: two prompts of rank 0, two of rank 1.
# The second batch has them in reverse order, so that the other rank has the work.
CASES = {
    "equal": ([2, 2, 2, 2], [3, 3, 3, 3]),
    "one_side": ([0, 0, 6, 6], [3, 3, 3, 3]),
    "mixed": ([0, 3, 1, 2], [3, 3, 12, 30]),
    "lengths": ([0, 0, 0, 0], [3, 3, 12, 40]),
    "slow": ([1, 0, 1, 2], [3, 3, 3, 3]),
    "killed": ([1, 1, 1, 2], [3, 3, 3, 3]),
}
GENERATIONS = 2
STEPS = 2
PROMPT = r"mark (\d+) calls (\d+) letters (\d+)"
HEARD = r"\d+ is heard as (\d+)"
ANY_LETTER = -1


class Scripted(Qwen3ForCausalLM):
    """Generates one call of `echo` after another, as many as its prompt asks for, with the prompt's mark; then an
    answer with the mark, everything that it heard and some letters that it chooses."""

    tokenizer: PreTrainedTokenizerFast
    writes = False

    def generate(self, *args, **kwargs):
        self.writes = True
        try:
            return super().generate(*args, **kwargs)
        finally:
            self.writes = False

    def prepare_inputs_for_generation(self, input_ids, *args, attention_mask=None, **kwargs):
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask[:, : input_ids.shape[1]]
        self.contexts = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, real, strict=True)]
        return super().prepare_inputs_for_generation(input_ids, *args, attention_mask=attention_mask, **kwargs)

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        if self.writes:
            for row, context in enumerate(self.contexts):
                output.logits[row, -1] = -1e4
                output.logits[row, -1, self.next_ids(context)] = 0.0
        return output

    def next_ids(self, context: list[int]) -> list[int]:
        """The tokens that may come next, equally likely."""
        begin = len(context) - 1 - context[::-1].index(self.tokenizer.convert_tokens_to_ids("<|im_start|>"))
        begin += 1 + len(self.encode("assistant\n"))
        text = self.tokenizer.decode(context[:begin])
        mark, calls, letters = re.search(PROMPT, text).groups()
        heard = re.findall(HEARD, text)
        if len(heard) < int(calls):
            call = f'<tool_call>\n{{"name": "echo", "arguments": {{"mark": "{mark}"}}}}\n</tool_call>'
            wanted = self.encode(call)
        else:
            wanted = self.encode(" ".join(["answer", mark, *heard, ""])) + [ANY_LETTER] * int(letters)
        wanted.append(self.tokenizer.eos_token_id)
        written = context[begin:]
        for token, want in zip(written, wanted, strict=False):
            assert token in (self.letters() if want == ANY_LETTER else [want]), self.tokenizer.decode(context)
        if len(written) >= len(wanted):
            return [self.tokenizer.eos_token_id]  # a row that has ended, beside one that has not
        want = wanted[len(written)]
        return self.letters() if want == ANY_LETTER else [want]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def letters(self) -> list[int]:
        return self.tokenizer.convert_tokens_to_ids(list("abcdefgh"))


def scripted_model(tokenizer: PreTrainedTokenizerFast) -> Scripted:
    config = tiny.make_model(tokenizer).config
    torch.manual_seed(0)
    model = Scripted(config)
    model.tokenizer = tokenizer
    return model


def prompts(case: str) -> Dataset:
    """As many prompts as the steps take, in order, each with its own mark."""
    calls, letters = CASES[case]
    rows = [
        {"mark": str(10 * step + 10 + place), "calls": calls[order[place]], "letters": letters[order[place]]}
        for step in range(STEPS)
        for order in [range(4) if step % 2 == 0 else range(3, -1, -1)]
        for place in range(4)
    ]
    for row in rows:
        text = "mark {mark} calls {calls} letters {letters}".format(**row)
        row["prompt"] = [{"role": "user", "content": text}]
        row["answer"] = f"answer {row['mark']}"
    return Dataset.from_list(rows)


def make_echo(folder: Path, case: str, rank: int, seconds: float):
    heard = itertools.count(1000 * rank + 1)

    def echo(mark: str) -> str:
        """Say a mark.

        Args:
            mark: The mark.

        Returns:
            What was heard.
        """
        number = next(heard)
        (folder / f"asked{rank}").touch()
        if rank == 1 and case == "slow" and number == 1001:
            time.sleep(seconds)
        if rank == 1 and case == "killed":
            note = folder / f"killed.{number}"  # other threads get here too, and the kill interrupts them
            note.write_text(str(time.time()))
            note.rename(folder / "killed")
            os.kill(os.getpid(), signal.SIGKILL)
        return f"{mark} is heard as {number}"

    return echo


def main(folder: str, which: str, backend: str, case: str, seconds: str = "0") -> None:
    rank = int(os.environ["RANK"])
    tokenizer = tiny.make_tokenizer()
    config, trainer_class = {"ours": (A2TGPOConfig, A2TGPOTrainer), "parent": (GRPOConfig, GRPOTrainer)}[which]
    args = config(
        folder,
        bf16=False,
        per_device_train_batch_size=4,
        num_generations=GENERATIONS,
        max_steps=STEPS,
        max_completion_length=900,
        learning_rate=1e-3,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        shuffle_dataset=False,
        **backend_settings(backend),
    )
    model = scripted_model(tokenizer)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    rollouts = []

    def reward(completions: list, mark: list, calls: list, letters: list, **_) -> list[float]:
        for messages, *asked in zip(completions, mark, calls, letters, strict=True):
            made = [call for message in messages for call in message.get("tool_calls") or []]
            rollouts.append(
                {
                    "asked": asked,
                    "called": [call["function"]["arguments"]["mark"] for call in made],
                    "heard": [message["content"] for message in messages if message["role"] == "tool"],
                    "answer": messages[-1]["content"],
                }
            )
        return [float(i % 2) for i in range(len(completions))]

    trainer = trainer_class(
        model,
        reward,
        args,
        prompts(case),
        processing_class=tokenizer,
        tools=[make_echo(Path(folder), case, rank, float(seconds))],
    )
    score = trainer._generate_and_score_completions

    def watch(inputs: list) -> dict:
        first = len(rollouts)
        output = score(inputs)
        tokens = (output["completion_ids"], output["completion_mask"], output["tool_mask"])
        for rollout, ids, real, sampled in zip(rollouts[first:], *tokens, strict=True):
            rollout["sampled"] = tokenizer.decode(ids[(real * sampled).bool()])
            rollout["given"] = tokenizer.decode(ids[(real * (1 - sampled)).bool()])
        return output

    trainer._generate_and_score_completions = watch
    trainer.train()
    parameters = list(trainer.model.parameters())
    after = [whole(parameter) for parameter in parameters]
    report = {
        "rank": trainer.accelerator.process_index,
        "processes": trainer.accelerator.num_processes,
        "type": trainer.accelerator.distributed_type.value,
        "wrapped": type(trainer.model_wrapped).__name__,
        "parameters": sorted({type(parameter).__name__ for parameter in parameters}),
        "zero_stage": zero_stage(trainer),
        "held": sum(map(held, parameters)) / sum(parameter.numel() for parameter in after),
        "steps": trainer.state.global_step,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "moved": max((a - b).abs().max().item() for a, b in zip(after, before, strict=True)),
        "weights": hashlib.sha256(torch.cat([a.flatten() for a in after]).numpy().tobytes()).hexdigest(),
        "norm": torch.cat([a.flatten() for a in after]).double().norm().item(),
        "rollouts": rollouts,
    }
    Path(folder, f"rank{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
