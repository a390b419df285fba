"""contexts -> sampled turns: the one place where rollouts meet a generation engine.

    submit(key, context) ... collect() -> [Sample(key, token ids, log-probabilities)], until nothing is pending

A rollout submits its context when it needs its next turn, and gets one sample back. The engine alone decides how
requests are batched. A *lock-step* engine samples everything pending in one call, so the loop fills it up first (all
tools of the turn have answered); a *streaming* engine returns what is finished and goes on with the rest, so that a
rollout whose tools have answered need not wait for the others.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from transformers import PreTrainedConfig

from ..ranks import Ranks
from .seeds import seed_of


LogProbs = list[float | None]  # None where the engine has no number for a token
# Names under which a config says how many tokens its model reads. MPT makes its biases for that many.
CONTEXT_NAMES = ("max_position_embeddings", "max_seq_len")


def context_of(config: PreTrainedConfig) -> int | None:
    """The most tokens that a model with this config reads; None if nothing limits them, as in Bloom and Mamba.

    For a multimodal model, its text model counts.
    """
    text = config.get_text_config()
    limits = [getattr(text, name, None) for name in CONTEXT_NAMES]
    return next((limit for limit in limits if limit is not None), None)


class ContextLimit(NamedTuple):
    """How many tokens of a rollout an engine reads, prompt included; `turn` of them must be free to request a turn."""

    tokens: int
    turn: int = 1


class Request(NamedTuple):
    """A context to continue."""

    context: list[int]
    seed: int | None = None  # of its draws; None: they come from the common stream
    max_tokens: int | None = None  # tokens sampled beyond these are thrown away; None: no limit


def most_tokens(requests: Sequence[Request]) -> int | None:
    """The tokens to ask an engine for if one limit holds for all requests; None if a request has no limit."""
    limits = [request.max_tokens for request in requests if request.max_tokens is not None]
    return max(limits) if len(limits) == len(requests) else None


Generate = Callable[[list[Request]], tuple[list[list[int]], list[LogProbs] | None]]


class Sample(NamedTuple):
    """A sampled turn of the rollout `key`."""

    key: int
    ids: list[int]
    logprobs: LogProbs | None


class Tail(Protocol):
    """Tokens after a context, of which those that are `gold` are scored."""

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def gold(self) -> Sequence[bool]: ...


class TailScore(NamedTuple):
    """For a tail after a context: the sum of its gold tokens' log-probabilities, and their number."""

    total: float
    tokens: int


TailScores = dict[int, dict[int, TailScore]]  # by rollout and length of the context


class Ends(NamedTuple):
    """What ends a turn: tokens, of which the first is the policy's own, and texts.

    `stops` are the tokens that stop a turn before the policy has ended it.
    """

    ids: list[int]
    texts: list[str]
    stops: list[int]

    @classmethod
    def of(cls, eos_ids: Sequence[int], pad_id: int, generation_kwargs: Mapping[str, Any] | None) -> "Ends":
        """The model's ends, and those that `generation_kwargs` adds under the names that vLLM or transformers reads.

        Padding follows a turn that ended while others went on.

        Example: [2], 0, {"stop": "</call>", "stop_token_ids": [7]} -> Ends([2, 0, 7], ["</call>"], [7])
        """
        given = generation_kwargs or {}
        own = [*eos_ids, pad_id, *listed(given.get("eos_token_id"))]
        stops = [token for token in listed(given.get("stop_token_ids")) if token not in own]
        return cls(list(dict.fromkeys([*own, *stops])), listed(given.get("stop")), stops)


def listed(value: Any) -> list:
    """The values as a list: vLLM and transformers accept one, several or None."""
    if value is None:
        return []
    return [value] if isinstance(value, (int, str)) else list(value)


class Engine(ABC):
    """Takes contexts and returns samples. `lockstep`: whether all pending contexts are sampled together."""

    lockstep: bool

    @property
    def scores(self) -> TailScores:
        """Scores of the tails after all contexts, if the engine was given tails and can score them."""
        return {}

    @abstractmethod
    def submit(self, key: int, context: list[int], max_tokens: int | None = None) -> None:
        """Request the next turn of a rollout; each key has at most one pending request.

        Tokens beyond `max_tokens` are thrown away, so an engine need not sample them.
        """

    @abstractmethod
    def collect(self, *, wait: bool = True) -> list[Sample]:
        """Return finished samples. With `wait`, at least one, unless nothing is pending.

        A lock-step engine always samples everything, on all ranks together, and ignores `wait`.
        """

    def forget(self, key: int) -> None:  # noqa: B027
        """Take note that the rollout has ended and will request no further turn."""

    @abstractmethod
    def has_work(self) -> bool:
        """Whether anything is pending on this rank, or on any rank if ranks sample together."""


class Seeds:
    """A seed for each turn of each rollout, made from the rollout's own; always None if rollouts have none."""

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
    """Samples all pending contexts in one call of `generate`.

    If generation is collective, `ranks` divides the contexts of all ranks equally among them: every rank then makes
    the same number of calls with the same number of contexts, and each sample goes back to the rank that requested it.
    Without `ranks`, a rank samples only its own contexts.
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
    """What `_shared_out` needs of the ranks; a test provides it without processes."""

    index: int
    number: int

    def gather_lists(self, items: list) -> list[list]: ...


def _shared_out(
    generate: Generate, requests: Sequence[Request], ranks: _Ranks
) -> tuple[list[list[int]], list[LogProbs] | None]:
    """Generate an equal share of all ranks' requests, then give each rank the samples of its own.

    If the number does not divide evenly, the last request is sampled once more for each free place, and the surplus is
    thrown away: a real context ends when real ones do, a made-up one may not. All requests get the largest limit of
    any, so that the ranks call their engine with the same settings.
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
