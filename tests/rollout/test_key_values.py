"""Keys and values of rollouts that are sampled together: how much memory joining, selecting and sampling take."""

import random
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LogitsProcessorList, Qwen3Config, Qwen3ForCausalLM

from a2tgpo_trl.rollout.drawing import Sampling
from a2tgpo_trl.rollout.key_values import JoinedKV, Kept, LayerKV
from a2tgpo_trl.rollout.transformers_engine import TransformersStream


LAYERS, TOKENS = 16, 1000


class HeldBytes(TorchDispatchMode):
    """Counts the bytes of the tensors made inside that are still alive, and the most there were."""

    def __init__(self):
        super().__init__()
        self.now, self.most = 0, 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def rollouts(number: int, value: float) -> list[Kept]:
    def part() -> torch.Tensor:
        return torch.full((2, TOKENS, 8), value)

    return [[LayerKV(part(), part()) for _ in range(LAYERS)] for _ in range(number)]


def test_joining_and_selecting_rollouts_hold_little_more_than_one_layer_twice():
    with HeldBytes() as held:
        joined, first = JoinedKV(), rollouts(8, 1.0)
        before = held.now
        joined.add(first)
        assert held.most < 1.2 * before  # one layer of 16, and the free columns
        further = rollouts(8, 2.0)
        before = held.most = held.now
        joined.add(further)
        assert held.most < 1.2 * before
        before = held.most = held.now
        joined.select([1, 3, 8])
        assert held.most < 1.1 * before and held.now < 0.3 * before
    assert [layer.keys[:, 0, -1, 0].tolist() for layer in joined.cache.layers] == [[1.0, 1.0, 2.0]] * LAYERS


def test_stream_holds_little_more_than_its_token_budget():
    # All rollouts end each turn at the same token, and come back together. Keys and values outweigh all else.
    heads, width, budget = 4, 32, 9216
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 8, "num_attention_heads": heads}
    config = Qwen3Config(vocab_size=64, num_key_value_heads=heads, head_dim=width, **sizes)
    sampling = Sampling(LogitsProcessorList(), frozenset(), 4, draws=False)
    model = Qwen3ForCausalLM(config).eval()
    stream = TransformersStream(model, sampling, token_budget=budget, device=torch.device("cpu"))
    rng = random.Random(0)

    def tokens(number: int) -> list[int]:
        return [rng.randrange(64) for _ in range(number)]

    contexts = [tokens(480) for _ in range(16)]
    with HeldBytes() as held:
        for _ in range(3):
            for key, context in enumerate(contexts):
                stream.submit(key, context)
            samples = []
            while len(samples) < len(contexts):
                samples += stream.collect()
            for sample in samples:
                contexts[sample.key] += [*sample.ids, *tokens(20)]
    of_token = config.num_hidden_layers * heads * width * 2 * 4
    assert 0.8 * budget < held.most / of_token < 1.4 * budget
