import pickle
from dataclasses import fields
from typing import get_args

import pytest
from transformers.utils import is_torch_bf16_gpu_available
from trl import GRPOConfig, TrlParser

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.config import Normalization
from a2tgpo_trl.credit import NORMALIZATIONS
from a2tgpo_trl.fields import check_fields, kinds_of
from a2tgpo_trl.rollout.settings import ToolConfig


def config(tmp_path, **changes) -> A2TGPOConfig:
    return A2TGPOConfig(str(tmp_path), use_cpu=True, bf16=False, **changes)


def test_the_defaults_are_those_of_the_paper(tmp_path):
    args = config(tmp_path)
    assert (args.gain_weight, args.discount, args.clip_adaptation) == (0.3, 1.0, 0.3)
    assert (args.epsilon, args.epsilon_high, args.beta) == (3e-3, 4e-3, 0.0)
    assert (args.importance_sampling_level, args.gain_normalization) == ("turn", "turn_group")
    assert args.rescale_accumulation and args.gain_measure == "logprob" and args.answer_aliases == "first"


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("credit", "grop", "'a2tgpo', 'grpo'"),
        ("gain_weight", -0.1, "[0.0, inf)"),
        ("gain_weight", float("nan"), "[0.0, inf)"),
        ("gain_weight", "0.3", "number"),
        ("discount", 1.01, "[0.0, 1.0]"),
        ("clip_adaptation", 1.0, "[0.0, 1.0)"),
        ("clip_adaptation", True, "number"),
        ("epsilon", 0.0, "(0.0, 1.0)"),
        ("epsilon", 0.9, "ratio of 0"),
        ("epsilon_high", -0.1, "(0.0, inf)"),
        ("gain_token_budget", 0, "[1, inf)"),
        ("gain_token_budget", 10.5, "whole number"),
        ("sampling_batch_size", 0, "[1, inf)"),
        ("gain_normalization", "group", "'turn_group', 'pooled', 'none'"),
        ("importance_sampling_level", "word", "'turn', 'token', 'sequence'"),
        ("gain_measure", "logits", "'logprob', 'probability'"),
        ("answer_aliases", "best", "'first', 'max', 'mean'"),
        ("loss_type", "ppo", "'dapo', 'grpo', 'bnpo', 'dr_grpo', 'luspo', 'cispo', 'sapo', 'vespo'"),
        ("rescale_accumulation", "no", "true or false"),
        ("probe_template", "<answer></answer>", "{answer} exactly once"),
        ("probe_template", "{answer}{answer}", "{answer} exactly once"),
    ],
)
def test_a_value_out_of_range_names_field_range_and_value(field, value, allowed, tmp_path):
    with pytest.raises(ValueError) as error:
        config(tmp_path, **{field: value})
    assert field in str(error.value) and allowed in str(error.value) and str(value) in str(error.value)


@pytest.mark.parametrize("loss_type", ["cispo", "sapo", "vespo"])
def test_losses_without_clip_range_refuse_clip_adaptation(loss_type, tmp_path):
    with pytest.raises(ValueError, match=f"loss_type='{loss_type}' .* no clip range to scale. Set clip_adaptation=0."):
        config(tmp_path, loss_type=loss_type)
    config(tmp_path, loss_type=loss_type, clip_adaptation=0, epsilon_high=5.0)
    config(tmp_path, loss_type=loss_type, credit="grpo")


@pytest.mark.parametrize("level", ["turn", "sequence"])
def test_noise_on_embeddings_does_not_go_with_a_shared_ratio(level, tmp_path):
    with pytest.raises(
        ValueError, match=f"neftune_noise_alpha adds noise .* ratio of a {level} out of its clip range"
    ):
        config(tmp_path, neftune_noise_alpha=5.0, importance_sampling_level=level)
    config(tmp_path, neftune_noise_alpha=5.0, credit="grpo")


def test_cispo_with_the_clip_range_of_a_turn_for_its_cap_is_refused(tmp_path):
    with pytest.raises(ValueError, match="caps the ratio at epsilon_high itself, and 0.004 would scale every token"):
        config(tmp_path, loss_type="cispo", clip_adaptation=0)


def test_the_edges_of_the_ranges_are_allowed(tmp_path):
    lowest = {"gain_weight": 0, "clip_adaptation": 0, "gain_token_budget": 1}
    highest = {"discount": 1, "clip_adaptation": 0.99, "epsilon": 0.2, "epsilon_high": 0.28}
    for edges in (lowest, {"discount": 0}, highest):
        args = config(tmp_path, **edges)
        assert {name: getattr(args, name) for name in edges} == edges


def test_unset_switches_take_the_values_of_the_method(tmp_path):
    args = config(tmp_path, credit="grpo")
    assert (args.gain_weight, args.clip_adaptation, args.importance_sampling_level) == (0.0, 0.0, "token")
    assert (args.epsilon, args.epsilon_high, args.uses_gain) == (0.2, 0.2, False)
    args = config(tmp_path, credit="grpo", gain_weight=0.5, importance_sampling_level="sequence")
    assert (args.gain_weight, args.clip_adaptation, args.importance_sampling_level) == (0.5, 0.0, "sequence")
    assert config(tmp_path, gain_weight=0.0).gain_weight == 0.0


