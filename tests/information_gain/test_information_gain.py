"""Values compared with the plain way: one model call per context, one sequence at a time, no padding or packing."""

import copy
import dataclasses
import math
import random

import pytest
import tiny
import torch
from accelerate import Accelerator
from near import assert_near
from peft import LoraConfig, get_peft_model
from transformers import GPT2LMHeadModel

from a2tgpo_trl.information_gain import gain_pass, packed_attention
from a2tgpo_trl.information_gain import values as information_gain
from a2tgpo_trl.information_gain.packed_attention import packed_implementation
from a2tgpo_trl.information_gain.probes import ProbeMaker
from a2tgpo_trl.information_gain.values import (
    NO_CONTEXT,
    Rollouts,
    answer_values,
    logits_scorer,
    one_value_each,
    packing_error,
    score_turns,
)


TEMPLATE = "<answer>{answer}</answer>"
TOLERANCE = 1e-4
ARCHITECTURES = tiny.architectures()


def random_batch(seed: int, most_turns: int = 6) -> dict[str, torch.Tensor]:
    """Rollouts of 0 to 6 tool turns as TRL pads them: prompts left, completions right, tool_mask with ones."""
    draw = random.Random(seed)
    prompts, completions, masks = [], [], []
    for turns in range(most_turns + 1):
        prompts.append([draw.randrange(384) for _ in range(draw.randint(1, 12))])
        mask = []
        for _ in range(turns):
            mask += [1] * draw.randint(1, 5) + [0] * draw.randint(1, 6)
        if draw.random() < 0.7:  # otherwise cut off right after a tool result
            mask += [1] * draw.randint(1, 5)
        masks.append(mask)
        completions.append([draw.randrange(384) for _ in mask])

    def padded(rows, fill, left=False):
        width = max(map(len, rows))
        return torch.tensor([[fill] * (width - len(r)) + r if left else r + [fill] * (width - len(r)) for r in rows])

    return {
        "prompt_ids": padded(prompts, 0, left=True),
        "prompt_mask": padded([[1] * len(p) for p in prompts], 0, left=True),
        "completion_ids": padded(completions, 0),
        "completion_mask": padded([[1] * len(c) for c in completions], 0),
        "tool_mask": padded(masks, 1),
    }


def plain_values(model, batch, answers, tokenizer, score=lambda logps: logps.mean().item()) -> list[list[float]]:
    """The definition, slowly: cut the padded tensors by hand, append the probe, call the model, average its answer."""
    values = []
    for i, answer in enumerate(answers):
        prompt = batch["prompt_ids"][i][batch["prompt_mask"][i] == 1].tolist()
        length = int(batch["completion_mask"][i].sum())
        completion, mask = batch["completion_ids"][i][:length].tolist(), batch["tool_mask"][i][:length].tolist()
        cuts = [0] + [j for j in range(1, length) if mask[j] == 1 and mask[j - 1] == 0]
        cuts += [length] if length and mask[-1] == 0 else []
        text = TEMPLATE.replace("{answer}", answer)
        encoded = tokenizer(text, return_offsets_mapping=True)
        start, end = text.index(answer), text.index(answer) + len(answer)
        gold = [j for j, (a, b) in enumerate(encoded["offset_mapping"]) if a < end and b > start]
        row = []
        for cut in cuts:
            context = prompt + completion[:cut]
            with torch.no_grad():
                logits = model(torch.tensor([context + encoded["input_ids"]])).logits[0].float()
            logps = logits.log_softmax(-1)
            row.append(score(torch.stack([logps[len(context) + j - 1, encoded["input_ids"][j]] for j in gold])))
        values.append(row)
    return values


def answers_for(batch, seed: int = 0) -> list[str]:
    """One answer per rollout, from 1 to 40 tokens."""
    draw = random.Random(seed)
    lengths = [1, 40] + [draw.randint(2, 39) for _ in range(len(batch["prompt_ids"]) - 2)]
    return ["".join(draw.choice("QXZJKVWY") for _ in range(n)) for n in lengths]  # no merges: one token each


