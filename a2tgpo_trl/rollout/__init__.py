"""GRPO whose policy calls tools: prompts -> rollouts of several turns, and what happened in each.

`ToolTrainer` (trainer.py) stands alone: TRL's GRPO, bit for bit on the same rollouts, with a tool loop that bounds the
time of calls, tells failures to the policy, and keeps ranks with unequal numbers of turns in step.

    from a2tgpo_trl import ToolConfig, ToolTrainer

    trainer = ToolTrainer("Qwen/Qwen3-0.6B", reward, ToolConfig("outputs/tools"), dataset, tools=[search])
    trainer.train()
    records = trainer.roll_out(held_out_rows)  # prompt, turns, calls, results, rewards of each (records.py)

Rollout functions. A loop of your own is a `rollout_func`. It gets the prompts of this process, each as often as it is
to be rolled out, and returns lists with an entry for each. `env_mask` is 1 where the policy wrote a token and 0 where
something else did: that is what tells turns apart. `logprobs` are those that the tokens were sampled with, or None.
What else it returns reaches rewards as arguments of its name, and stands in the records.

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

Its calls are unseen, so rewards of turns that read calls cannot be had of it; `bad_format` finds turns that were cut.

Rollouts are seeded: the same seed gives the same ones on one process or eight, and after a run was resumed
(`seeded_rollouts`). `resample_limit: 2` rolls prompts out again, twice at most, whose groups teach nothing.

    trainer.py, sampling.py, batch.py   the trainer; its single turns; what is known of a batch meanwhile
    settings.py, checks.py              its settings, and what a user can get wrong
    tool_loop.py, rollout.py            wires rollouts into a trainer; a rollout as a state machine
    engines.py, vllm_engine.py          contexts -> sampled turns
    seeds.py                            a seed for each rollout -> what it draws
    parsing.py, failures.py, tally.py   tokens -> calls; how turns end; counts of it
    environments.py, answers.py         environments that may fail; the answers that they give
    records.py, record_files.py         what happened, ready for JSON; files of it, as JSONL or Parquet
    reading.py                          the same on a terminal
    resampling.py, rounds.py            prompts that are rolled out again, and what is logged of them
    padding.py                          a batch <-> its rows
    trackers.py                         what TRL hands to trackers, as they take it
    sampler_gap.py, open_files.py       warnings: sampler and trainer disagree; tools leave files open
"""
