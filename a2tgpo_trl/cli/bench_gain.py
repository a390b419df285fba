"""model, lengths -> seconds, tokens and agreement of three passes over the same rollouts.

    plain      log-probabilities of the completions, nothing else
    packed     the same and the value of every context, one row per rollout, one forward
    prefill    only the values, one row per rollout and context: one forward per context

Contexts end after the prompt and after each tool turn. All rollouts have them at the same places, so no pass has
padding, and the model reads just the tokens that the method needs.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config
from trl.trainer.utils import add_fused_lm_head

from ..information_gain.packed_attention import packed_implementation
from ..information_gain.probes import Probe
from ..information_gain.rows import Rollouts
from ..information_gain.values import Scorer, TurnScores, fused_scorer, score_turns
from ..log_probabilities import NOT_SCORED
from .machine import device_name


HEAD_DIM = 64  # small heads: attention costs much beside the rest, which is the harder case for packed rows


@dataclass(frozen=True)
class Shape:
    """Lengths of a batch. A rollout has one turn more than `turns`: the answer."""

    rollouts: int
    tokens: int
    prompt_tokens: int
    turns: int
    probe_tokens: int

    def __post_init__(self):
        needed = 2 * self.turns + 1
        if self.tokens - self.prompt_tokens < needed:
            raise ValueError(
                f"--tokens {self.tokens} minus --prompt-tokens {self.prompt_tokens} leaves no room for --turns "
                f"{self.turns}: the turns need at least {needed} tokens, two per tool turn and one for the answer."
            )


@dataclass(frozen=True)
class GainTimes:
    """What one shape took. Keys are the names of the passes; all passes were timed equally often."""

    turns: int
    timings: dict[str, list[float]]
    tokens: dict[str, int]
    peak_bytes: dict[str, int] | None  # on CUDA, model included
    value_difference: float
    logp_difference: float

    def seconds(self, name: str) -> float:
        return statistics.median(self.timings[name])

    def time_ratio(self, above: Sequence[str], below: str) -> float:
        """Return the median ratio of neighbouring timings: whatever slows the machine for a while slows both."""
        rounds = zip(*(self.timings[name] for name in above), strict=True)
        return statistics.median(sum(a) / b for a, b in zip(rounds, self.timings[below], strict=True))

    def token_ratio(self, above: Sequence[str], below: str) -> float:
        return sum(self.tokens[name] for name in above) / self.tokens[below]


def measure(model: PreTrainedModel, shape: Shape, *, repeats: int, seed: int) -> GainTimes:
    """Run each pass once to warm up and to compare their results, then time them alternately."""
    passes, counter = _passes(model, shape, seed)
    found: dict[str, Any] = {}
    tokens: dict[str, int] = {}
    for name, run in passes.items():
        counter.tokens = 0
        found[name] = run()
        tokens[name] = counter.tokens
    timings: dict[str, list[float]] = {name: [] for name in passes}
    peaks = dict.fromkeys(passes, 0)
    for _ in range(repeats):
        for name, run in passes.items():
            seconds, peak = _timed(run, model.device)
            timings[name].append(seconds)
            peaks[name] = max(peaks[name], peak)
    packed, prefill = found["packed"], found["prefill"]
    return GainTimes(
        turns=shape.turns,
        timings=timings,
        tokens=tokens,
        peak_bytes=peaks if model.device.type == "cuda" else None,
        value_difference=(packed.values_BK - prefill.values_BK).abs().max().item(),
        logp_difference=(torch.stack(packed.logps) - found["plain"][:, shape.prompt_tokens - 1 : -1])
        .abs()
        .max()
        .item(),
    )


class _CountingScorer:
    """A scorer that adds up the tokens that the model reads."""

    def __init__(self, score: Scorer):
        self._score = score
        self.tokens = 0

    def __call__(self, input_ids: Tensor, *others) -> Tensor:
        self.tokens += input_ids.numel()
        return self._score(input_ids, *others)


def _passes(model: PreTrainedModel, shape: Shape, seed: int) -> tuple[dict[str, Callable[[], Any]], _CountingScorer]:
    """Return each pass by its name, and the scorer that counts the tokens they read."""
    implementation, reason = packed_implementation(model)
    if implementation is None:
        raise ValueError(f"Rows cannot be packed for this --model and --attention: {reason}.")
    scorer = _CountingScorer(fused_scorer(model))
    rollouts, probes = make_rollouts(shape, model.config.get_text_config().vocab_size, seed)
    ids_BT = torch.tensor(
        [[*p, *c] for p, c in zip(rollouts.prompt_ids, rollouts.completion_ids, strict=True)], device=model.device
    )
    next_ids_BT = ids_BT.roll(-1, dims=1)
    next_ids_BT[:, : shape.prompt_tokens - 1] = NOT_SCORED
    next_ids_BT[:, -1] = NOT_SCORED

    def plain() -> Tensor:
        with torch.no_grad():
            return scorer(ids_BT, next_ids_BT, torch.ones_like(ids_BT), None).float()

    budget = shape.rollouts * (shape.tokens + (shape.turns + 1) * shape.probe_tokens)

    def packed() -> TurnScores:
        return score_turns(
            model, rollouts, probes, scorer, implementation=implementation, token_budget=budget, want_logps=True
        )

    def prefill() -> TurnScores:
        # Each context is the prompt of a rollout without turns; each batch has one length, so nothing is padded.
        of_contexts = [
            score_turns(model, contexts, probes, scorer, implementation=None, token_budget=budget)
            for contexts in _contexts(rollouts)
        ]
        return replace(
            of_contexts[-1],
            values_BK=torch.cat([scores.values_BK for scores in of_contexts], dim=1),
            forwards=sum(scores.forwards for scores in of_contexts),
        )

    return {"plain": plain, "packed": packed, "prefill": prefill}, scorer


def _contexts(rollouts: Rollouts) -> list[Rollouts]:
    """Return the first context of all rollouts, then the second of all, and so on."""
    whole = [[*prompt, *written] for prompt, written in zip(rollouts.prompt_ids, rollouts.completion_ids, strict=True)]
    none: list[list[int]] = [[] for _ in whole]
    return [Rollouts([row[:length] for row in whole], none, none) for length in rollouts.contexts(0)]


def make_rollouts(shape: Shape, vocabulary: int, seed: int) -> tuple[Rollouts, list[list[Probe]]]:
    """Return random rollouts of about equal turns, half of a tool turn sampled and half results; and their probes."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(length: int) -> list[list[int]]:
        return torch.randint(vocabulary, (shape.rollouts, length), generator=generator).tolist()

    completion = shape.tokens - shape.prompt_tokens
    ends = [completion * (turn + 1) // (shape.turns + 1) for turn in range(shape.turns + 1)]
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    mask = [token for length in lengths[:-1] for token in [1] * (length - length // 2) + [0] * (length // 2)]
    mask += [1] * lengths[-1]
    gold = tuple(2 * i >= shape.probe_tokens - 1 for i in range(shape.probe_tokens))
    rollouts = Rollouts(tokens(shape.prompt_tokens), tokens(completion), [mask] * shape.rollouts)
    return rollouts, [[Probe(tuple(ids), gold)] for ids in tokens(shape.probe_tokens)]


def _timed(run: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Return seconds (by the device's clock, if it has one) and the peak memory (0 if unknown)."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start, 0
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    first.record()
    run()
    last.record()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last) / 1000, torch.cuda.max_memory_allocated(device)


# ---- model and machine


def load_model(
    name: str | None, sizes: dict[str, int], attention: str, dtype: str | None, device: str, seed: int
) -> PreTrainedModel:
    """Return a model as the trainer uses it, with TRL's fused head. `sizes` apply only to random weights."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this PyTorch sees no CUDA device.")
    place = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    options = {
        "attn_implementation": attention,
        "dtype": getattr(torch, dtype) if dtype else torch.bfloat16 if place.type == "cuda" else torch.float32,
    }
    torch.manual_seed(seed)
    try:
        if name:
            model = AutoModelForCausalLM.from_pretrained(name, **options).to(place)
        else:
            with place:
                model = AutoModelForCausalLM.from_config(_random_config(**sizes), **options)
    except (ValueError, OSError, ImportError) as error:
        raise ValueError(f"--model {name or 'with random weights'}, --attention {attention}: {error}") from error
    add_fused_lm_head(model)
    return model.eval()


def _random_config(hidden: int, layers: int, vocab: int) -> Qwen3Config:
    heads = max(1, hidden // HEAD_DIM)
    return Qwen3Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=3 * hidden,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2 if heads % 2 == 0 else heads,
        head_dim=HEAD_DIM,
        vocab_size=vocab,
    )


def describe(model: PreTrainedModel) -> list[str]:
    """Return everything about machine and model that the numbers depend on."""
    config = model.config.get_text_config()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    packed, reason = packed_implementation(model)
    return [
        f"{device_name(model.device)}; torch {torch.__version__}",
        f"{type(model).__name__}, {parameters / 1e6:.1f} M parameters, {config.num_hidden_layers} layers of "
        f"{config.hidden_size}, vocabulary {config.vocab_size}, {str(model.dtype).removeprefix('torch.')}",
        f"attention {config._attn_implementation}; packed rows by {packed} ({reason})",
    ]
