"""An unchanged policy has equal old and new log-probabilities: nothing is clipped before anything is learnt."""

import copy
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from peft import LoHaConfig, LoraConfig, OFTConfig, PeftModel, get_peft_model
from recipe_files import SHIPPED
from torch.optim.lr_scheduler import LambdaLR
from training import logged, questions, settings, write

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.dropout import dropout_rates, settle_dropout, switch_off_dropout
from a2tgpo_trl.rewards import exact_match


def with_dropout(name: str):
    """A tiny model of this architecture with every dropout rate in its config set to 0.5."""
    config = copy.deepcopy(tiny.architectures()[name]().config)
    for key in vars(config):
        if "drop" in key and isinstance(getattr(config, key), (int, float)):
            setattr(config, key, 0.5)
    return tiny.build(config, attention=config._attn_implementation).train()


def draws(model) -> bool:
    """Whether two forwards over the same tokens differ."""
    ids = torch.arange(3, 43).unsqueeze(0)
    with torch.no_grad():
        return not torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", tiny.architectures())
def test_no_architecture_draws_random_numbers_with_dropout_off(name):
    model = with_dropout(name)
    assert draws(model) == bool(dropout_rates(model))
    switch_off_dropout(model)
    assert not draws(model) and not dropout_rates(model)


ADAPTERS = {
    "lora": LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False),
    "dora": LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False, use_dora=True),
    "lora beside a whole copy": LoraConfig(
        r=4, target_modules=["up_proj"], modules_to_save=["self_attn"], lora_dropout=0.5, init_lora_weights=False
    ),
    "loha": LoHaConfig(
        r=4, target_modules=["q_proj", "v_proj"], module_dropout=0.5, rank_dropout=0.5, init_weights=False
    ),
    "oft": OFTConfig(target_modules=["q_proj"], oft_block_size=8, module_dropout=0.5, init_weights=False),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_no_adapter_draws_random_numbers_with_dropout_off(name, tokenizer):
    torch.manual_seed(0)
    model = get_peft_model(tiny.make_model(tokenizer, attention_dropout=0.5), ADAPTERS[name]).train()
    assert draws(model)
    switch_off_dropout(model)
    assert not draws(model)


def test_dropout_rates_are_reported_under_their_config_names(tokenizer):
    model = get_peft_model(with_dropout("gpt2"), LoraConfig(lora_dropout=0.5))
    assert dropout_rates(model).keys() >= {"attn_pdrop", "resid_pdrop", "embd_pdrop", "lora_dropout"}
    assert "summary_first_dropout" not in dropout_rates(model)  # belongs to a classification head
    assert dropout_rates(tiny.make_model(tokenizer)) == {}


# ---- in training


LORA = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.05)
# Every metric of clipping, ours and TRL's. Each batch is used for two steps.
CLIPPED = ("clip_fraction/mean", "clip_ratio/region_mean", "clip_ratio/high_max")


def make(tokenizer, tmp_path, model=None, peft_config=None, **changes) -> A2TGPOTrainer:
    """A trainer that takes two steps on each batch of rollouts, each step of two micro-batches."""
    layout = {"per_device_train_batch_size": 2, "steps_per_generation": 4, "gradient_accumulation_steps": 2}
    args = A2TGPOConfig(**settings(tmp_path, max_steps=4, **layout, **changes))
    model = model or tiny.make_model(tokenizer)
    tiny.script(model, tokenizer, write)
    return A2TGPOTrainer(
        model,
        exact_match,
        args,
        questions(),
        processing_class=tokenizer,
        tools=[tiny.search],
        peft_config=peft_config,
    )


def learn_and_stand_still(trainer: A2TGPOTrainer) -> None:
    """Train on one batch, then on another at learning rate 0."""
    trainer.create_optimizer()
    trainer.lr_scheduler = LambdaLR(trainer.optimizer, lambda step: float(step < 2))
    trainer.train()


def check_that_nothing_is_clipped_at_a_standstill(trainer) -> None:
    for name in CLIPPED:
        _, learning, *standing_still = logged(trainer, name)
        assert learning > 0 and standing_still == [0.0, 0.0], name
    assert logged(trainer, "turn_ratio/mean")[2:] == pytest.approx([1.0, 1.0], abs=1e-5)


# Settings that can affect old and new log-probabilities, their ratio, or how the ratio is used.
OF_THE_RATIO = (
    *("credit", "importance_sampling_level", "loss_type", "epsilon", "epsilon_high", "clip_adaptation", "beta"),
    *("temperature", "num_iterations", "disable_dropout", "gradient_checkpointing", "gain_token_budget"),
    *("pad_to_multiple_of", "cast_lm_head_to_fp32", "tf32"),
)


def method_of(recipe: Path) -> dict:
    given = yaml.safe_load(recipe.read_text())
    return {name: given[name] for name in OF_THE_RATIO if name in given}


def methods() -> dict[str, dict]:
    """The distinct methods of shipped recipes, by the joined names of the recipes that use each."""
    found: dict[str, dict] = {}
    for recipe in SHIPPED:
        same = [names for names, method in found.items() if method == method_of(recipe)]
        found["+".join([*same, recipe.stem])] = method_of(recipe)
        for names in same:
            del found[names]
    return found


