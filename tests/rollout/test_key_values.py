"""Keys and values of rollouts that are sampled together: how much memory joining and selecting them takes."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from a2tgpo_trl.rollout.key_values import JoinedKV, Kept, LayerKV


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
