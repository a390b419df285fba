"""Adapters: new, trained further, merged, on a quantised base; and which weights score what."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from a2tgpo_trl import A2TGPOTrainer
from a2tgpo_trl.cli import main
from a2tgpo_trl.errors import RecipeError
from a2tgpo_trl.information_gain.values import Rollouts, answer_values
from a2tgpo_trl.recipe.recipe import read_recipe
from a2tgpo_trl.tasks.atlas import POLICY
from a2tgpo_trl.train import train


SMALL = {
    "max_steps": 2,
    "eval_rows": 0,
    "task_kwargs": '{"train_questions": 20, "test_questions": 4}',
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_generations": 4,
    "learning_rate": 3e-3,
    "warmup_steps": 0,
    "disable_tqdm": "true",
    "use_cpu": "true",
}
# No streaming: with it, the batching, and so the last bits, depend on when tools answer.
NEW = {"use_peft": "true", "lora_target_modules": "all-linear", "lora_dropout": 0.0, "stream_turns": "false"}


def words(folder: Path, **changes) -> list[str]:
    settings = {**SMALL, "output_dir": folder, **changes}
    return ["--config", "quickstart", *(str(word) for key, value in settings.items() for word in (f"--{key}", value))]


def run(folder: Path, **changes) -> A2TGPOTrainer:
    return train(read_recipe(words(folder, **changes)))


def parts(trainer: A2TGPOTrainer, adapter: str) -> dict[str, torch.Tensor]:
    mark = f".{adapter}."
    return {
        name.replace(mark, "."): parameter.detach().clone()
        for name, parameter in trainer.model.named_parameters()
        if mark in name
    }


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys() and one
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run that makes an adapter, and its folder."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    return run(folder, **NEW), folder


def test_the_same_seed_makes_the_same_adapter_whatever_was_drawn_before(first, tmp_path):
    torch.manual_seed(1234)  # as a notebook may have done
    assert equal(parts(first[0], "default"), parts(run(tmp_path / "again", **NEW), "default"))


def test_adapter_trains_further_with_its_start_as_the_kl_reference(first, tmp_path):
    """With KL, the reference of an adapter that is trained further is that adapter, not the bare base."""
    trainer, folder = first
    recipe = read_recipe(words(tmp_path / "on", model_name_or_path=folder, beta=0.05, max_steps=3))
    further = recipe.build_trainer()
    scored = []
    run_pass = further._gain_pass.run

    def note(rollouts, answers, *given):
        scores, metrics = run_pass(rollouts, answers, *given)
        expected = answer_values(further.model, rollouts, answers, tokenizer=further._tokenizer)
        scored.append((scores.values_BK, expected, parts(further, "default")))
        return scores, metrics

    further._gain_pass.run = note
    further.train()
    before, after = parts(trainer, "default"), parts(further, "default")
    assert equal(parts(further, "ref"), before) and not equal(after, before)
    for values, expected, _ in scored:
        torch.testing.assert_close(values, expected, atol=1e-4, rtol=0, equal_nan=True)
    # The last batch is scored by the current adapter, not by the reference.
    assert not equal(scored[-1][2], before)
    first_kl, *_, last_kl = (entry["kl"] for entry in further.state.log_history if "kl" in entry)
    assert first_kl == 0 and last_kl > 0


def test_the_gain_of_a_new_adapter_is_the_adapted_policys_and_not_the_bases(first):
    trainer, _ = first
    tokenizer, rollouts = trainer._tokenizer, Rollouts([[5, 6, 7]], [[8, 9]], [[1, 0]])
    adapted = trainer._gain_pass.run(rollouts, [["Paris"]], want_logps=False)[0].values_BK
    with trainer.model.disable_adapter():
        bare = answer_values(trainer.model, rollouts, [["Paris"]], tokenizer=tokenizer)
    here = answer_values(trainer.model, rollouts, [["Paris"]], tokenizer=tokenizer)
    torch.testing.assert_close(adapted, here, atol=1e-4, rtol=0)
    assert (adapted - bare).abs().min() > 1e-3


# ---- merged


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(3, 40).unsqueeze(0)).logits


def test_a_merged_policy_is_base_and_adapter_together_and_needs_neither(first, tmp_path, capsys):
    _, folder = first
    assert main(["merge", str(folder), str(tmp_path / "merged")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(str(POLICY))
    bare = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, str(folder)))
    merged = AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged"))
    torch.testing.assert_close(logits(merged), adapted, atol=1e-4, rtol=1e-4)
    assert (adapted - bare).abs().max() > 0.01
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "merged"))
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(str(folder)).chat_template
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    recipe = read_recipe(words(tmp_path / "on", model_name_or_path=tmp_path / "merged"))
    assert recipe.adapter is None


def test_failed_merge_says_why_and_writes_nothing(first, tmp_path, capsys):
    _, folder = first
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in ("adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (elsewhere / file).write_bytes((folder / file).read_bytes())
    config = json.loads((folder / "adapter_config.json").read_text())
    (elsewhere / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/gone/base"}))
    for given, into, said in (
        (POLICY, "new", "no adapter_config.json"),
        (folder, "full", "not empty"),
        (elsewhere, "new", "--base"),
    ):
        assert main(["merge", str(given), str(tmp_path / into)]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
    assert main(["merge", str(elsewhere), str(tmp_path / "new"), "--base", str(POLICY)]) == 0


def test_an_adapter_without_its_weights_is_noticed_before_the_hub_is_asked(first, tmp_path):
    _, folder = first
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    with pytest.raises(RecipeError, match="not its weights"):
        read_recipe(words(tmp_path / "on", model_name_or_path=tmp_path / "half"))


# ---- quantised


@pytest.mark.slow
def test_adapter_on_a_4_bit_base_trains_further_and_merges(tmp_path):
    trainer = run(tmp_path / "four", **NEW, load_in_4bit="true")
    kinds = {type(module).__name__ for module in trainer.model.modules()}
    assert "Linear4bit" in kinds
    assert all("lora_" in name for name, p in trainer.model.named_parameters() if p.requires_grad)
    assert max(part.abs().max() for name, part in parts(trainer, "default").items() if "lora_B" in name) > 0
    gains = [entry["gain/mean"] for entry in trainer.state.log_history if "gain/mean" in entry]
    assert len(gains) == 2 and all(map(torch.isfinite, map(torch.tensor, gains)))
    further = run(tmp_path / "on", model_name_or_path=tmp_path / "four", load_in_4bit="true", max_steps=1)
    assert "Linear4bit" in {type(module).__name__ for module in further.model.modules()}
    assert main(["merge", str(tmp_path / "four"), str(tmp_path / "merged")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged"))
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
