"""A shipped policy that answers immediately, without its tools."""

from collections.abc import Sequence
from pathlib import Path


def answers_at_once(policy: Path, prompts: Sequence, tools: Sequence, tokens: int) -> list[str]:
    """What the policy writes with the most likely tokens, starting with the answer tag."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(policy), AutoModelForCausalLM.from_pretrained(policy)
    texts = [
        tokenizer.apply_chat_template(
            prompt, tools=list(tools), add_generation_prompt=True, enable_thinking=False, tokenize=False
        )
        + "<answer>"
        for prompt in prompts
    ]
    given = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False)
    ids = model.generate(**given, max_new_tokens=tokens, do_sample=False)[:, given["input_ids"].size(1) :]
    return [f"<answer>{text}" for text in tokenizer.batch_decode(ids)]
