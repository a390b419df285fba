"""User errors are reported before the first step."""

import functools

import pytest
import tiny
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PromptTuningConfig
from training import Library, make, questions, rollouts_of_tokens, settings, spread
from trl import GRPOConfig, GRPOTrainer

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.rewards import exact_match


def with_answers(answers: list) -> Dataset:
    prompt = [{"role": "user", "content": "question"}]
    return Dataset.from_dict({"prompt": [prompt] * len(answers), "answer": answers})


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (questions().remove_columns("answer"), "no column 'answer'; it has prompt"),
        (with_answers(["Paris", ""]), "Row 1 of the training data set.*blank"),
        (with_answers(["  ", "Paris"]), "Row 0 .*blank"),
        (with_answers([["Paris"], []]), "Row 1 .*empty list"),
        (with_answers([1, 2]), "Row 0 .*string or a list of strings"),
        (with_answers([None, "Paris"]), "Row 0 .*holds None"),
    ],
)
def test_answers_are_checked_before_the_first_step(dataset, words, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=words):
        make(tokenizer, A2TGPOConfig(**settings(tmp_path)), train_dataset=dataset)


def test_an_answer_that_tokenises_to_nothing_is_found_before_the_first_step(tmp_path):
    from tokenizers import normalizers

    deaf = tiny.make_tokenizer()
    deaf.backend_tokenizer.normalizer = normalizers.Replace("♥", "")
    with pytest.raises(ValueError, match="'♥' in column 'answer' of the training data set tokenises to nothing"):
        make(deaf, A2TGPOConfig(**settings(tmp_path)), train_dataset=with_answers(["Paris", "♥"]))


def test_evaluation_data_whose_gains_are_computed_is_checked_too_and_named(tokenizer, tmp_path):
    bad = {"train_like": questions(1), "held_out": with_answers([""])}
    with pytest.raises(ValueError, match=r"evaluation \(held_out\)"):
        make(tokenizer, A2TGPOConfig(**settings(tmp_path, eval_gains=True)), eval_dataset=bad)


def test_columns_that_a_reward_reads_are_checked_before_the_first_step(tokenizer, tmp_path):
    def polite(completions, tone, **_):
        return [0.0] * len(completions)

    args = A2TGPOConfig(**settings(tmp_path, credit="grpo"))
    without = questions(1).remove_columns("answer")
    with pytest.raises(ValueError, match="evaluation data set has no column 'answer'; it has prompt.*exact_match"):
        make(tokenizer, args, eval_dataset=without, reward_funcs=exact_match)
    with pytest.raises(ValueError, match="training data set has no column 'tone'; it has .*polite"):
        make(tokenizer, args, reward_funcs=[exact_match, polite])
    renamed = A2TGPOConfig(**settings(tmp_path, credit="grpo", answer_column="gold"))
    data = questions(1).rename_column("answer", "gold").add_column("tone", ["kind"])
    assert make(tokenizer, renamed, train_dataset=data, reward_funcs=[exact_match, polite])


def test_completions_without_a_limit_are_refused_where_tools_are_called(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="max_completion_length must be a number where tools are called"):
        make(tokenizer, A2TGPOConfig(**settings(tmp_path, max_completion_length=None)))


def test_data_whose_gains_are_not_computed_needs_no_answers(tokenizer, tmp_path):
    without = questions(1).remove_columns("answer")
    plain = {"reward_funcs": lambda completions, **_: [0.0] * len(completions)}
    trained = make(tokenizer, A2TGPOConfig(**settings(tmp_path)), eval_dataset=without, **plain)
    args = A2TGPOConfig(**settings(tmp_path, credit="grpo", eval_gains=True))
    evaluated = make(tokenizer, args, train_dataset=without, eval_dataset=questions(1), **plain)
    assert trained._gain_pass is not None and evaluated._gain_pass is not None


def test_blank_alias_is_an_error_only_if_aliases_are_used(tokenizer, tmp_path):
    dataset = with_answers([["Paris", ""]])
    make(tokenizer, A2TGPOConfig(**settings(tmp_path)), train_dataset=dataset)
    with pytest.raises(ValueError, match="blank"):
        make(tokenizer, A2TGPOConfig(**settings(tmp_path, answer_aliases="max")), train_dataset=dataset)


