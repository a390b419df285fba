"""How long a context a model reads, whatever its config calls that."""

import pytest
import tiny
import torch
from transformers import (
    BloomConfig,
    FalconMambaConfig,
    Gemma3Config,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    Mamba2Config,
    MptConfig,
    Qwen2_5_VLConfig,
    Qwen3Config,
)

from a2tgpo_trl.engines import context_of


CONTEXTS = [
    (Qwen3Config(max_position_embeddings=640), 640),
    (GPT2Config(n_positions=640), 640),
    (Qwen2_5_VLConfig(text_config={"max_position_embeddings": 640}), 640),
    (Gemma3Config(text_config={"max_position_embeddings": 640}), 640),
    (LlavaConfig(text_config=LlamaConfig(max_position_embeddings=640)), 640),
    (MptConfig(max_seq_len=640), 640),
    (BloomConfig(), None),
    (Mamba2Config(), None),
    (FalconMambaConfig(), None),
]


@pytest.mark.parametrize(("config", "tokens"), CONTEXTS, ids=lambda value: getattr(value, "model_type", value))
def test_the_longest_context_is_that_of_the_text_model_by_whatever_name(config, tokens):
    assert context_of(config) == tokens


def test_the_name_that_mpt_has_for_it_is_a_limit_indeed():
    sizes = {"vocab_size": 384, "d_model": 32, "n_layers": 1, "n_heads": 4}
    model = tiny.build(MptConfig(**sizes, max_seq_len=16), attention="eager")
    model(torch.ones(1, context_of(model.config), dtype=torch.long))
    with pytest.raises(RuntimeError, match="size"):
        model(torch.ones(1, 17, dtype=torch.long))
