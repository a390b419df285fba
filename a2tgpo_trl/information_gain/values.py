"""rollouts, answers -> probes at every turn boundary -> one packed forward -> values (B,K) -> gains (B,K).

The value of a context is the mean log-probability per token of the ground truth, written as a finished answer at that
point. V_0 is the value of the prompt, V_t that of everything that the policy has seen after t turns, tool results and
generation prompt included. The gain of turn t is V_{t+1} - V_t (turns count from 0). The policy is the one that
samples: in training, logits are divided by the sampling temperature.

If a model allows it (`packed_attention`), a rollout and all its probes share one row, and the pass also yields the
log-probabilities of the rollout. Otherwise each boundary gets a separate row. Both give the same values.

Shapes: B rollouts, K contexts or turns, A accepted answers, R rows of one forward, L tokens of a row.
"""

import hashlib
from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..log_probabilities import NOT_SCORED
from ..models import attention_implementation, base_model, evaluation_mode, length_matters, logits_of
from ..rollout.engines import context_of
from .packed_attention import packed_implementation
from .probes import Probe, ProbeMaker
from .rounding import GAIN_FLOOR
from .rows import (
    FLEX_BLOCK,
    Agree,
    Rollouts,
    chunks,
    collate_packed,
    collate_single,
    packed_rows,
    single_rows,
    unread_slots,
)


# (input_ids, next_ids, attention_mask, position_ids) -> log-probability of each next id, arbitrary where NOT_SCORED
Scorer = Callable[[Tensor, Tensor, object, Tensor | None], Tensor]


NO_CONTEXT = -1


@dataclass(frozen=True)
class TurnScores:
    """The results of the gain pass."""

    values_BK: Tensor  # NaN if a rollout has no such context, or if its probe was not finite or did not fit
    keys_BK: Tensor  # equal if the same answer was scored in the same context; NO_CONTEXT if there is none
    failed_probes: int
    forwards: int = 0
    logps: list[Tensor] | None = None  # of every completion token, per rollout; None if not asked for
    gain_floor: float = GAIN_FLOOR  # in nats: how much gains of log-probability may differ by rounding


def information_gain(values_BK: Tensor, num_turns: int, *, first: bool = True, last: bool = True) -> Tensor:
    """Return the gain of each turn, by which the value grew; NaN for turns that no tool answered.

    Args:
        first, last: Whether the first turn has a gain, and the last one of a rollout that a tool answered.

    Example: values [[-3, -1, 0, nan]], 3 turns -> [[2, 1, nan]]; without the last gain [[2, nan, nan]]
    """
    gains_BK = values_BK.diff(dim=1)[:, :num_turns]
    gains_BK = nn.functional.pad(gains_BK, (0, num_turns - gains_BK.size(1)), value=torch.nan)
    if not last:
        from_here_BK = (~gains_BK.isnan()).flip(1).cumsum(dim=1).flip(1)  # gains of this turn and later ones
        gains_BK = gains_BK.masked_fill(from_here_BK == 1, torch.nan)
    if not first:
        gains_BK[:, :1] = torch.nan
    return gains_BK