def largest_difference(values: torch.Tensor, plain: list[list[float]]) -> float:
    assert [int((~row.isnan()).sum()) for row in values] == [len(row) for row in plain]
    pairs = ((row[k], p) for row, line in zip(values.tolist(), plain, strict=True) for k, p in enumerate(line))
    return max(abs(value - expected) for value, expected in pairs)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_values_equal_separate_passes_on_every_architecture(name, tokenizer):
    model, batch = ARCHITECTURES[name](), random_batch(seed=1)
    answers = answers_for(batch)
    plain = plain_values(model, batch, answers, tokenizer)
    values = answer_values(model, Rollouts.from_padded(batch), answers, tokenizer=tokenizer)
    assert values.shape == (7, max(map(len, plain)))
    assert largest_difference(values, plain) < TOLERANCE
    assert (packed_implementation(model)[0] is not None) == (name not in tiny.UNPACKABLE)


@pytest.mark.parametrize("name", ["llama", "gpt-neox", "lfm2-hybrid"])
def test_values_equal_separate_passes_with_lora_and_its_dropout_stays_off(name, tokenizer):
    targets = {"llama": ["q_proj", "v_proj"], "gpt-neox": ["query_key_value"], "lfm2-hybrid": ["q_proj", "w1"]}[name]
    torch.manual_seed(5)
    lora = LoraConfig(r=4, lora_alpha=16, target_modules=targets, lora_dropout=0.5, init_lora_weights=False)
    model, batch = get_peft_model(ARCHITECTURES[name](), lora), random_batch(seed=2)
    answers = answers_for(batch)
    plain = plain_values(model.eval(), batch, answers, tokenizer)
    with model.disable_adapter():
        without_adapter = plain_values(model, batch, answers, tokenizer)
    model.train()
    values = answer_values(model, Rollouts.from_padded(batch), answers, tokenizer=tokenizer)
    assert largest_difference(values, plain) < TOLERANCE
    assert largest_difference(values, without_adapter) > 0.1  # the adapter is in the values
    assert all(module.training for module in model.modules())  # and the mode is restored


