"""Sampling with a transformers model: contexts -> turns, each as soon as it is finished; nothing is read twice.

    with unwrap_model_for_generation(...) as model:
        engine = TransformersStream(model, sampling, ...)
        submit(key, context) ... collect() -> [Sample], until has_work() is False

`generate` reads a whole context at every turn and continues all rows until the last one stops. Here a rollout's keys
and values are kept while its tools are called, so that only new tokens are read; identical contexts, such as the
prompts of a group, are read once; and rows whose turn has ended leave the batch. Tokens are drawn by the same
processors, from the same seeds.

    waiting ----read----> live --sample, one token of each row--> ended: a Sample, and what is kept of it
       ^                   |
       +---- no room ------+

Tokens that are to be scored after a context (`Tail`) are read together with it, so they cost only themselves.

`token_budget` bounds the columns held for rows being sampled and for rollouts waiting for tools. When it is full, what
is kept of those that have waited longest is dropped and read again later; then rows wait. One row always goes on.
"""

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache

from ..models import logits_of
from .drawing import Sampling
from .engines import Engine, Sample, Seeds, Tail, TailScore, TailScores, context_of
from .key_values import JoinedKV, Kept, LayerKV
from .seeds import drawn_tokens


READ_AT_ONCE = 16384  # tokens in one forward that reads, padding included
LOGITS_AT_ONCE = 512  # those of them whose logits are computed: each has one for every word of the vocabulary
# Waiting rows are read once there are this many per live row: reading takes a separate forward.
JOIN_AT = 0.5
# Ended rows leave the batch once there are this many per row in it: removing them copies the others.
LEAVE_AT = 0.125


@dataclass
class _Turn:
    """A turn that is being sampled. `kept`: keys and values of its first `read` tokens."""

    key: int
    tokens: list[int]
    start: int  # length of the context
    limit: float
    stream: random.Random | None
    tail: Tail | None = None
    kept: Kept | None = None

    @property
    def read(self) -> int:
        return 0 if self.kept is None else self.kept[0].keys.size(1)

    @property
    def unread(self) -> list[int]:
        return self.tokens[self.read :]

    @property
    def identity(self) -> Any:
        """Equal for turns with the same tokens and tail, as groups often have: one forward serves all of them."""
        return tuple(self.tokens), self.tail and (tuple(self.tail.ids), tuple(self.tail.gold))

    @property
    def tail_ids(self) -> Sequence[int]:
        return () if self.tail is None else self.tail.ids

    @property
    def gold(self) -> list[int]:
        """The tokens of the tail that are scored."""
        return (
            [] if self.tail is None else [id for id, gold in zip(self.tail.ids, self.tail.gold, strict=True) if gold]
        )

    @property
    def wanted(self) -> list[int]:
        """Where logits are wanted among unread tokens and tail: after the context, and before each gold token."""
        last = len(self.unread) - 1
        golden = [last + i for i, gold in enumerate(() if self.tail is None else self.tail.gold) if gold]
        return sorted({last, *golden})


class _Parked(NamedTuple):
    """What is kept of a rollout while its tools are called."""

    tokens: list[int]
    kept: Kept


@dataclass
class _Live:
    """The rows of the batch: their turns, keys and values, and the scores of their next tokens (R,V)."""

    turns: list[_Turn | None] = field(default_factory=list)  # None: its turn has ended
    joined: JoinedKV = field(default_factory=JoinedKV)
    logits_RV: Tensor | None = None

    @property
    def rows(self) -> list[int]:
        return [row for row, turn in enumerate(self.turns) if turn is not None]

    def add(self, rows: Sequence[tuple[_Turn, "_Reading"]]) -> None:
        self.turns += [turn for turn, _ in rows]
        logits_NV = torch.stack([reading.logits_V for _, reading in rows])
        self.logits_RV = logits_NV if self.logits_RV is None else torch.cat([self.logits_RV, logits_NV])
        self.joined.add([reading.kept for _, reading in rows])

    def select(self, rows: Sequence[int], leaving: Sequence[int] = ()) -> list[Kept]:
        """Keep only these rows. Returns what rollouts in the rows `leaving` have."""
        if len(rows) == len(self.turns):
            return []
        assert self.logits_RV is not None
        self.turns = [self.turns[row] for row in rows]
        self.logits_RV = self.logits_RV[torch.tensor(rows, dtype=torch.long, device=self.logits_RV.device)]
        return self.joined.select(rows, leaving)


