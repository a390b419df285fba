"""GRPO whose policy calls tools: prompts -> rollouts of several turns, and what happened in each.

`ToolTrainer` (trainer.py) can be used by itself: it is TRL's GRPO, bit for bit on the same rollouts, with a tool loop
that limits the time of calls, tells the policy of failures, and keeps ranks with unequal numbers of turns in step.

    from a2tgpo_trl import ToolConfig, ToolTrainer

    trainer = ToolTrainer("Qwen/Qwen3-0.6B", reward, ToolConfig("outputs/tools"), dataset, tools=[search])
    trainer.train()
    records = trainer.roll_out(held_out_rows)  # prompt, turns, calls, results, rewards of each (records.py)

Rollout functions. To use your own loop, pass it as `rollout_func`. It gets the prompts of this process, each repeated
once per rollout, and returns lists with one entry per rollout. `env_mask` is 1 for tokens that the policy wrote and 0
for all others: this is how turns are told apart. `logprobs` are the log-probabilities the tokens were sampled with, or
None. Anything else that it returns is passed to rewards as an argument of the same name and kept in the records.

    import torch
    from trl.models.utils import unwrap_model_for_generation


    def rollout(prompts, trainer):
        # Whole weights, without gradient checkpointing, which would switch the key-value cache off.
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model, torch.no_grad():
            return sample(prompts, trainer.processing_class, model)


    def sample(prompts, tokenizer, model):
        out = {"prompt_ids": [], "completion_ids": [], "env_mask": [], "logprobs": None, "note": []}
        for prompt in prompts:
            ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            inputs = torch.tensor([ids], device=model.device)
            wrote = model.generate(inputs, max_new_tokens=8, do_sample=True)[0, len(ids) :]
            read = tokenizer("Go on.", add_special_tokens=False)["input_ids"]
            out["prompt_ids"].append(ids)
            out["completion_ids"].append([*wrote.tolist(), *read, *wrote.tolist()])
            out["env_mask"].append([*[1] * len(wrote), *[0] * len(read), *[1] * len(wrote)])
            out["note"].append("seen by rewards")
        return out

The trainer does not see the calls of your loop, so turn rewards that read calls are not available; `bad_format` finds
turns that were cut.

Rollouts are seeded: the same seed gives the same rollouts on one process or eight, and after a run is resumed
(`seeded_rollouts`). With `resample_limit: 2` of `A2TGPOConfig`, prompts whose groups teach nothing are rolled out
again, at most twice.

    trainer.py, sampling.py, batch.py   the trainer; its single turns; what is known of a batch so far
    settings.py, checks.py              its settings; what a user can get wrong
    tool_loop.py, rollout.py            wires rollouts into a trainer; a rollout as a state machine
    engines.py, vllm_engine.py          contexts -> sampled turns
    seeds.py                            a seed for each rollout -> what it draws
    parsing.py, failures.py, tally.py   tokens -> calls; how turns end; counts of both
    environments.py, answers.py         environments that may fail; the answers they give
    records.py, record_files.py         what happened, ready for JSON; the same in files, as JSONL or Parquet
    reading.py                          the same on a terminal
    resampling.py, rounds.py            prompts that are rolled out again; what is logged of them
    padding.py                          a batch <-> its rows
    trackers.py                         what TRL sends to trackers, in a form they accept
    sampler_gap.py, open_files.py       warnings: sampler and trainer disagree; tools leave files open
"""