@pytest.mark.parametrize("name", ["qwen3", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_flex_attention_gives_the_values_of_separate_passes(name, tokenizer):
    batch = random_batch(seed=3, most_turns=2)
    answers = answers_for(batch)
    plain = plain_values(ARCHITECTURES[name](), batch, answers, tokenizer)
    model = ARCHITECTURES[name]()
    model.set_attn_implementation("flex_attention")
    assert packed_implementation(model)[0] == "flex_attention"
    values = answer_values(model, Rollouts.from_padded(batch), answers, tokenizer=tokenizer)
    assert largest_difference(values, plain) < TOLERANCE


@pytest.mark.parametrize("name", ["llama", "qwen3-eager", "gemma3", "lfm2-hybrid"])
def test_in_bfloat16_values_differ_from_separate_passes_by_rounding_only(name, tokenizer):
    model, batch = ARCHITECTURES[name]().bfloat16(), random_batch(seed=10)
    answers = answers_for(batch)
    values = answer_values(model, Rollouts.from_padded(batch), answers, tokenizer=tokenizer)
    assert largest_difference(values, plain_values(model, batch, answers, tokenizer)) < 0.1


@pytest.mark.parametrize("token_budget", [1, 100, 300, 10**6])
@pytest.mark.parametrize("packed", [True, False])
def test_the_token_budget_changes_the_number_of_forwards_only(token_budget, packed, tokenizer):
    model, batch = ARCHITECTURES["llama"](), random_batch(seed=4)
    answers = answers_for(batch)
    plain = plain_values(model, batch, answers, tokenizer)
    seen = []
    model.register_forward_pre_hook(lambda _, __, kw: seen.append(tuple(kw["input_ids"].shape)), with_kwargs=True)
    values = answer_values(
        model, Rollouts.from_padded(batch), answers, tokenizer=tokenizer, token_budget=token_budget, packed=packed
    )
    assert all(rows == 1 or rows * length <= token_budget for rows, length in seen)
    assert (len(seen) == 1) == (token_budget == 10**6)
    assert largest_difference(values, plain) < TOLERANCE


@pytest.mark.parametrize("packed", [True, False])
def test_one_long_rollout_does_not_make_a_forward_of_each_short_one(packed, tokenizer):
    # With its probe of 11 tokens the long row has 411 tokens, and 15 short ones have 51 each, of which 9 fit in 500:
    # 1 + 2 forwards. At the longest row's width only one would fit, and it would take 16.
    model = ARCHITECTURES["llama"]()
    rollouts = Rollouts([[5] * 400, *([6] * 40 for _ in range(15))], [[]] * 16, [[]] * 16)
    probes = [ProbeMaker(tokenizer, TEMPLATE).make_all("QXZJKVWY", "first")] * 16
    scores = score_turns(
        model,
        rollouts,
        probes,
        logits_scorer(model),
        implementation=packed_implementation(model)[0] if packed else None,
        token_budget=500,
    )
    assert scores.forwards == 3
    alone = score_turns(model, rollouts, probes, logits_scorer(model), implementation=None, token_budget=1)
    torch.testing.assert_close(scores.values_BK, alone.values_BK, atol=TOLERANCE, rtol=0)


def test_logits_are_made_of_answer_tokens_alone(tokenizer):
    # 2 rollouts of 3 contexts each, and an answer of 3 tokens: 18 tokens are scored, of 2 * (32 + 3 * 6) read.
    model = ARCHITECTURES["llama"]()
    made = []
    model.lm_head.register_forward_hook(lambda _, __, logits: made.append(tuple(logits.shape)))
    rollouts = Rollouts([[1] * 20] * 2, [list(range(12))] * 2, [[1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1]] * 2)
    answer_values(model, rollouts, ["QXZ"] * 2, tokenizer=tokenizer)
    assert made == [(1, 18, 384)]
    model(torch.tensor([[1, 2]]))
    assert made[1] == (1, 2, 384)  # and the head is restored


def off_by_one(order: int = 0, **shifts: int):
    """The visibility rule with one entry of each row wrong."""
    right = packed_attention.sees

    def sees(layout, window=None, first_query=0):
        layout = dataclasses.replace(layout, seen=layout.seen + shifts.get("seen", 0))
        mask = right(layout, None if window is None else window + shifts.get("window", 0), first_query)
        query = torch.arange(first_query, layout.block.size(1))
        diagonal = torch.zeros_like(mask)
        diagonal[..., query - first_query, query] = True
        ahead = (diagonal.roll(1, dims=-1) & (torch.arange(mask.size(-1)) > 0)) if order else torch.zeros_like(mask)
        return mask | ahead

    return sees


MISTAKES = [{}, {"seen": 1}, {"seen": -1}, {"order": 1}]
WINDOW_MISTAKES = [{"window": 1}, {"window": -1}]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("name", "mistake"),
    [*(("llama", mistake) for mistake in MISTAKES), *(("gemma3", mistake) for mistake in MISTAKES + WINDOW_MISTAKES)],
    ids=str,
)
def test_attention_mask_off_by_one_changes_values(name, mistake, implementation, tokenizer, monkeypatch):
    model, batch = ARCHITECTURES[name](), random_batch(seed=5)
    model.set_attn_implementation(implementation)
    answers = answers_for(batch)
    plain = plain_values(model, batch, answers, tokenizer)
    monkeypatch.setattr(packed_attention, "sees", off_by_one(**mistake))
    values = answer_values(model, Rollouts.from_padded(batch), answers, tokenizer=tokenizer, packed=True)
    assert (largest_difference(values, plain) < TOLERANCE) == (not mistake)
    if mistake:
        assert largest_difference(values, plain) > 0.01


@pytest.mark.parametrize("shift", [-1, 1])
def test_position_off_by_one_changes_values(shift, tokenizer, monkeypatch):
    model, batch = ARCHITECTURES["llama"](), random_batch(seed=6)
    answers = answers_for(batch)

    def shifted(model, temperature):
        score = logits_scorer(model, temperature)

        def shifted_score(input_ids, next_ids, mask, position_ids):
            probe = torch.arange(input_ids.size(1)) >= input_ids.size(1) - mask.size(2)
            return score(input_ids, next_ids, mask, position_ids + shift * probe)

        return shifted_score

    monkeypatch.setattr(information_gain, "logits_scorer", shifted)
    values = answer_values(model, Rollouts.from_padded(batch), answers, tokenizer=tokenizer, packed=True)
    assert largest_difference(values, plain_values(model, batch, answers, tokenizer)) > 0.01


def test_the_packed_pass_gives_the_log_probabilities_of_the_completions(tokenizer):
    model, batch = ARCHITECTURES["qwen3"](), random_batch(seed=7)
    rollouts = Rollouts.from_padded(batch)
    maker = ProbeMaker(tokenizer, TEMPLATE)
    scores = score_turns(
        model,
        rollouts,
        [maker.make_all(answer, "first") for answer in answers_for(batch)],
        logits_scorer(model),
        implementation=packed_implementation(model)[0],
        token_budget=200,
        want_logps=True,
    )
    for prompt, completion, logps in zip(rollouts.prompt_ids, rollouts.completion_ids, scores.logps, strict=True):
        assert len(logps) == len(completion)
        if completion:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
            expected = logits[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None]).squeeze(1)
            torch.testing.assert_close(logps, expected, atol=1e-5, rtol=0)


