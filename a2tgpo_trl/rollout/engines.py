"""contexts -> sampled turns: the one place where rollouts meet a generation engine.

    submit(key, context) ... collect() -> [Sample(key, token ids, log-probabilities)], until nothing is pending

A rollout submits its context when it is its turn to speak, and gets one sample back. How requests are batched is the
engine's business alone. A *lock-step* engine samples all that is pending in one call, so the loop fills it up first
(all tools of the turn have answered); a *streaming* engine returns what is finished and goes on with the rest, so that
a rollout whose tools have answered need not wait for the others.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from transformers import PreTrainedConfig

from ..ranks import Ranks
from .seeds import seed_of


LogProbs = list[float | None]  # None where the engine has no number for a token
# Under which name a config says how many tokens its model reads. MPT makes its biases for so many.
CONTEXT_NAMES = ("max_position_embeddings", "max_seq_len")


def context_of(config: PreTrainedConfig) -> int | None:
    """Tokens that a model of this config reads at most; None where nothing limits them, as in Bloom and Mamba.

    Of a multimodal model, what counts is its text model.
    """
    text = config.get_text_config()
    limits = [getattr(text, name, None) for name in CONTEXT_NAMES]
    return next((limit for limit in limits if limit is not None), None)


class ContextLimit(NamedTuple):
    """What an engine reads: so many tokens of a rollout, prompt included, of which as many as a `turn` may have must
    be left when it is asked for one."""

    tokens: int
    turn: int = 1


class Request(NamedTuple):
    """A context to go on from."""

    context: list[int]
    seed: int | None = None  # of what is drawn for it; None: drawn from the stream of all
    max_tokens: int | None = None  # beyond these, what is sampled is thrown away; None: nothing is


def most_tokens(requests: Sequence[Request]) -> int | None:
    """Tokens that an engine may be asked for where one number holds for all; None where a request has no limit."""
    limits = [request.max_tokens for request in requests if request.max_tokens is not None]
    return max(limits) if len(limits) == len(requests) else None


Generate = Callable[[list[Request]], tuple[list[list[int]], list[LogProbs] | None]]


class Sample(NamedTuple):
    """A sampled turn of the rollout `key`."""

    key: int
    ids: list[int]
    logprobs: LogProbs | None


class Tail(Protocol):
    """Tokens that are scored behind a context: those that are `gold`."""

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def gold(self) -> Sequence[bool]: ...


class TailScore(NamedTuple):
    """Of a tail behind a context: the sum of its gold tokens' log-probabilities, and their number."""

    total: float
    tokens: int


TailScores = dict[int, dict[int, TailScore]]  # by rollout and length of the context


class Ends(NamedTuple):
    """What ends a turn: tokens, of which the first is the policy's own, and texts. `stops`: those of the tokens that
    stop it before the policy has ended it."""

    ids: list[int]
    texts: list[str]
    stops: list[int]

    @classmethod
    def of(cls, eos_ids: Sequence[int], pad_id: int, generation_kwargs: Mapping[str, Any] | None) -> "Ends":
        """Those of the model, and those that `generation_kwargs` adds, by the names that vLLM or transformers reads.

        Padding stands behind a turn that ended while others went on.

        Example: [2], 0, {"stop": "</call>", "stop_token_ids": [7]} -> Ends([2, 0, 7], ["</call>"], [7])
        """
        given = generation_kwargs or {}
        own = [*eos_ids, pad_id, *listed(given.get("eos_token_id"))]
        stops = [token for token in listed(given.get("stop_token_ids")) if token not in own]
        return cls(list(dict.fromkeys([*own, *stops])), listed(given.get("stop")), stops)


def listed(value: Any) -> list:
    """vLLM and transformers take one, several or None."""
    if value is None:
        return []
    return [value] if isinstance(value, (int, str)) else list(value)


