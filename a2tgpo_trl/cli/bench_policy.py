"""a policy with random weights, tools with long descriptions, questions -> a folder with a recipe, to be timed.

A random policy still takes turns: the bias of its head gives a whole call, which is one token of the vocabulary, and
the end of a turn about the right probabilities. Rollouts differ in length and in their number of turns.
"""

import importlib.resources
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

from ..tasks import Task
from ..tasks.atlas.world import library, make_part


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
CALL = '<tool_call>\n{"name": "search_0", "arguments": {"query": "who"}}\n</tool_call>'
TOOLS = 3
TURN = 60  # tokens of a turn, on average
CALLS_PER_END = 3  # so that three of four turns have a call
SIZES = {
    # 20 million weights, for processors.
    "random": {"hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 6, "intermediate_size": 1536}
    | {"vocab_size": 8192},
    # Width, depth and vocabulary of Qwen3-0.6B, for accelerators.
    "random-0.6b": {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 3072}
    | {"num_key_value_heads": 8, "vocab_size": 151_936},
}
DESCRIPTION = (
    "Search one part of the encyclopedia, and return the documents in it that fit the words of the query best. Ask "
    "for one fact at a time, by the names that the question gives, and go on from what was found. Names of persons, "
    "companies, cities and countries are found in any part, dates and numbers in none. If nothing fits, another part "
    "may still know."
)
RECIPE = """\
model_name_or_path: {folder}/policy
task: a2tgpo_trl.cli.bench_policy:long_prompts
output_dir: {folder}/run
bf16: {bf16}
per_device_train_batch_size: 8
gradient_accumulation_steps: 1
num_generations: 8
max_completion_length: 700
max_tool_calling_iterations: 5
gradient_checkpointing: false
chat_template_kwargs: {{enable_thinking: false}}
save_strategy: "no"
report_to: none
"""


def write_recipe(folder: str, name: str = "random") -> str:
    """Write a policy of the sizes of this name and a recipe that trains it. Return the recipe's path."""
    tokenizer = make_tokenizer()
    model = make_policy(tokenizer, SIZES[name])
    for part in (tokenizer, model):
        part.save_pretrained(f"{folder}/policy")
    file = Path(folder, "recipe.yaml")
    file.write_text(RECIPE.format(folder=folder, bf16=str(torch.cuda.is_available()).lower()))
    return str(file)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return one that knows the words of DESCRIPTION and of a generated world, with a whole call as last token."""
    tokenizer = byte_level_tokenizer([DESCRIPTION, *library([make_part("train", 0)], 0)], 1000, SPECIAL)
    tokenizer.add_tokens([CALL])
    return tokenizer


def byte_level_tokenizer(
    texts: Sequence[str], size: int, special: Sequence[str], template: str | None = None
) -> PreTrainedTokenizerFast:
    """Return a BPE tokenizer of this size that knows every byte, with Qwen3's chat template unless one is given."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=list(special), show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    qwen3 = importlib.resources.files("trl").joinpath("chat_templates", "qwen3.jinja")
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=template or qwen3.read_text(),
    )


def make_policy(tokenizer: PreTrainedTokenizerFast, sizes: Mapping[str, int]) -> PhiForCausalLM:
    torch.manual_seed(0)
    config = PhiConfig(
        **sizes,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = PhiForCausalLM(config)
    words = len(tokenizer)
    with torch.no_grad():
        bias = model.lm_head.bias
        bias[:] = -1e4  # what the tokenizer does not know
        bias[len(SPECIAL) : words] = 0.0
        for token, share in ((tokenizer.eos_token_id, 1 / TURN), (words - 1, CALLS_PER_END / TURN)):
            bias[token] = math.log(share * words)
    return model


def long_prompts() -> Task:
    """Return a task of questions with long tool descriptions, and a reward that differs between rollouts."""
    questions = [f"Who is the president of country {number}?" for number in range(256)]
    rows = [{"prompt": [{"role": "user", "content": text}], "answer": "Lututh Pogom"} for text in questions]
    return Task(Dataset.from_list(rows), tools=[_tool(number) for number in range(TOOLS)], reward_funcs=[odd_length])


def odd_length(completions, **_) -> list[float]:
    return [float(len(str(completion)) % 2) for completion in completions]


def _tool(number: int) -> Callable[[str], str]:
    def search(query: str) -> str:
        return DESCRIPTION[: 40 + 37 * (len(query) + number) % 200]

    search.__name__ = f"search_{number}"
    search.__doc__ = f"{DESCRIPTION}\n\nArgs:\n    query: The names and words to look for, as the question has them."
    return search