def test_epsilon_alone_is_the_width_on_both_sides(tmp_path):
    args = config(tmp_path, epsilon=0.1)
    assert (args.epsilon, args.epsilon_high) == (0.1, 0.1)
    args = config(tmp_path, epsilon_high=0.1)
    assert (args.epsilon, args.epsilon_high) == (3e-3, 0.1)


def test_settings_survive_to_dict_and_back(tmp_path):
    args = config(tmp_path, credit="grpo", epsilon=0.1)
    names = ("credit", "epsilon", "epsilon_high", "gain_weight", "clip_adaptation", "importance_sampling_level")
    again = config(tmp_path, **{name: args.to_dict()[name] for name in names})
    assert [getattr(again, name) for name in names] == [getattr(args, name) for name in names]


def test_gains_are_computed_only_if_something_reads_them(tmp_path):
    assert config(tmp_path, gain_weight=0).uses_gain and config(tmp_path, clip_adaptation=0).uses_gain
    assert not config(tmp_path, gain_weight=0, clip_adaptation=0).uses_gain


def test_every_normalisation_of_the_config_exists(tmp_path):
    assert tuple(NORMALIZATIONS) == get_args(Normalization)


def test_tool_config_keeps_grpo_defaults_and_checks_tool_settings(tmp_path):
    args = ToolConfig(str(tmp_path), use_cpu=True, bf16=False, tool_settings='{"search": {"timeout": 5}}')
    theirs = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    assert (args.epsilon, args.importance_sampling_level, args.beta) == (theirs.epsilon, "token", theirs.beta)
    assert args.tool_settings == {"search": {"timeout": 5}} and args.failure_policies["context_full"] == "end"
    assert ToolConfig(str(tmp_path), use_cpu=True, bf16=False, max_calls_per_turn=None).max_calls_per_turn is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tool_concurrency", 0, r"tool_concurrency must be in \[1, inf\); got 0."),
        ("max_hung_calls", None, r"max_hung_calls must be a number in \[0, inf\); got None."),
        ("tool_timeout", 0, r"tool_timeout must be in \(0.0, inf\); got 0."),
        ("max_result_tokens", 2.5, "max_result_tokens must be a whole number; got 2.5."),
        ("seeded_rollouts", "no", "seeded_rollouts must be true, false or None; got 'no'."),
        ("on_outage", "stopp", "on_outage must be one of 'stop', 'continue'; got 'stopp'. Did you mean 'stop'?"),
    ],
)
def test_a_setting_of_tools_out_of_range_is_refused_with_what_it_takes(field, value, message, tmp_path):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        ToolConfig(str(tmp_path), use_cpu=True, bf16=False, **{field: value})


def test_a_setting_that_was_changed_afterwards_can_be_checked_again(tmp_path):
    args = config(tmp_path)
    check_fields(args, GRPOConfig)
    args.discount = 2.0
    with pytest.raises(ValueError, match=r"discount must be in \[0.0, 1.0\]; got 2.0."):
        check_fields(args, GRPOConfig)


@pytest.mark.parametrize("settings", [ToolConfig, A2TGPOConfig])
def test_every_field_of_ours_is_documented_with_its_type_and_meaning(settings):
    theirs = {entry.name for entry in fields(GRPOConfig)}
    documented = set(kinds_of(settings, GRPOConfig))
    assert {entry.name for entry in fields(settings)} - theirs <= documented
    page = " ".join(settings.__doc__.split())
    for name in documented:
        assert f" {name} (`" in page
        assert settings.__dataclass_fields__[name].metadata["help"] in page
    assert "tool_timeout (`float`, in (0.0, inf), *optional*, defaults to `60.0`): Seconds that a call" in page
    headings = {name for parent in settings.__mro__ for name in vars(parent).get("HEADINGS", ())}
    assert headings <= documented
    assert page.count("> Parameters that control") == len(headings)


def test_settings_that_were_pickled_are_the_same(tmp_path):
    args = config(tmp_path, credit="gtpo", tool_timeout=3.0)
    assert pickle.loads(pickle.dumps(args)).to_dict() == args.to_dict()


ABLATIONS = {
    "gain_normalization: pooled": ("gain_normalization", "pooled"),
    "gain_normalization: none": ("gain_normalization", "none"),  # the word, not YAML's null
    "rescale_accumulation: false": ("rescale_accumulation", False),
    "clip_adaptation: 0": ("clip_adaptation", 0.0),
    "gain_weight: 0": ("gain_weight", 0.0),
    "importance_sampling_level: sequence": ("importance_sampling_level", "sequence"),
    "gain_measure: probability": ("gain_measure", "probability"),
    "answer_aliases: max": ("answer_aliases", "max"),
    "epsilon: 3e-2": ("epsilon", 3e-2),  # YAML reads this one as a string
}


@pytest.mark.parametrize("line", ABLATIONS)
def test_each_ablation_is_one_line_of_yaml(line, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"output_dir: {tmp_path}\nuse_cpu: true\nbf16: false\n{line}\n")
    (args,) = TrlParser(A2TGPOConfig).parse_args_and_config(["--config", str(recipe)])
    name, value = ABLATIONS[line]
    assert getattr(args, name) == value


@pytest.mark.skipif(is_torch_bf16_gpu_available(), reason="it computes in bf16")
@pytest.mark.parametrize("said", [{}, {"bf16": True}])
def test_bf16_without_an_accelerator_is_refused_with_a_remedy(said, tmp_path):
    with pytest.raises(ValueError, match="Set bf16: false"):
        A2TGPOConfig(str(tmp_path), **said)