class Engine(ABC):
    """Takes contexts, gives samples. `lockstep`: whether all pending contexts are sampled together."""

    lockstep: bool

    @property
    def scores(self) -> TailScores:
        """Of the tails behind all contexts, where the engine has been given tails and can score them."""
        return {}

    @abstractmethod
    def submit(self, key: int, context: list[int], max_tokens: int | None = None) -> None:
        """Ask for the next turn of a rollout; at most one request a key is pending.

        Of more than `max_tokens` the rest is thrown away, which an engine may spare itself.
        """

    @abstractmethod
    def collect(self, *, wait: bool = True) -> list[Sample]:
        """Samples that are finished. With `wait`, at least one, unless nothing is pending.

        A lock-step engine always samples everything, on all ranks at once, and ignores `wait`.
        """

    def forget(self, key: int) -> None:  # noqa: B027
        """The rollout has ended: it will ask for no further turn."""

    @abstractmethod
    def has_work(self) -> bool:
        """Whether anything is pending: on this rank, or on any rank where ranks sample together."""


class Seeds:
    """A seed for each turn of each rollout, made of the rollout's own; None throughout where rollouts have none."""

    def __init__(self, of_rollouts: Sequence[int] | None):
        self._of_rollouts = of_rollouts
        self._turns: Counter[int] = Counter()

    def next(self, key: int) -> int | None:
        """The seed of the rollout's next turn."""
        if self._of_rollouts is None:
            return None
        self._turns[key] += 1
        return seed_of(self._of_rollouts[key], self._turns[key])


class LockStep(Engine):
    """All pending contexts in one call of `generate`.

    Where generation is collective, `ranks` shares the contexts of all ranks out equally among them, however they are
    spread: every rank then makes the same number of calls with the same number of contexts, and each sample goes back
    to the rank that asked for it. Without `ranks`, a rank samples its own contexts alone.
    """

    lockstep = True

    def __init__(self, generate: Generate, ranks: Ranks | None = None, seeds: Sequence[int] | None = None):
        self._generate, self._ranks, self._seeds = generate, ranks, Seeds(seeds)
        self._pending: dict[int, Request] = {}

    def submit(self, key: int, context: list[int], max_tokens: int | None = None) -> None:
        self._pending[key] = Request(context, self._seeds.next(key), max_tokens)

    def has_work(self) -> bool:
        if self._ranks is None:
            return bool(self._pending)
        return self._ranks.max(len(self._pending)) > 0

    def collect(self, *, wait: bool = True) -> list[Sample]:
        keys, requests = list(self._pending), list(self._pending.values())
        self._pending.clear()
        if self._ranks is not None:
            ids, logprobs = _shared_out(self._generate, requests, self._ranks)
        else:
            ids, logprobs = self._generate(requests) if requests else ([], None)
        return [
            Sample(key, row, None if logprobs is None else logprobs[i])
            for i, (key, row) in enumerate(zip(keys, ids, strict=True))
        ]


class _Ranks(Protocol):
    """What sharing out needs of the ranks; a test gives it without processes."""

    index: int
    number: int

    def gather_lists(self, items: list) -> list[list]: ...


def _shared_out(
    generate: Generate, requests: Sequence[Request], ranks: _Ranks
) -> tuple[list[list[int]], list[LogProbs] | None]:
    """Generate an equal share of all ranks' requests, then give each rank the samples of its own.

    Where the number does not divide, the last request is sampled once more for each free place, and the surplus is
    thrown away: a real context ends when real ones do, which a made-up one may not. All have the room of the one that
    has most, so that the ranks call their engine with the same settings.
    """
    of_ranks = ranks.gather_lists(list(requests))
    everyone = [request for rank in of_ranks for request in rank]
    if not everyone:
        return [], None
    room = most_tokens(everyone)
    everyone = [request._replace(max_tokens=room) for request in everyone]
    share = -(-len(everyone) // ranks.number)
    filled = everyone + everyone[-1:] * (share * ranks.number - len(everyone))
    ids, logprobs = generate(filled[ranks.index * share : (ranks.index + 1) * share])
    pairs = list(zip(ids, [None] * len(ids) if logprobs is None else logprobs, strict=True))
    sampled = [pair for rank in ranks.gather_lists(pairs) for pair in rank]
    first = sum(map(len, of_ranks[: ranks.index]))
    mine = sampled[first : first + len(requests)]
    return [row for row, _ in mine], None if logprobs is None else [row for _, row in mine]
