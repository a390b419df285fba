"""a trainer's rollouts and answers -> the value of each context under its policy, the same on all ranks."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..models import base_model, has_virtual_tokens, positions_are_relative
from ..precision import EXACT, training_unit
from ..ranks import Ranks
from ..rollout.engines import TailScores
from .packed_attention import packed_implementation
from .probes import Probe, ProbeMaker
from .rounding import as_logprobs, gain_floor, rounding_redrawn, spread_out, squares
from .values import (
    Rollouts,
    Scorer,
    TurnScores,
    fused_scorer,
    one_value_each,
    packing_error,
    score_turns,
    turn_scores,
)


logger = get_logger(__name__)

# Values of packed and single rows may differ by rounding; a wrong mask or position moves them far more.
PACKING_TOLERANCE = 1e-3


@dataclass(frozen=True)
class GainSettings:
    """What is scored, and how: the fields of `A2TGPOConfig` of the same names."""

    probe_template: str
    answer_aliases: str
    gain_measure: str
    gain_token_budget: int


class GainPass:
    """Has a trainer's policy score answers. All ranks call it together."""

    def __init__(
        self,
        model_of: Callable[[], nn.Module],
        tokenizer: PreTrainedTokenizerBase,
        settings: GainSettings,
        accelerator: Accelerator,
    ):
        """`model_of`: returns the trainer's model, which may be replaced when training starts."""
        self._model_of, self._settings = model_of, settings
        self._accelerator, self._ranks = accelerator, Ranks(accelerator)
        model: Any = model_of()
        if has_virtual_tokens(model):
            raise ValueError(
                f"{model.active_peft_config.peft_type.value} adapters put virtual tokens before the prompt, and the "
                "gain pass would misplace its probes. Use LoRA, or train without gains (gain_weight=0, "
                "clip_adaptation=0)."
            )
        self._probes = ProbeMaker(tokenizer, settings.probe_template)
        self.packing, reason = packed_implementation(base_model(model))
        self.packing_tried = False
        if self.packing is None:
            logger.warning(f"Information gain takes one pass per turn boundary, since {reason}.")
        else:
            logger.info(f"Information gain takes one packed row per rollout: {reason}.")

    def probes_while_sampling(self, answers: list[list[str]], want_logps: bool) -> list[Probe] | None:
        """Return probes that an engine may score after each context; None if the pass finds more or is more exact."""
        probes = self._probes_of(answers)
        one_each = all(len(of_rollout) == 1 for of_rollout in probes)
        shares = want_logps and self._can_share_logps
        return [probe for (probe,) in probes] if one_each and self._is_exact and not shares else None

    def run(
        self, rollouts: Rollouts, answers: list[list[str]], want_logps: bool, found: TailScores | None = None
    ) -> tuple[TurnScores, dict[str, float]]:
        """Return values at every turn boundary, and metrics; log-probabilities too, if wanted and exact enough.

        `found`: an engine's scores of `probes_while_sampling` after all contexts, if it made any.
        """
        start = time.perf_counter()
        probes = self._probes_of(answers)
        scores = self._scores_found(rollouts, probes, found or {}) or self._run(rollouts, probes, want_logps)
        scores = replace(scores, values_BK=self._agreed(scores))
        slowest = self._ranks.max(time.perf_counter() - start)
        failed = sum(of_rank for (of_rank,) in self._ranks.gather_lists([scores.failed_probes]))
        return scores, {"gain/seconds": slowest, "gain/forwards": scores.forwards, "gain/failed_probes": failed}

    def _probes_of(self, answers: list[list[str]]) -> list[list[Probe]]:
        return [self._probes.make_all(answer, self._settings.answer_aliases) for answer in answers]

    def _run(self, rollouts: Rollouts, probes: list[list[Probe]], want_logps: bool) -> TurnScores:
        if self.packing is not None and not self.packing_tried:
            self._try_packing(self.packing, rollouts, probes)
        scores = self._score_turns(rollouts, probes, self.packing, want_logps and self._can_share_logps)
        return scores if self._is_exact else self._with_floor(scores, rollouts, probes)

    def _scores_found(self, rollouts: Rollouts, probes: list[list[Probe]], found: TailScores) -> TurnScores | None:
        """The scores made by an engine; None if any context on any rank has none."""
        contexts = [rollouts.contexts(i) for i in range(len(rollouts))]
        known = [[found.get(i, {}).get(length) for length in lengths] for i, lengths in enumerate(contexts)]
        if self._ranks.max(int(any(None in of_rollout for of_rollout in known))):
            return None
        (most,) = self._ranks.max_each([max(map(len, contexts))])
        sums, counts = torch.zeros(2, len(known), most, 1)
        for i, of_rollout in enumerate(known):
            for k, score in enumerate(of_rollout):
                assert score is not None
                sums[i, k], counts[i, k] = score
        settings = self._settings
        return turn_scores(
            rollouts,
            probes,
            sums,
            counts,
            aliases=settings.answer_aliases,
            measure=settings.gain_measure,
            device=self._accelerator.device,
        )

    def _score_turns(
        self, rollouts: Rollouts, probes: list[list[Probe]], implementation: str | None, want_logps: bool = False
    ) -> TurnScores:
        settings = self._settings
        return score_turns(
            self._model_of(),
            rollouts,
            probes,
            self._score,
            implementation=implementation,
            token_budget=settings.gain_token_budget,
            aliases=settings.answer_aliases,
            measure=settings.gain_measure,
            want_logps=want_logps,
            agree=self._ranks.max_each,
            device=self._accelerator.device,
        )

    def _with_floor(self, scores: TurnScores, rollouts: Rollouts, probes: list[list[Probe]]) -> TurnScores:
        """Score some of the rollouts again; how much their values move is the effect of rounding."""
        chosen = spread_out(len(rollouts), self._ranks.number)
        again = self._score_again(rollouts.some(chosen), [probes[i] for i in chosen], self.packing)
        differences = self._logprobs(again) - self._logprobs(scores)[chosen, : again.values_BK.size(1)]
        return replace(scores, gain_floor=self._floor(differences), forwards=scores.forwards + again.forwards)

    def _score_again(self, rollouts: Rollouts, probes: list[list[Probe]], implementation: str | None) -> TurnScores:
        with rounding_redrawn(self._model_of(), self._unit):
            return self._score_turns(rollouts, probes, implementation)

    def _logprobs(self, scores: TurnScores) -> Tensor:
        return as_logprobs(scores.values_BK, self._settings.gain_measure)

    def _floor(self, differences_BV: Tensor) -> float:
        """The floor from all ranks' differences, so that it is the same on all of them."""
        return gain_floor([of_rank for (of_rank,) in self._ranks.gather_lists([squares(differences_BV)])])

    def _agreed(self, scores: TurnScores) -> Tensor:
        """Values of this rank's rollouts; equal contexts on any ranks have exactly the same value."""
        accelerator = self._accelerator
        values_NK = one_value_each(accelerator.gather(scores.values_BK), accelerator.gather(scores.keys_BK))
        return values_NK[self._ranks.own_rows(len(scores.values_BK))]

    def _try_packing(self, implementation: str, rollouts: Rollouts, probes: list[list[Probe]]) -> None:
        """Check once, with the real weights, that packed rows give the same values as single ones."""
        self.packing_tried = True
        error, tolerance = (
            (self._packing_error(implementation), PACKING_TOLERANCE)
            if self._is_exact
            else self._packing_error_in_16_bits(implementation, rollouts, probes)
        )
        if not error <= tolerance:  # NaN counts as a difference
            self.packing = None
            logger.warning(
                f"Information gain takes one pass per turn boundary: packed rows differ by {error:.2g} from single "
                f"ones on this model, more than the {tolerance:.2g} that rounding explains."
            )

    def _packing_error(self, implementation: str) -> float:
        """The error on a small example, which is enough when rounding is small."""
        model, device = self._model_of(), self._accelerator.device
        vocabulary = base_model(model).config.get_text_config().vocab_size
        return self._ranks.max(packing_error(model, self._score, implementation, vocabulary, device))

    def _packing_error_in_16_bits(
        self, implementation: str, rollouts: Rollouts, probes: list[list[Probe]]
    ) -> tuple[float, float]:
        """The root mean square difference on real rollouts, and how much of it rounding explains."""
        chosen = spread_out(len(rollouts), self._ranks.number)
        sample = rollouts.some(chosen), [probes[i] for i in chosen]
        single_BV = self._logprobs(self._score_turns(*sample, None))
        packed_BV = self._logprobs(self._score_turns(*sample, implementation))
        floor = self._floor(self._logprobs(self._score_again(*sample, None)) - single_BV)
        differences = (packed_BV - single_BV)[~single_BV.isnan()].nan_to_num(nan=torch.inf)
        error = (differences.square().sum() / max(differences.numel(), 1)).sqrt()
        return self._ranks.max(error.item()), floor

    @property
    def _can_share_logps(self) -> bool:
        # In 16 bits the packed row and the loss's forward differ by more than a clip range of a few thousandths, so
        # turns would be clipped before the first update. The parent then scores with the forward that the loss uses.
        return self._is_exact and positions_are_relative(base_model(self._model_of()))

    @property
    def _unit(self) -> float:
        return training_unit(self._accelerator, self._model_of())

    @property
    def _is_exact(self) -> bool:
        return self._unit <= EXACT

    @property
    def _score(self) -> Scorer:
        # Made on each call, because FSDP replaces the trainer's model when training starts.
        return fused_scorer(self._model_of(), self._accelerator.autocast)