def test_rows_of_a_stream_are_checked_as_they_arrive(tokenizer, tmp_path):
    def rows():
        for _ in range(8):
            yield {"prompt": [{"role": "user", "content": "question"}], "answer": ""}

    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path)), train_dataset=IterableDataset.from_generator(rows))
    with pytest.raises(ValueError, match="Column 'answer' of a row of the batch.*blank"):
        trainer.train()


def test_without_gains_no_answer_is_needed(tokenizer, tmp_path):
    args = A2TGPOConfig(**settings(tmp_path, gain_weight=0.0, clip_adaptation=0.0))
    dataset = questions().remove_columns("answer")
    trainer = make(tokenizer, args, train_dataset=dataset, reward_funcs=spread)
    trainer.train()
    assert trainer.state.global_step == 2
    assert not any(key.startswith("gain/") for entry in trainer.state.log_history for key in entry)


@pytest.mark.parametrize("of_model", [False, True])
@pytest.mark.parametrize(
    ("name", "words"), [("num_beams", "seeded_rollouts=False"), ("num_return_sequences", "num_gen")]
)
def test_num_beams_and_num_return_sequences_above_one_are_refused(name, words, of_model, tokenizer, tmp_path):
    model = tiny.make_model(tokenizer)
    args = A2TGPOConfig(**settings(tmp_path, generation_kwargs=None if of_model else {name: 2}))
    if of_model:
        setattr(model.generation_config, name, 2)
    with pytest.raises(ValueError, match=f"{name}=2 .*{words}"):
        A2TGPOTrainer(model, exact_match, args, questions(), processing_class=tokenizer)


@pytest.mark.parametrize("given", [{"stop": "</answer>"}, {"stop_token_ids": [7]}])
def test_masking_truncated_rollouts_is_refused_with_other_ends_of_turns(given, tokenizer, tmp_path):
    args = A2TGPOConfig(**settings(tmp_path, generation_kwargs=given, mask_truncated_completions=True))
    with pytest.raises(ValueError, match=f"mask_truncated_completions takes .* ended at {next(iter(given))} "):
        A2TGPOTrainer(tiny.make_model(tokenizer), exact_match, args, questions(), processing_class=tokenizer)


def test_beam_search_trains_if_seeded_rollouts_is_off(tokenizer, tmp_path):
    changes = {"generation_kwargs": {"num_beams": 2}, "max_completion_length": 8, "max_steps": 1}
    args = A2TGPOConfig(**settings(tmp_path, seeded_rollouts=False, **changes))
    trainer = make(tokenizer, args, scripted=False, reward_funcs=spread)
    trainer.train()
    assert trainer.state.global_step == 1


def test_a_template_that_cannot_call_tools_is_an_error(tmp_path):
    chatty = tiny.make_tokenizer(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
    )
    with pytest.raises(ValueError, match="does not support tool calling"):
        make(chatty, A2TGPOConfig(**settings(tmp_path)))


def test_a_template_that_rewrites_earlier_turns_is_an_error(tmp_path):
    # Every turn is numbered from the end, so a tool result changes the text before it.
    counting = tiny.make_tokenizer(
        "{% for m in messages %}<|im_start|>{{ loop.revindex }} {{ m['role'] }} {{ m['content'] }}"
        "{% for c in m.tool_calls or [] %}{{ c['function'] | tojson }}{% endfor %}<|im_end|>{% endfor %}"
    )
    counting.response_template = {"anything": "so that parsing is not what fails"}
    with pytest.raises(ValueError, match="prefix-preservation"):
        make(counting, A2TGPOConfig(**settings(tmp_path)))


def test_a_generation_prompt_that_breaks_the_probe_is_an_error(tmp_path):
    thinking = tiny.make_tokenizer(
        tiny.chat_template("qwen3_training.jinja").replace(
            "'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'"
        )
    )
    thinking.response_template = {}
    with pytest.raises(ValueError, match="opens a thinking block"):
        make(thinking, A2TGPOConfig(**settings(tmp_path)))


def test_a_plain_grpo_config_is_an_error(tokenizer, tmp_path):
    with pytest.raises(TypeError, match="must be an A2TGPOConfig, got GRPOConfig"):
        make(tokenizer, GRPOConfig(**settings(tmp_path)))


