"""Small models, a tokenizer and scripted policies, all made in process."""

import importlib.resources
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config

from a2tgpo_trl.cli.bench_policy import byte_level_tokenizer


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>"]
CORPUS = [
    "system user assistant tool search question answer the capital of France is Paris <answer>Paris</answer>",
    '{"name": "search", "arguments": {"query": "capital of France"}} <tool_response> </tool_response>',
    "You are provided with function signatures within <tools></tools> XML tags:",
]


def chat_template(name: str = "qwen3.jinja") -> str:
    return importlib.resources.files("trl").joinpath("chat_templates", name).read_text()


def make_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE that knows every byte, with Qwen3's control tokens and chat template."""
    return byte_level_tokenizer(CORPUS * 4, 384, SPECIAL, template)


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0, **settings) -> PreTrainedModel:
    """A tiny Qwen3 whose predictions depend visibly on every token it sees (wide initial weights)."""
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
    }
    return build(Qwen3Config(**{**sizes, **settings}), seed=seed)


def build(config, seed: int = 0, attention: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32).eval()


def script(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, write: Callable[[int, int], str]) -> None:
    """Make `model.generate` write given texts: `write(turn, row)`, and a row keeps its number over the turns.

    A batch without tool results is a new one and numbers its rows by place; later, a row is recognised by its
    beginning, because the loop may drop some.
    """
    known: list[list[int]] = []
    turn = 0

    def generate(input_ids: torch.Tensor, attention_mask: torch.Tensor, **_) -> torch.Tensor:
        nonlocal turn
        contexts = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
        turn = turn + 1 if any("<tool_response>" in text for text in tokenizer.batch_decode(contexts)) else 0
        if turn == 0:
            known[:] = contexts
            rows = list(range(len(contexts)))
        else:
            rows = [next(i for i, ids in enumerate(known) if context[: len(ids)] == ids) for context in contexts]
        written = [tokenizer(write(turn, row), add_special_tokens=False)["input_ids"] for row in rows]
        for row, context, ids in zip(rows, contexts, written, strict=True):
            known[row] = context + ids
        width = max(map(len, written))
        padded = [ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids in written]
        return torch.cat([input_ids.cpu(), torch.tensor(padded, dtype=torch.long).view(len(written), width)], dim=1)

    model.generate = generate


def call(query: str, times: int = 1) -> str:
    one = f'<tool_call>\n{{"name": "search", "arguments": {{"query": "{query}"}}}}\n</tool_call>'
    return "\n".join([one] * times) + "<|im_end|>"


def final(answer: str) -> str:
    return f"<answer>{answer}</answer><|im_end|>"


def search(query: str) -> str:
    """Look something up.

    Args:
        query: What to look for.

    Returns:
        What was found.
    """
    return f"The {query} is Paris."


def searches(look: Callable[[str], object]) -> Callable[[str], str]:
    """A tool named `search` that calls `look`."""

    def search(query: str) -> str:
        """Look something up.

        Args:
            query: What to look for.
        """
        return look(query)  # type: ignore[return-value]  # whatever a tool may return

    return search