class TransformersStream(Engine):
    """Samples the turns of one batch of rollouts, with a model whose weights do not change meanwhile."""

    lockstep = False

    def __init__(
        self,
        model: nn.Module,
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        *,
        token_budget: int,
        device: torch.device,
        most_rows: int | None = None,
        tails: Sequence[Tail] | None = None,
        temperature: float = 1.0,
    ):
        """`tails`: what to score after each context of a rollout, by its key, if it fits, at this `temperature`."""
        self._model, self._sampling, self._seeds = model, sampling, Seeds(seeds)
        self._device, self._most_read = device, context_of(model.config) or sys.maxsize
        self._budget, self._most_rows, self._tails, self._temperature = token_budget, most_rows, tails, temperature
        self._waiting: list[_Turn] = []
        self._live = _Live()
        self._parked: dict[int, _Parked] = {}
        self._scores: TailScores = {}

    @property
    def scores(self) -> TailScores:
        return self._scores

    def submit(self, key: int, context: list[int], max_tokens: int | None = None) -> None:
        seed = self._seeds.next(key)
        limits = [limit for limit in (max_tokens, self._sampling.max_tokens) if limit is not None]
        stream = None if seed is None else random.Random(seed)
        turn = _Turn(key, list(context), len(context), min(limits, default=float("inf")), stream)
        if self._tails is not None and len(context) + len(self._tails[key].ids) - 1 <= self._most_read:
            turn.tail = self._tails[key]
        parked = self._parked.pop(key, None)
        if parked is not None and len(parked.tokens) < len(context) and context[: len(parked.tokens)] == parked.tokens:
            turn.kept = parked.kept
        self._waiting.append(turn)

    def forget(self, key: int) -> None:
        self._parked.pop(key, None)

    def has_work(self) -> bool:
        return bool(self._waiting or self._live.rows)

    @torch.no_grad()
    def collect(self, *, wait: bool = True) -> list[Sample]:
        samples: list[Sample] = []
        while self.has_work() and not samples:
            self._join()
            samples = self._sample()
            if not wait:
                break
        return samples

    # ---- live rows: one token each

    def _sample(self) -> list[Sample]:
        live, ended = self._live, {}
        for row, token in zip(live.rows, self._draw(), strict=True):
            turn = live.turns[row]
            assert turn is not None
            turn.tokens.append(token)
            if token in self._sampling.end_ids or len(turn.tokens) - turn.start >= turn.limit:
                ended[row], live.turns[row] = turn, None
        if live.turns.count(None) >= LEAVE_AT * len(live.turns):
            kept = live.select(live.rows, [*ended])
        else:
            kept = [live.joined.kept(row) for row in ended]
        for turn, of_turn in zip(ended.values(), kept, strict=True):
            self._parked[turn.key] = _Parked(turn.tokens[:-1], of_turn)  # the last is unread
        self._make_room(columns=len(live.turns))
        if live.rows:
            self._read_next(live)
        return [Sample(turn.key, turn.tokens[turn.start :], None) for turn in ended.values()]

    def _draw(self) -> list[int]:
        """The next token of each live row."""
        live, sampling = self._live, self._sampling
        assert live.logits_RV is not None
        scores_RV = live.logits_RV[torch.tensor(live.rows, device=self._device)]
        scores_RV = sampling.processors(torch.empty(len(scores_RV), 0, dtype=torch.long), scores_RV)
        if not sampling.draws:
            return scores_RV.argmax(dim=-1).tolist()
        streams = [turn.stream for turn in live.turns if turn is not None]
        if None in streams:
            return scores_RV.softmax(dim=-1).multinomial(1).squeeze(1).tolist()
        tokens_R, total_R = drawn_tokens(scores_RV, [stream.random() for stream in streams if stream is not None])
        drawn = tokens_R.masked_fill(total_R.isnan(), -1).tolist()  # one wait for the device, not two
        if -1 in drawn:
            raise RuntimeError(
                "The policy's probabilities are not numbers: its weights contain NaN, or have diverged."
            )
        return drawn

    def _read_next(self, live: _Live) -> None:
        """Read the last token of each row; rows that have ended but not yet left read any token."""
        last = [0 if turn is None else turn.tokens[-1] for turn in live.turns]
        ids_R1, lengths_R1 = (
            torch.tensor(of_rows, device=self._device).unsqueeze(1) for of_rows in (last, live.joined.lengths)
        )
        mask = live.joined.mask(self._device, new=1)
        live.logits_RV = self._forward(ids_R1, mask, lengths_R1, live.joined.cache).squeeze(1)
        live.joined.grown()

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Logits of the tokens that the head is given; afterwards the cache holds all tokens."""
        found = self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        return found.logits.float()

    # ---- room

    @property
    def held(self) -> int:
        """Columns held for rows being sampled, masked ones included, and for rollouts that wait."""
        parked = sum(len(one.tokens) for one in self._parked.values())
        waiting = sum(turn.read for turn in self._waiting)
        return parked + waiting + len(self._live.turns) * self._live.joined.width

    def _make_room(self, columns: int) -> None:
        """Make room for more columns: drop what is kept for rollouts that wait, then let the last rows wait."""
        while self.held + columns > self._budget and self._parked:
            self._parked.pop(next(iter(self._parked)))
        for waiting in reversed(self._waiting):
            if self.held + columns > self._budget:
                waiting.kept = None
        live = self._live
        while self.held + len(live.turns) > self._budget and len(live.rows) > 1:
            last = live.rows[-1]
            turn = live.turns[last]
            assert turn is not None
            self._waiting.insert(0, turn)
            live.select(live.rows[:-1])

    def _fits(self, joining: Sequence[_Turn], turn: _Turn) -> bool:
        """Whether there is room for this turn beside these, with one more token of each."""
        rows = len(self._live.turns) + len(joining) + 1
        if rows > (self._most_rows or rows):
            return False
        width = max(self._live.joined.width, *(len(one.tokens) for one in (*joining, turn))) + 1
        more = rows * width - len(self._live.turns) * self._live.joined.width
        if self.held + more > self._budget:
            self._make_room(more)
        return rows == 1 or self.held + more <= self._budget

    # ---- waiting rows: read, and join the others

    def _join(self) -> None:
        live = self._live
        if not self._waiting or len(self._waiting) < JOIN_AT * len(live.rows):
            return
        live.select(live.rows)
        joining: list[_Turn] = []
        while self._waiting and self._fits(joining, self._waiting[0]):
            joining.append(self._waiting.pop(0))
        alike: dict[Any, list[_Turn]] = {}
        for turn in joining:
            alike.setdefault(turn.identity, []).append(turn)
        found: list[tuple[_Turn, _Reading]] = []
        for chunk in _chunks([max(turns, key=lambda turn: turn.read) for turns in alike.values()]):
            for one, reading in zip(chunk, self._read(chunk), strict=True):
                for turn in alike[one.identity]:
                    self._take(turn, reading)
                    found.append((turn, reading))
        if found:
            live.add(found)

    def _take(self, turn: _Turn, reading: "_Reading") -> None:
        if reading.score is not None:
            self._scores.setdefault(turn.key, {})[turn.start] = reading.score
        turn.kept, turn.tail = None, None  # it is in the batch now, and its tail is scored once

    def _read(self, turns: Sequence[_Turn]) -> list["_Reading"]:
        """Read the unread tokens of these turns, and their tails, in one forward."""
        read, unread, places = ([getattr(turn, name) for turn in turns] for name in ("read", "unread", "wanted"))
        rows = [[*of_row, *turn.tail_ids[:-1]] for turn, of_row in zip(turns, unread, strict=True)]
        joined = JoinedKV()
        if turns[0].kept is not None:
            joined.add([turn.kept for turn in turns if turn.kept is not None])
        width = joined.width
        ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(self._device)
        new = torch.arange(ids.size(1), device=self._device)
        sizes, before = (
            torch.tensor(of_rows, device=self._device).unsqueeze(1) for of_rows in (list(map(len, rows)), read)
        )
        mask = (new < sizes).long()
        if width:
            mask = torch.cat([joined.mask(self._device), mask], dim=1)
        wanted = torch.zeros_like(ids).bool()
        for row, of_row in enumerate(places):
            wanted[row, of_row] = True
        with logits_of(self._model, wanted):
            (found,) = self._forward(ids, mask, before + new, joined.cache)
        logits = found.split(list(map(len, places)))
        totals = self._totals(turns, logits)
        readings = []
        for row, turn in enumerate(turns):
            columns = slice(width - read[row], width + len(unread[row]))
            kept = [
                LayerKV(layer.keys[row, :, columns], layer.values[row, :, columns]) for layer in joined.cache.layers
            ]
            score = None if turn.tail is None else TailScore(totals[row], sum(turn.tail.gold))
            readings.append(_Reading(kept, logits[row][0], score))
        return readings

    def _totals(self, turns: Sequence[_Turn], logits: Sequence[Tensor]) -> list[float]:
        """The sum of the log-probabilities of each tail's gold tokens."""
        totals = []
        for turn, logits_WV in zip(turns, logits, strict=True):
            gold = turn.gold
            logits_GV = logits_WV[-len(gold) :] if gold else logits_WV[:0]
            logps_GV = (logits_GV / self._temperature).log_softmax(dim=-1)
            index = torch.tensor(gold, dtype=torch.long, device=self._device)
            totals.append(logps_GV.gather(1, index.unsqueeze(1)).sum())
        return torch.stack(totals).tolist()


class _Reading(NamedTuple):
    """What a forward found for a context: what is kept, the logits of the next token, the score of the tail."""

    kept: Kept
    logits_V: Tensor
    score: TailScore | None


def _chunks(turns: Sequence[_Turn]) -> Iterator[list[_Turn]]:
    """Groups of turns to read in one forward: of similar lengths, and either none or all with kept tokens."""
    chunk: list[_Turn] = []
    for turn in sorted(turns, key=lambda turn: (turn.kept is None, -len(turn.unread))):
        more = [*chunk, turn]
        padded = len(more) * (max(len(one.unread) + len(one.tail_ids) for one in more))
        wanted = sum(len(one.wanted) for one in more)
        if chunk and (
            (chunk[0].kept is None) != (turn.kept is None) or padded > READ_AT_ONCE or wanted > LOGITS_AT_ONCE
        ):
            yield chunk
            more = [turn]
        chunk = more
    if chunk:
        yield chunk