def answer_values(
    model: nn.Module,
    rollouts: Rollouts,
    answers: Sequence[str | Sequence[str]],
    *,
    tokenizer: PreTrainedTokenizerBase,
    template: str = "<answer>{answer}</answer>",
    aliases: str = "first",
    measure: str = "logprob",
    token_budget: int = 16384,
    packed: bool | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Return each rollout's values V_0 .. V_{K-1} (B,K): of the prompt, then after each tool turn; NaN after the last.

    Args:
        model: causal language model of transformers, or a PEFT model around one. Its mode and its attention
            implementation are restored afterwards.
        rollouts: token ids and model-token masks.
        answers: ground truth of each rollout, a string or a list of accepted strings.
        tokenizer, template: make the probe; see `probes`.
        aliases: "first", "max" or "mean" over the accepted strings.
        measure: "logprob", or "probability" for its exponential.
        token_budget: most tokens in one forward, padding included.
        packed: one row per rollout (True), one per context (False), or whichever is exact for the model (None).
        temperature: the logits are divided by it.
    """
    if len(answers) != len(rollouts):
        raise ValueError(f"{len(answers)} answers for {len(rollouts)} rollouts: give one (or one list) for each.")
    maker = ProbeMaker(tokenizer, template)
    implementation = packed_implementation(base_model(model))[0] if packed is not False else None
    if packed and implementation is None:
        raise ValueError(f"Rows cannot be packed for this model: {packed_implementation(base_model(model))[1]}.")
    scores = score_turns(
        model,
        rollouts,
        [maker.make_all(answer, aliases) for answer in answers],
        logits_scorer(model, temperature),
        implementation=implementation,
        token_budget=token_budget,
        aliases=aliases,
        measure=measure,
    )
    return scores.values_BK


@torch.no_grad()
def score_turns(
    model: nn.Module,
    rollouts: Rollouts,
    probes: Sequence[Sequence[Probe]],
    scorer: Scorer,
    *,
    implementation: str | None,
    token_budget: int,
    aliases: str = "first",
    measure: str = "logprob",
    want_logps: bool = False,
    agree: Agree = list,
    device: torch.device | None = None,
) -> TurnScores:
    """Score every probe of every rollout; also the log-probabilities of completions, if wanted and rows are packed.

    Every rank runs the same number of forwards, so that sharded models stay in step. Forwards compute on `device`, and
    the scores are put there; None means the device of the weights, which may be another one if they are offloaded.
    """
    contexts = [rollouts.contexts(i) for i in range(len(rollouts))]
    shape = (len(rollouts), *agree([max(map(len, contexts)), max(map(len, probes))]))
    most = context_of(base_model(model).config)
    rows = (
        packed_rows(rollouts, contexts, probes, shape, most, want_logps)
        if implementation
        else single_rows(rollouts, contexts, probes, shape, most)
    )
    sums, counts = torch.zeros(shape).flatten(), torch.zeros(shape).flatten()
    logps = [torch.zeros(len(ids)) for ids in rollouts.completion_ids]
    base, collate = base_model(model), collate_packed if implementation else collate_single
    device = device or base.device
    implementation_in_use = implementation or base.config.get_text_config()._attn_implementation
    block = FLEX_BLOCK if implementation_in_use == "flex_attention" else 1
    forwards = 0
    with evaluation_mode(model), attention_implementation(base.config, implementation_in_use):
        for chunk, wanted in chunks(rows, 1 if length_matters(base) else token_budget, agree):
            batch = collate(chunk, base, block, device)
            scored = scorer(*batch.inputs).float().cpu()
            forwards += 1
            if not wanted:
                continue
            is_probe = batch.slots >= 0
            sums.index_add_(0, batch.slots[is_probe], scored[is_probe])
            counts.index_add_(0, batch.slots[is_probe], torch.ones(int(is_probe.sum())))
            for row, row_scores in zip(chunk, scored, strict=True):
                if row.scored_from < len(row.tokens):
                    logps[row.rollout] = row_scores[row.scored_from - 1 : len(row.tokens) - 1]
    sums[unread_slots(contexts, probes, shape, most)] = torch.nan
    kept = [scores.to(device) for scores in logps] if want_logps and implementation else None
    found = sums.view(shape), counts.view(shape)
    scores = turn_scores(rollouts, probes, *found, aliases=aliases, measure=measure, device=device)
    return replace(scores, forwards=forwards, logps=kept)


def turn_scores(
    rollouts: Rollouts,
    probes: Sequence[Sequence[Probe]],
    sums_BKA: Tensor,
    counts_BKA: Tensor,
    *,
    aliases: str,
    measure: str,
    device: torch.device,
) -> TurnScores:
    """Return scores from sums and counts of log-probabilities of each probe's gold tokens, 0 where no probe is."""
    values_BK, failed = _reduce_aliases(sums_BKA, counts_BKA, aliases, measure)
    keys_BK = torch.full(values_BK.shape, NO_CONTEXT)
    for i in range(len(rollouts)):
        keys = _context_keys(i, rollouts, rollouts.contexts(i), probes[i])
        keys_BK[i, : len(keys)] = torch.tensor(keys)
    return TurnScores(values_BK.to(device), keys_BK.to(device), failed)


def one_value_each(values_NK: Tensor, keys_NK: Tensor) -> Tensor:
    """Give all places of a key the value of the first place that has one.

    Rollouts of a prompt often begin with the same turns. If these were scored in different forwards or on different
    ranks, their values differ by rounding, and a z-score would blow that up, because equals differ in nothing else.

    Example: values [[-3., -1.], [-3.001, -2.]], keys [[7, 8], [7, 9]] -> [[-3., -1.], [-3., -2.]]
    """
    found, key_of_place = keys_NK.flatten().unique(return_inverse=True)
    places = torch.arange(keys_NK.numel(), device=keys_NK.device)
    places = places + values_NK.flatten().isnan() * len(places)  # those without a value come last
    first = torch.full_like(found, 2 * len(places)).scatter_reduce(0, key_of_place, places, "amin") % len(places)
    return values_NK.flatten()[first[key_of_place]].view_as(values_NK)


def _context_keys(i: int, rollouts: Rollouts, lengths: list[int], probes: Sequence[Probe]) -> list[int]:
    """A number for each context of rollout i, from all of its tokens and from the probes that are scored."""
    tokens = array("q", [*rollouts.prompt_ids[i], *rollouts.completion_ids[i]])
    digest = hashlib.blake2b(repr(probes).encode(), digest_size=8)
    keys = []
    for begin, end in zip([0, *lengths], lengths, strict=False):
        digest.update(tokens[begin:end].tobytes())
        keys.append(int.from_bytes(digest.digest(), "big") >> 1)
    return keys


def packing_error(
    model: nn.Module, scorer: Scorer, implementation: str, vocabulary: int, device: torch.device | None = None
) -> float:
    """Return the largest difference between packed and single rows on a small random example.

    This tests a model's code, not just its kind of attention: it finds models that ignore explicit positions or change
    the mask.
    """
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(vocabulary, (count,), generator=generator).tolist()

    masks = [[1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0]]
    rollouts = Rollouts([tokens(9), tokens(4)], [tokens(len(mask)) for mask in masks], masks)
    probes = [[Probe(tuple(tokens(4)), (False, True, True, True))] for _ in masks]
    packed, single = (
        score_turns(model, rollouts, probes, scorer, implementation=how, token_budget=2**20, device=device).values_BK
        for how in (implementation, None)
    )
    exists = ~single.isnan()
    return (packed - single)[exists].abs().nan_to_num(nan=torch.inf).max().item()


def _reduce_aliases(sums_BKA: Tensor, counts_BKA: Tensor, aliases: str, measure: str) -> tuple[Tensor, int]:
    """Sums of log-probabilities -> one value per context, and the number of contexts without a finite one."""
    exists_BKA = counts_BKA > 0
    values_BKA = sums_BKA / counts_BKA.clamp(min=1.0)
    values_BKA = values_BKA.masked_fill(~values_BKA.isfinite(), torch.nan)
    if measure == "probability":
        values_BKA = values_BKA.exp()
    if aliases == "max":
        values_BK = values_BKA.masked_fill(~exists_BKA, -torch.inf).amax(dim=2)
    else:  # "first" made one probe only
        values_BK = values_BKA.masked_fill(~exists_BKA, 0.0).sum(dim=2) / exists_BKA.sum(dim=2).clamp(min=1)
    exists_BK = exists_BKA.any(dim=2)
    failed = int((exists_BK & values_BK.isnan()).sum())
    return values_BK.masked_fill(~exists_BK, torch.nan), failed


def logits_scorer(model: nn.Module, temperature: float = 1.0) -> Scorer:
    """Score with the model's own logits. The trainer scores with TRL's fused head instead.

    Logits are computed only for the tokens that are scored, because each has one for every word of the vocabulary.
    """
    quiet = _without_router_loss(model)

    def score(input_ids: Tensor, next_ids: Tensor, mask: object, position_ids: Tensor | None) -> Tensor:
        options = quiet if position_ids is None else {**quiet, "position_ids": position_ids}
        scored = next_ids != NOT_SCORED
        with logits_of(model, scored):
            (logits,) = model(input_ids=input_ids, attention_mask=mask, use_cache=False, **options).logits
        logps = (logits.float() / temperature).log_softmax(dim=-1)
        found = logps.gather(1, next_ids[scored].to(logps.device).unsqueeze(1)).squeeze(1)
        return torch.zeros_like(next_ids, dtype=found.dtype, device=found.device).masked_scatter(scored, found)

    return score


def fused_scorer(model: nn.Module, autocast: Callable[[], AbstractContextManager] = nullcontext) -> Scorer:
    """Score with the LM head that TRL's trainers add to their model, which never holds the logits of a whole row."""
    quiet = _without_router_loss(model)

    def score(input_ids: Tensor, next_ids: Tensor, mask: object, position_ids: Tensor | None) -> Tensor:
        positions = {} if position_ids is None else {"position_ids": position_ids}
        with autocast():
            return model(
                input_ids=input_ids,
                attention_mask=mask,
                shift_labels=next_ids,
                fused_lm_head=True,
                **positions,
                **quiet,
            ).log_probs

    return score


def _without_router_loss(model: nn.Module) -> dict[str, Any]:
    # A mixture of experts would compute its load-balancing loss from the mask, which is not a padding mask here.
    experts = getattr(base_model(model).config.get_text_config(), "output_router_logits", False)
    return {"output_router_logits": False} if experts else {}
