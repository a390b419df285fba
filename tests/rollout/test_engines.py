"""How long a context a model reads, whatever its config calls it; how many tokens an engine is asked for."""

import sys
from types import SimpleNamespace

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

from a2tgpo_trl.rollout.engines import LockStep, Request, context_of
from a2tgpo_trl.rollout.vllm_engine import context_limit


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
def test_context_length_is_read_from_the_text_config_under_any_name(config, tokens):
    assert context_of(config) == tokens


def test_mpt_max_seq_len_is_a_hard_limit():
    sizes = {"vocab_size": 384, "d_model": 32, "n_layers": 1, "n_heads": 4}
    model = tiny.build(MptConfig(**sizes, max_seq_len=16), attention="eager")
    model(torch.ones(1, context_of(model.config), dtype=torch.long))
    with pytest.raises(RuntimeError, match="size"):
        model(torch.ones(1, 17, dtype=torch.long))


def test_server_needs_room_for_a_turn_and_other_engines_for_a_token():
    client = SimpleNamespace(get_server_info=lambda: {"model_config": {"max_model_len": 8192}})
    server = SimpleNamespace(mode="server", vllm_client=client, generation_kwargs={}, max_completion_length=1024)
    ranks = SimpleNamespace(index=0, first_text=lambda text: text, max=lambda number: number)
    assert context_limit(server, Qwen3Config(), ranks) == (8192, 1024)
    assert context_limit(None, Qwen3Config(max_position_embeddings=640), ranks) == (640, 1)
    assert context_limit(None, BloomConfig(), ranks) == (sys.maxsize, 1)


class TwoRanks:
    """The first of two ranks; the other has these requests, and samples token 9 for each of its share."""

    index, number = 0, 2

    def __init__(self, others: list):
        self._others = [others, [([9], None)] * 2]

    def max(self, number: int) -> int:
        return number

    def gather_lists(self, items: list) -> list[list]:
        return [items, self._others.pop(0)]


@pytest.mark.parametrize(("rooms", "asked"), [((5, 3), 7), ((5, 30), 30), ((None, 3), None)])
def test_shared_engine_is_asked_for_the_largest_remaining_room(rooms, asked):
    seen = []

    def generate(requests):
        seen.extend(requests)
        return [[8]] * len(requests), None

    engine = LockStep(generate, TwoRanks([Request([4], max_tokens=7), Request([4, 4], max_tokens=2)]))
    for key, room in enumerate(rooms):
        engine.submit(key, [key], room)
    assert [sample.ids for sample in engine.collect()] == [[8], [8]]
    assert {request.max_tokens for request in seen} == {asked}