def test_aliases_are_first_best_or_averaged(tokenizer):
    model, batch = ARCHITECTURES["llama"](), random_batch(seed=8, most_turns=3)
    rollouts, names = Rollouts.from_padded(batch), [["QX", "JKVW", "Z"], ["QX"], ["Z", "QX"], ["JKVW", "Z"]]

    def values(aliases):
        return answer_values(model, rollouts, names, tokenizer=tokenizer, aliases=aliases)

    alone = [
        [answer_values(model, rollouts, [name] * 4, tokenizer=tokenizer)[i] for name in names[i]] for i in range(4)
    ]
    for i, each in enumerate(alone):
        torch.testing.assert_close(values("first")[i], each[0], equal_nan=True)
        torch.testing.assert_close(values("max")[i], torch.stack(each).amax(0), equal_nan=True)
        torch.testing.assert_close(values("mean")[i], torch.stack(each).mean(0), equal_nan=True)


def test_probability_is_the_exponential_of_the_mean_log_probability(tokenizer):
    model, batch = ARCHITECTURES["llama"](), random_batch(seed=9, most_turns=2)
    answers = answers_for(batch)
    values = answer_values(model, Rollouts.from_padded(batch), answers, tokenizer=tokenizer, measure="probability")
    plain = plain_values(model, batch, answers, tokenizer, score=lambda logps: math.exp(logps.mean().item()))
    assert largest_difference(values, plain) < 1e-6


@pytest.mark.parametrize("failed", [math.nan, -math.inf])
def test_a_probe_that_is_not_finite_has_no_value_and_is_counted(failed, tokenizer):
    # A scorer that fails on one rollout only: the last of three, after its first tool result.
    rollouts = Rollouts([[1, 2]] * 3, [[3, 4, 5]] * 3, [[1, 0, 1]] * 3)
    probes = [ProbeMaker(tokenizer, TEMPLATE).make_all("QX", "first")] * 3

    def score(input_ids, next_ids, mask, position_ids):
        logps = torch.full(input_ids.shape, -1.0)
        logps[2, -1] = failed
        return logps

    scores = score_turns(
        ARCHITECTURES["llama"](), rollouts, probes, score, implementation=packed_attention.SPLIT_SDPA, token_budget=999
    )
    expected = torch.tensor([[-1.0, -1.0], [-1.0, -1.0], [-1.0, torch.nan]])
    torch.testing.assert_close(scores.values_BK, expected, equal_nan=True)
    assert scores.failed_probes == 1


@pytest.mark.parametrize("implementation", [None, packed_attention.SPLIT_SDPA])
def test_a_probe_that_does_not_fit_in_the_context_has_no_value_and_is_counted(implementation, tokenizer):
    # Contexts of 20 and 30 tokens, each with a probe. With as many positions as both need, the rest is unchanged.
    rollouts = Rollouts([[1] * 20], [[2] * 10], [[1] * 5 + [0] * 5])
    probes = [ProbeMaker(tokenizer, TEMPLATE).make_all("QX", "first")]
    (probe,) = probes[0]
    needed = 30 + len(probe.ids) - 1

    def values(positions):
        model = ARCHITECTURES["gpt2"]()
        short = copy.deepcopy(model.config)
        short.n_positions = positions
        cut = GPT2LMHeadModel(short).eval()
        weights = model.state_dict()
        weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"][:positions]
        cut.load_state_dict(weights)
        return score_turns(cut, rollouts, probes, logits_scorer(cut), implementation=implementation, token_budget=999)

    whole, cut = values(needed), values(needed - 1)
    assert whole.values_BK.isfinite().all() and whole.failed_probes == 0
    assert cut.values_BK[0, 0] == pytest.approx(whole.values_BK[0, 0]) and cut.values_BK[0, 1].isnan()
    assert cut.failed_probes == 1


