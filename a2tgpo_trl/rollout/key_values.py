"""keys and values of tokens that a model has read -> kept for one rollout, or joined for those that go on together.

A rollout that waits for its tools keeps its own, without padding. Rollouts that are sampled together share a tensor in
each layer. They end in the same column, so that the next tokens of all go into the next column; the columns before
shorter rollouts are masked.

    column       0   1   2   3   4  width
    rollout 0            a   b   c  |  free columns
    rollout 1    d   e   f   g   h  |

Shapes: R rollouts, H heads, L columns, D numbers of a head.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


SPARE = 64  # columns to allocate beyond those in use


class LayerKV(NamedTuple):
    """Keys and values of one layer, each (H,L,D), or (R,H,L,D) for several rollouts."""

    keys: Tensor
    values: Tensor


Kept = list[LayerKV]  # of one rollout, layer by layer
EMPTY = LayerKV(torch.empty(0), torch.empty(0))


class RoomyLayer(DynamicLayer):
    """A layer with free columns: a new token is written into the next one; its parent would copy all others."""

    def __init__(self, before: LayerKV | None = None, width: int = 0):
        """`before`: tensors of which the first `width` columns are in use."""
        super().__init__()
        self._room, self._width = before, width
        if before is not None:
            self.dtype, self.device, self.is_initialized = before.keys.dtype, before.keys.device, True
            self._show()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._room = LayerKV(key_states[:, :, :0], value_states[:, :, :0])

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self._room is not None
        new = key_states.size(2)
        if self._width + new > self._room.keys.size(2):
            self._room = LayerKV(*(_widened(part[:, :, : self._width], new + SPARE) for part in self._room))
        for part, states in zip(self._room, (key_states, value_states), strict=True):
            part[:, :, self._width : self._width + new] = states
        self._width += new
        self._show()
        return self.keys, self.values

    def _show(self) -> None:
        assert self._room is not None
        self.keys, self.values = (part[:, :, : self._width] for part in self._room)


def _widened(used: Tensor, columns: int) -> Tensor:
    room = used.new_zeros(*used.shape[:2], used.size(2) + columns, used.size(3))
    room[:, :, : used.size(2)] = used
    return room


def _of_row(layer: DynamicLayer, row: int, length: int) -> LayerKV:
    return LayerKV(layer.keys[row, :, -length:].clone(), layer.values[row, :, -length:].clone())


class JoinedKV:
    """Keys and values of rollouts that are sampled together, with `lengths` tokens that end in the last column."""

    def __init__(self) -> None:
        self.cache = Cache(layer_class_to_replicate=RoomyLayer)
        self.lengths: list[int] = []

    @property
    def width(self) -> int:
        """Columns in use."""
        return max(self.lengths, default=0)

    def mask(self, device: torch.device, new: int = 0) -> Tensor:
        """1 for the columns (R, width + new) in which a rollout has tokens, `new` further ones included."""
        width = self.width
        first = torch.tensor([width - length for length in self.lengths], device=device)
        return (torch.arange(width + new, device=device) >= first.unsqueeze(1)).long()

    def grown(self) -> None:
        """Take note that a forward has added one token to each rollout."""
        self.lengths = [length + 1 for length in self.lengths]

    def kept(self, row: int) -> Kept:
        """A copy of what the rollout in this row has."""
        return [_of_row(layer, row, self.lengths[row]) for layer in self.cache.layers]

    def select(self, rows: Sequence[int], leaving: Sequence[int] = ()) -> list[Kept]:
        """Keep only these rows. Returns what rollouts in the rows `leaving` have; only one layer is held twice."""
        lengths, before = self.lengths, self.width
        self.lengths = [lengths[row] for row in rows]
        width, layers = self.width, self.cache.layers
        left: list[Kept] = [[] for _ in leaving]
        for i, layer in enumerate(layers):
            for kept, row in zip(left, leaving, strict=True):
                kept.append(_of_row(layer, row, lengths[row]))
            layers[i] = RoomyLayer(self._chosen(layer, rows, before - width), width)
        if not rows:
            self.cache = Cache(layer_class_to_replicate=RoomyLayer)
        return left

    def _chosen(self, layer: DynamicLayer, rows: Sequence[int], cut: int) -> LayerKV:
        index = torch.tensor(rows, dtype=torch.long, device=layer.keys.device)
        return LayerKV(*(part[:, :, cut:].index_select(0, index) for part in (layer.keys, layer.values)))

    def add(self, rows: Sequence[Kept]) -> None:
        """Add rollouts as further rows. Layers are emptied once they are copied, so that only one is held twice."""
        before, number = self.width, len(self.lengths)
        self.lengths += [kept[0].keys.size(1) for kept in rows]
        width, layers = self.width, self.cache.layers if number else [DynamicLayer() for _ in rows[0]]
        for i, first in enumerate(rows[0]):
            parts = [part.new_zeros(len(self.lengths), part.size(0), width + SPARE, part.size(2)) for part in first]
            if number:
                there = layers[i]
                parts[0][:number, :, width - before : width] = there.keys
                parts[1][:number, :, width - before : width] = there.values
            for row, kept in enumerate(rows, start=number):
                for part, own in zip(parts, kept[i], strict=True):
                    part[row, :, width - own.size(1) : width] = own
            layers[i] = RoomyLayer(LayerKV(*parts), width)
            for kept in rows:
                kept[i] = EMPTY
        self.cache = Cache(layers=layers)