def architectures() -> dict[str, Callable[[], PreTrainedModel]]:
    """Tiny random models of the families that the package promises to value exactly, by name."""
    from transformers import (
        BloomConfig,
        DeepseekV3Config,
        FalconConfig,
        Gemma2Config,
        Gemma3TextConfig,
        GPT2Config,
        GPTNeoXConfig,
        GptOssConfig,
        Lfm2Config,
        LlamaConfig,
        MambaConfig,
        MistralConfig,
        OPTConfig,
        Phi3Config,
        Qwen2Config,
        Qwen3MoeConfig,
        Qwen3NextConfig,
    )

    sizes = {
        "vocab_size": 384,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
    }
    grouped = {**sizes, "num_key_value_heads": 2, "head_dim": 8}
    return {
        "llama": lambda: build(LlamaConfig(**grouped)),
        "qwen2": lambda: build(Qwen2Config(**sizes, num_key_value_heads=2)),
        "qwen3": lambda: build(Qwen3Config(**grouped)),
        "qwen3-eager": lambda: build(Qwen3Config(**grouped), attention="eager"),
        "mistral": lambda: build(MistralConfig(**grouped, sliding_window=None)),
        "mistral-sliding": lambda: build(MistralConfig(**grouped, sliding_window=8)),
        "gemma3": lambda: build(
            Gemma3TextConfig(**grouped, sliding_window=8, layer_types=["sliding_attention", "full_attention"])
        ),
        "gemma3-eager": lambda: build(
            Gemma3TextConfig(**grouped, sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
            attention="eager",
        ),
        "gpt-neox": lambda: build(GPTNeoXConfig(**sizes)),
        "gpt2": lambda: build(GPT2Config(vocab_size=384, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2)),
        "qwen3-moe": lambda: build(
            Qwen3MoeConfig(**grouped, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
        ),
        "gemma2-eager": lambda: build(
            Gemma2Config(**grouped, sliding_window=8, query_pre_attn_scalar=8, attn_logit_softcapping=2.0),
            attention="eager",
        ),
        "gpt-oss-eager": lambda: build(
            GptOssConfig(**grouped, sliding_window=8, num_local_experts=4, num_experts_per_tok=2), attention="eager"
        ),
        "deepseek-v3": lambda: build(
            DeepseekV3Config(
                **sizes,
                num_key_value_heads=4,
                q_lora_rank=16,
                kv_lora_rank=16,
                qk_nope_head_dim=8,
                qk_rope_head_dim=8,
                v_head_dim=8,
                n_routed_experts=4,
                num_experts_per_tok=2,
                n_group=1,
                topk_group=1,
                moe_intermediate_size=16,
                first_k_dense_replace=1,
            )
        ),
        "phi3": lambda: build(Phi3Config(**sizes, num_key_value_heads=2, pad_token_id=0)),
        "bloom": lambda: build(
            BloomConfig(vocab_size=384, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2), attention="eager"
        ),
        "falcon-alibi": lambda: build(
            FalconConfig(
                vocab_size=384,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                alibi=True,
                initializer_range=0.2,
            )
        ),
        "opt": lambda: build(
            OPTConfig(
                vocab_size=384,
                hidden_size=32,
                ffn_dim=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                init_std=0.2,
                word_embed_proj_dim=32,
            )
        ),
        "mamba": lambda: build(
            MambaConfig(vocab_size=384, hidden_size=32, num_hidden_layers=2, state_size=8, initializer_range=0.2),
            attention="eager",
        ),
        "lfm2-hybrid": lambda: build(
            Lfm2Config(**{**grouped, "block_ff_dim": 64}, layer_types=["conv", "full_attention"], conv_L_cache=3)
        ),
        "qwen3-next-hybrid": lambda: build(
            Qwen3NextConfig(
                **grouped,
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=16,
                shared_expert_intermediate_size=16,
                linear_num_key_heads=2,
                linear_num_value_heads=4,
                linear_key_head_dim=8,
                linear_value_head_dim=8,
                layer_types=["linear_attention", "full_attention"],
            )
        ),
    }


UNPACKABLE = ("bloom", "falcon-alibi", "mamba", "lfm2-hybrid", "qwen3-next-hybrid")


def multimodal() -> dict[str, Callable[[], PreTrainedModel]]:
    """Tiny random models that also read images, by name. Their text models read 2048 tokens."""
    from transformers import (
        AutoModelForImageTextToText,
        CLIPVisionConfig,
        Gemma3Config,
        LlamaConfig,
        LlavaConfig,
        Qwen2_5_VLConfig,
    )

    text = {
        "vocab_size": 384,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
    }
    sections = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8, "head_dim": 8}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    images = {"image_size": 8, "patch_size": 4}

    def build(config) -> PreTrainedModel:
        torch.manual_seed(0)
        return AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()

    return {
        "qwen2.5-vl": lambda: build(
            Qwen2_5_VLConfig(
                text_config={**text, "rope_parameters": sections},
                vision_config={
                    **{"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2},
                    **{"out_hidden_size": 32, "patch_size": 4, "fullatt_block_indexes": [0]},
                },
            )
        ),
        "gemma3": lambda: build(
            Gemma3Config(text_config={**text, **layers}, vision_config={**vision, **images}, mm_tokens_per_image=4)
        ),
        "llava": lambda: build(
            LlavaConfig(text_config=LlamaConfig(**text), vision_config=CLIPVisionConfig(**vision, **images))
        ),
    }