def test_rank_with_fewer_rows_runs_as_many_forwards_as_others(tokenizer):
    model, calls = ARCHITECTURES["mistral-sliding"](), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    rollouts = Rollouts([[1, 2]] * 2, [[3]] * 2, [[1]] * 2)
    probes = [ProbeMaker(tokenizer, TEMPLATE).make_all("QX", "first")] * 2

    def other_rank_has(numbers):  # 7 rows of up to 50 tokens there, while this rank has 2 short ones
        return [max(mine, theirs) for mine, theirs in zip(numbers, [7, 50, 10], strict=False)]

    scores = score_turns(
        model, rollouts, probes, logits_scorer(model), implementation=None, token_budget=60, agree=other_rank_has
    )
    assert len(calls) == scores.forwards == 7
    alone = score_turns(model, rollouts, probes, logits_scorer(model), implementation=None, token_budget=60)
    torch.testing.assert_close(scores.values_BK[:, :1], alone.values_BK)


def test_a_model_that_ignores_positions_is_found_by_trial():
    model = ARCHITECTURES["llama"]()
    implementation, _ = packed_implementation(model)
    assert packing_error(model, logits_scorer(model), implementation, 384) < TOLERANCE

    def forgetful(input_ids, next_ids, mask, position_ids):
        return logits_scorer(model)(input_ids, next_ids, mask, None)

    assert packing_error(model, forgetful, implementation, 384) > 0.01


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "depend on the length"),
        ("phi3", {"rope_parameters": {"rope_type": "longrope"}}, "depend on the length"),
        ("llama", {"_attn_implementation": "paged|unknown"}, "not known"),
        ("gemma2-eager", {"_attn_implementation": "flash_attention_2"}, "caps logits"),
        ("gpt-oss-eager", {"_attn_implementation": "flash_attention_2"}, "not known"),
        ("gemma3", {"use_bidirectional_attention": True}, "is bidirectional"),
        ("llama", {"attention_layers": ["global", "local"]}, "local attention"),  # as GPT-Neo names them
        ("falcon-alibi", {}, "ALiBi"),
        ("bloom", {}, "takes no position_ids"),
        ("mamba", {}, "linear_attention layers"),
        ("lfm2-hybrid", {}, "conv layers"),
        ("qwen3-next-hybrid", {}, "linear_attention layers"),
    ],
)
def test_models_that_cannot_be_packed_are_reported_with_the_reason(name, settings, words):
    model = ARCHITECTURES[name]()
    for setting, value in settings.items():
        setattr(model.config, setting, value)
    implementation, reason = packed_implementation(model)
    assert implementation is None and words in reason


def test_a_model_that_calls_itself_stateful_is_not_packed():
    model = ARCHITECTURES["llama"]()
    model._is_stateful = True
    assert packed_implementation(model) == (None, "it carries a recurrent state from token to token")


def test_flash_attention_is_replaced_by_the_same_attention_in_sdpa():
    model = ARCHITECTURES["llama"]()
    model.config._attn_implementation = "flash_attention_2"  # named only: it is not called
    implementation, reason = packed_implementation(model)
    assert implementation == packed_attention.SPLIT_SDPA and "flash_attention_2" in reason


def test_packed_true_on_an_unpackable_model_names_the_obstacle(tokenizer):
    with pytest.raises(ValueError, match="conv layers"):
        answer_values(
            ARCHITECTURES["lfm2-hybrid"](), Rollouts([[1]], [[2]], [[1]]), ["QX"], tokenizer=tokenizer, packed=True
        )


def test_an_empty_prompt_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="empty prompt"):
        answer_values(ARCHITECTURES["llama"](), Rollouts([[]], [[2]], [[1]]), ["QX"], tokenizer=tokenizer)


def test_different_numbers_of_answers_and_rollouts_are_an_error(tokenizer):
    with pytest.raises(ValueError, match="1 answers for 2 rollouts"):
        answer_values(ARCHITECTURES["llama"](), Rollouts([[1]] * 2, [[2]] * 2, [[1]] * 2), ["QX"], tokenizer=tokenizer)