def runs() -> list:
    """Each method in each precision, with and without adapters; all but two of the combinations are slow tests."""
    everyday = {("float32", "full"), ("bfloat16", "lora")}
    return [
        pytest.param(method, precision, how, marks=[] if (precision, how) in everyday else pytest.mark.slow, id=names)
        for names, method in methods().items()
        for precision in ("float32", "bfloat16", "weights in bfloat16")
        for how in ("full", "lora")
    ]


@pytest.mark.parametrize(("method", "precision", "how"), runs())
def test_unchanged_policy_is_never_clipped(method, precision, how, tokenizer, tmp_path):
    model = tiny.make_model(tokenizer)
    if precision == "weights in bfloat16":
        model.to(torch.bfloat16)
    adapter = LORA if how == "lora" else None
    trainer = make(tokenizer, tmp_path, model, adapter, bf16=precision != "float32", **method)
    learn_and_stand_still(trainer)
    check_that_nothing_is_clipped_at_a_standstill(trainer)


def said(caplog) -> list[str]:
    return [record.message for record in caplog.records if "ropout" in record.message]


def test_loaded_adapter_and_base_lose_their_dropout_with_one_log_line(tokenizer, tmp_path, caplog):
    get_peft_model(tiny.make_model(tokenizer), ADAPTERS["lora"]).save_pretrained(tmp_path / "adapter")
    base = tiny.make_model(tokenizer, attention_dropout=0.25)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    trainer = make(tokenizer, tmp_path, model, beta=0.05)  # with a copy as the reference
    assert dropout_rates(trainer.model) == {} and "ref" in trainer.model.peft_config
    (line,) = said(caplog)
    assert "Dropout is off (0 instead of attention_dropout=0.25, lora_dropout=0.5)" in line
    learn_and_stand_still(trainer)
    check_that_nothing_is_clipped_at_a_standstill(trainer)


@pytest.mark.parametrize("level", ["turn", "sequence"])
def test_no_dropout_warning_if_disable_dropout_is_set(level, tokenizer, tmp_path, caplog):
    trainer = make(tokenizer, tmp_path, peft_config=LORA, importance_sampling_level=level, disable_dropout=True)
    assert dropout_rates(trainer.model) == {} and said(caplog) == []


def test_token_ratios_keep_the_dropout_that_trl_gives_them(tokenizer, tmp_path, caplog):
    model = tiny.make_model(tokenizer, attention_dropout=0.1)
    trainer = make(tokenizer, tmp_path, model, LORA, credit="grpo")
    assert dropout_rates(trainer.model) == {"attention_dropout": 0.1, "lora_dropout": 0.05}
    (line,) = said(caplog)
    assert line.startswith("[RANK 0] The policy has dropout (attention_dropout=0.1, lora_dropout=0.05)")


def test_disable_dropout_also_switches_off_functional_dropout(tokenizer, tmp_path, caplog):
    model = tiny.make_model(tokenizer, attention_dropout=0.1)
    trainer = make(tokenizer, tmp_path, model, LORA, credit="grpo", disable_dropout=True)
    assert dropout_rates(trainer.model) == {} and said(caplog) == []


def test_token_ratios_with_dropout_warn_if_vllm_correction_is_on(tokenizer, caplog):
    model = tiny.make_model(tokenizer, attention_dropout=0.1)
    settle_dropout(model, "token", disabled=False, several_updates=False, sampler_is_corrected=True)
    (line,) = said(caplog)
    assert "attention_dropout=0.1" in line and "vLLM" in line and dropout_rates(model)


@pytest.mark.parametrize(("several_updates", "warned"), [(True, True), (False, False)])
def test_token_ratios_with_dropout_warn_if_a_batch_serves_several_updates(several_updates, warned, tokenizer, caplog):
    model = tiny.make_model(tokenizer, attention_dropout=0.1)
    settle_dropout(model, "token", disabled=False, several_updates=several_updates, sampler_is_corrected=False)
    assert ["clipped before anything is learnt" in line for line in said(caplog)] == [True] * warned
    assert dropout_rates(model)


@pytest.mark.parametrize(("level", "warned"), [("turn", True), ("token", False)])
def test_a_model_that_routes_at_random_is_warned_of_where_tokens_share_a_ratio(level, warned, tokenizer, caplog):
    model = tiny.make_model(tokenizer)
    model.config.model_type = "phimoe"
    settle_dropout(model, level, disabled=True, several_updates=True, sampler_is_corrected=False)
    assert ["type phimoe draws its experts at random" in record.message for record in caplog.records] == [
        True
    ] * warned


@pytest.mark.parametrize("recipe", SHIPPED, ids=lambda file: file.stem)
def test_shipped_recipes_switch_dropout_off(recipe):
    given = yaml.safe_load(recipe.read_text())
    assert given.get("lora_dropout") == 0.0 if given.get("use_peft") else given.get("disable_dropout")