def test_a_vision_language_model_is_an_error(tokenizer, tmp_path, monkeypatch):
    made = GRPOTrainer.__init__

    def with_eyes(self, *given, **by_name):
        made(self, *given, **by_name)
        self._is_vlm = True

    monkeypatch.setattr(GRPOTrainer, "__init__", with_eyes)
    with pytest.raises(ValueError, match="Vision-language"):
        make(tokenizer, A2TGPOConfig(**settings(tmp_path)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda out: out["env_mask"][0].pop(), "4 entries of 'env_mask' for the 5 completion tokens of rollout 0"),
        (lambda out: out["logprobs"][1].pop(), "3 entries of 'logprobs' for the 4 completion tokens of rollout 1"),
        (lambda out: out["env_mask"].pop(), "3 rows of 'env_mask' for 4 completions"),
        (lambda out: out["completion_ids"].pop(), "3 completions for 4 prompts"),
        (lambda out: out.pop("completion_ids"), "completion_ids"),
    ],
)
def test_malformed_rollout_function_output_is_an_error(change, words, tokenizer, tmp_path):
    def rollout(prompts, trainer):
        output = rollouts_of_tokens(prompts, trainer)
        output = {key: [list(row) for row in rows] for key, rows in output.items()}
        change(output)
        return output

    trainer = make(tokenizer, A2TGPOConfig(**settings(tmp_path)), tools=None, rollout_func=rollout)
    with pytest.raises(ValueError, match=words):
        trainer.train()


def test_an_adapter_of_virtual_tokens_is_an_error(tokenizer, tmp_path):
    adapter = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(ValueError, match="PROMPT_TUNING adapters put virtual tokens"):
        make(tokenizer, A2TGPOConfig(**settings(tmp_path)), peft_config=adapter)


def test_single_tokens_are_trained_unless_the_head_is_tied_to_them(tokenizer, tmp_path):
    adapter = LoraConfig(target_modules="all-linear", trainable_token_indices=[3, 4], task_type="CAUSAL_LM")
    args = A2TGPOConfig(**settings(tmp_path, max_steps=1, learning_rate=1e-2))
    tied = tiny.make_model(tokenizer, tie_word_embeddings=True)
    with pytest.raises(ValueError, match="trainable_token_indices in peft_config: .*modules_to_save"):
        A2TGPOTrainer(tied, spread, args, questions(), processing_class=tokenizer, peft_config=adapter)
    trainer = make(tokenizer, args, peft_config=adapter, reward_funcs=spread)
    (tokens,) = (w for name, w in trainer.model.named_parameters() if "trainable_tokens_delta" in name)
    before = tokens.detach().clone()
    trainer.train()
    assert not torch.equal(tokens, before)


SCHEMA = {"type": "function", "function": {"name": "search", "parameters": {}}}


class Frozen:
    """An environment without `reset`."""

    def look(self) -> str:
        """Look around."""
        return "nothing"


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"tools": [tiny.search, SCHEMA]}, r"tools\[1\] must be a function; got dict, the schema of 'search'"),
        ({"tools": ["search"]}, r"tools\[0\] must be a function; got str, 'search'"),
        ({"tools": [functools.partial(tiny.search)]}, r"tools\[0\] must be a function; got partial"),
        ({"tools": [Library]}, r"tools\[0\] must be a function; got type, <class .*Library"),
        ({"tools": tiny.search}, r"tools must be a list of functions; got function. Write tools=\[search\]"),
        ({"environment_factory": Frozen}, "class Frozen have no method reset.*define reset"),
        ({"environment_factory": Library()}, r"got an object of class Library.*\(environment_factory=Library\)"),
        ({"environment_factory": {"room": Library()}}, r"environment_factory\['room'\] must return a new environment"),
        ({"environment_factory": lambda: None}, "class NoneType have no method reset"),
    ],
)
def test_invalid_tools_and_environments_are_refused_with_the_expected_type(keywords, words, tokenizer, tmp_path):
    with pytest.raises(TypeError, match=words):
        make(tokenizer, A2TGPOConfig(**settings(tmp_path)), **{"tools": None, **keywords})


@pytest.mark.parametrize(
    "keywords",
    [{"tools": [tiny.search, tiny.searches(str)]}, {"tools": [tiny.search], "environment_factory": Library}],
    ids=["two tools", "a tool and a method"],
)
def test_tools_of_one_name_are_refused(keywords, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"two tools are named 'search': tiny.search and .*SearchTool with name="):
        make(tokenizer, A2TGPOConfig(**settings(tmp_path)), **{"tools": None, **keywords})