# ---- the same context has the same value


def test_values_with_one_key_become_the_first_finite_value():
    # The probe of key 9 failed in the first row, and not in the second.
    values = torch.tensor([[-3.0, -1.0, torch.nan], [-3.001, -2.0, -5.0], [-2.999, torch.nan, torch.nan]])
    keys = torch.tensor([[7, 8, 9], [7, 9, 8], [7, NO_CONTEXT, NO_CONTEXT]])
    expected = torch.tensor([[-3.0, -1.0, -2.0], [-3.0, -2.0, -1.0], [-3.0, torch.nan, torch.nan]])
    torch.testing.assert_close(one_value_each(values, keys), expected, rtol=0, atol=0, equal_nan=True)


def test_equal_contexts_of_two_forwards_have_equal_values(tokenizer, monkeypatch):
    # Each rollout is a forward of its own, and each forward rounds differently: -1.001, then -1.002.
    forwards = []

    def score(input_ids, *_):
        forwards.append(input_ids)
        return torch.full(input_ids.shape, -1 - len(forwards) / 1000)

    monkeypatch.setattr(gain_pass, "fused_scorer", lambda *_: score)
    settings = gain_pass.GainSettings(TEMPLATE, "first", "logprob", gain_token_budget=1)
    scoring = gain_pass.GainPass(ARCHITECTURES["llama"], tokenizer, settings, Accelerator(cpu=True))
    scoring.packing_tried = True
    rollouts = Rollouts([[5, 6]] * 2, [[7, 8], [7, 9]], [[1, 0]] * 2)
    scores, _ = scoring.run(rollouts, [["Paris"]] * 2, want_logps=False)
    assert_near(scores.values_BK, [[-1.001, -1.001], [-1.001, -1.002]], 1e-6)


@pytest.mark.parametrize("implementation", ["sdpa", None])
def test_contexts_share_a_key_if_tokens_and_answer_are_equal(implementation, tokenizer):
    # The first two begin with the same turn and its result, then differ; the third has another prompt, the fourth
    # another answer. As prompt and completion, [5] + [6] is not [5, 6] + [], but as a context it is the same.
    mask = [1, 0, 1, 0, 1]
    rollouts = Rollouts(
        [[5], [5], [4], [5], [5, 6]],
        [[6, 7, 8, 9, 1], [6, 7, 9, 9, 1], [6, 7, 8, 9, 1], [6, 7, 8, 9, 1], [7, 8]],
        [mask, mask, mask, mask, [0, 1]],
    )
    maker = ProbeMaker(tokenizer, TEMPLATE)
    probes = [maker.make_all(answer, "first") for answer in ("Paris", "Paris", "Paris", "Rome", "Paris")]
    model = ARCHITECTURES["qwen3"]()
    keys = score_turns(
        model, rollouts, probes, logits_scorer(model), implementation=implementation, token_budget=1
    ).keys_BK
    assert keys[0, 0] == keys[1, 0] and keys[0, 1] == keys[1, 1] and keys[0, 2] != keys[1, 2]
    assert keys[4].tolist() == [keys[0, 1], NO_CONTEXT, NO_CONTEXT]
    others = torch.cat([keys[0], keys[2], keys[3]])
    assert len(others.unique()) == 9 and (others >= 0).all()


def test_gains_of_first_and_last_turns_may_be_left_out():
    # Rollouts of three, one and no tool turns: values 0, 1, 3, 6 grow by 1, 2, 3.
    nan = math.nan
    values = torch.tensor([[0.0, 1, 3, 6], [2, 5, nan, nan], [1, nan, nan, nan]])
    expected = {
        (True, True): [[1.0, 2, 3, nan], [3, nan, nan, nan]],
        (False, True): [[nan, 2, 3, nan], [nan] * 4],
        (True, False): [[1, 2, nan, nan], [nan] * 4],
        (False, False): [[nan, 2, nan, nan], [nan] * 4],
    }
    for (first, last), rows in expected.items():
        found = information_gain.information_gain(values, 4, first=first, last=last)
        torch.testing.assert_close(found, torch.tensor([*rows, [nan] * 4]), equal_nan=True)
