"""Each thing that would go wrong in training is a finding that says what to do; a sound recipe passes."""

import math
import sqlite3
import threading
import time
from dataclasses import replace

import pytest
import tiny
import torch
import training
from datasets import Dataset, IterableDataset
from transformers import MambaConfig
from trl import ModelConfig
from trl.chat_template_utils import add_response_schema

from a2tgpo_trl import A2TGPOConfig, preflight
from a2tgpo_trl.cli import check as command
from a2tgpo_trl.cli import main as cli
from a2tgpo_trl.preflight import Finding
from a2tgpo_trl.preflight.chat import Chat
from a2tgpo_trl.preflight.lengths import longest_prompt
from a2tgpo_trl.recipe.recipe import Recipe, RecipeArguments
from a2tgpo_trl.rewards import exact_match
from a2tgpo_trl.tasks import Task
from a2tgpo_trl.tools import tool


# Additional tokens of a family's tokenizer; the first is the tokenizer's own end token.
LLAMA = ["<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
GEMMA = ["<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
GEMMA_4 = ["<eos>", "<bos>", "<|turn>", "<turn|>", "<|tool_call>", "<tool_call|>", "<|tool_response>"]
GEMMA_4 += ["<tool_response|>", "<|channel>", "<channel|>", '<|"|>']
GEMMA_4_ENDS = ("<eos>", "<turn|>", "<|tool_response>")
GLM = ["<|endoftext|>", "[gMASK]", "<|user|>", "<|observation|>", "<|assistant|>"]


def questions(prompt: str = "What is the capital of France?", number: int = 2) -> Dataset:
    rows = [{"prompt": [{"role": "user", "content": prompt * (i + 1)}], "answer": "Paris"} for i in range(number)]
    return Dataset.from_list(rows)


def family(template: str, words: list[str], ends: tuple[str, ...] = ()):
    """A tokenizer with this template, and the ids of the tokens that end a turn."""
    tokenizer = tiny.make_tokenizer(tiny.chat_template(template))
    if words:
        tokenizer.add_special_tokens(
            {"eos_token": words[0], "bos_token": words[1], "additional_special_tokens": words[2:]}
        )
    return tokenizer, [tokenizer.convert_tokens_to_ids(end) for end in ends or [tokenizer.eos_token]]


@pytest.fixture
def make(tmp_path):
    """A recipe on disk: a tiny policy with this tokenizer, this task and these settings."""

    def make(tokenizer=None, task=None, ends=None, sizes=None, **settings) -> Recipe:
        tokenizer = tokenizer or tiny.make_tokenizer()
        model = tiny.make_model(tokenizer, **(sizes or {}))
        model.generation_config.eos_token_id = ends or [tokenizer.eos_token_id]
        model.save_pretrained(tmp_path / "policy")
        tokenizer.save_pretrained(tmp_path / "policy")
        # A test's sentence says what is set: nothing is printed, saved or reported.
        args = {"output_dir": str(tmp_path), "bf16": False, "report_to": "none", "max_completion_length": 256}
        model_config = ModelConfig(model_name_or_path=str(tmp_path / "policy"))
        task = task or Task(questions(), tools=[tiny.search], reward_funcs=[exact_match])
        return Recipe([], RecipeArguments(), A2TGPOConfig(**{**args, **settings}), model_config, task)

    return make


def run(recipe: Recipe) -> dict[str, Finding]:
    return {finding.name: finding for finding in preflight.preflight(recipe)}


def failed(recipe: Recipe) -> dict[str, str]:
    return {finding.name: finding.message for finding in run(recipe).values() if finding.status == "fail"}


# ---- tools that are called


def answers(recipe: Recipe) -> Finding:
    return {finding.name: finding for finding in preflight.preflight(recipe, call_tools=True)}["tools answer"]


def test_check_calls_tools_only_with_call_tools(make):
    called = []
    look = tiny.searches(lambda query: called.append(query) or "Paris")
    recipe = make(task=Task(questions(), tools=[look], reward_funcs=[exact_match]))
    found = run(recipe)["tools answer"]
    assert called == [] and "not called (search)" in found.message and "--call-tools" in found.message
    found = answers(recipe)
    assert called == ["river"] and found.status == "pass"
    assert "search(query='river') -> 'Paris'" in found.message


def test_tool_bound_to_the_importing_thread_fails(make):
    books = sqlite3.connect(":memory:")
    books.execute("create table cities (name)")
    look = tiny.searches(lambda query: books.execute("select * from cities").fetchall())
    assert look("x") == "[]" or look("x") == []
    found = answers(make(task=Task(questions(), tools=[look], reward_funcs=[exact_match])))
    assert found.status == "fail" and "SQLite objects created in a thread" in found.message
    assert "Training calls tools from threads of its own" in found.message and "concurrency=1" in found.message


def test_tool_bound_to_the_thread_of_its_first_call_passes_with_concurrency_1(make):
    opened = []

    @tool(concurrency=1)
    @tiny.searches
    def look(query):
        if not opened:
            opened.append(sqlite3.connect(":memory:"))
        return str(opened[0].execute("select 7").fetchall())

    found = answers(make(task=Task(questions(), tools=[look], reward_funcs=[exact_match])))
    assert found.status == "pass" and "[(7,)]" in found.message


def test_tool_rejecting_made_up_arguments_warns_and_a_late_one_fails(make):
    def no_such(query):
        raise KeyError(query)

    def sleeps(query):
        time.sleep(2)

    for look, status, words in ((no_such, "warn", "KeyError: 'river'"), (sleeps, "fail", "within 0.2 seconds")):
        task = Task(questions(), tools=[tiny.searches(look)], reward_funcs=[exact_match])
        found = answers(make(task=task, tool_timeout=0.2))
        assert found.status == status and words in found.message


def test_environments_are_made_reset_and_called_on_a_thread_of_their_own(make):
    class Library:
        def __init__(self):
            self.books = sqlite3.connect(":memory:")

        def reset(self, answer: str, **row):
            self.books.execute("create table if not exists cities (name)")
            self.books.execute("insert into cities values (?)", [answer])

        def look(self, place: str) -> str:
            """Look it up.

            Args:
                place: What for.
            """
            return str(self.books.execute("select * from cities").fetchall())

    task = Task(questions(), environment_factory=Library, reward_funcs=[exact_match])
    found = answers(make(task=task))
    assert found.status == "pass" and "look(place='river') -> \"[('Paris',)]\"" in found.message, found


def test_error_text_about_threads_gives_no_thread_hint(make):
    def no_such(query):
        raise KeyError(f"no such thread: {query}; it was created in a thread of its own")

    found = answers(make(task=Task(questions(), tools=[tiny.searches(no_such)], reward_funcs=[exact_match])))
    assert found.status == "warn" and "Training calls tools from threads" not in found.message


BOOKS = sqlite3.connect(":memory:")  # opened on the thread that imports this


class Reads(training.Library):
    def __init__(self):
        BOOKS.execute("select 7")


class Refuses(training.Library):
    def __init__(self):
        if threading.current_thread() is not threading.main_thread():
            raise OSError("no licence")


@pytest.mark.parametrize(
    ("factory", "words", "hint"), [(Reads, "created in a thread", True), (Refuses, "OSError: no licence", False)]
)
def test_an_environment_that_cannot_be_made_as_in_training_fails_with_its_error(factory, words, hint, make):
    found = answers(make(task=Task(questions(), environment_factory=factory, reward_funcs=[exact_match])))
    assert found.status == "fail" and words in found.message and "environment_factory()" in found.message
    assert ("made and called on a thread of its own" in found.message) == hint


# ---- what passes


def test_a_sound_recipe_passes_every_check_and_each_is_made(make):
    found = run(make(chat_template_kwargs={"enable_thinking": False}))
    assert {finding.status for finding in found.values()} == {"pass"}, found
    assert list(found) == [
        "answers", "rewards", "credit", "tool settings", "tool format",
        "tools answer", "tool parser", "prompts", "prefixes", "separators", "tool calls",
        "parallel calls", "mask", "probe", "fit", "tool turn", "clip range", "log-probabilities",
    ]  # fmt: skip


def test_ineffective_clip_range_is_a_warning(make):
    def said(**settings) -> tuple[str, str]:
        found = run(make(chat_template_kwargs={"enable_thinking": False}, **settings))["clip range"]
        return found.status, found.message

    assert said() == ("pass", "no effect: each batch is trained on in one update, so all ratios are 1")
    status, message = said(epsilon=0.03, clip_adaptation=0.5)
    assert status == "warn" and message.startswith("epsilon=0.03, epsilon_high=0.03, clip_adaptation=0.5: no effect, ")
    assert said(clip_adaptation=0.0)[0] == "pass"
    for several in ({"num_iterations": 2}, {"steps_per_generation": 2}):
        assert said(epsilon=0.03, **several) == ("pass", "in effect: each batch is trained on in several updates")


@pytest.mark.parametrize(
    ("template", "words", "ends", "tools"),
    [
        ("qwen2_5.jinja", [], (), True),
        ("qwen3.jinja", [], (), True),
        ("llama3_1.jinja", LLAMA, (), True),
        ("gemma4.jinja", GEMMA_4, GEMMA_4_ENDS, True),
        ("gemma4_v3.jinja", GEMMA_4, GEMMA_4_ENDS, True),
        ("gemma4_v4.jinja", GEMMA_4, GEMMA_4_ENDS, True),
        ("gemma4_v5.jinja", GEMMA_4, GEMMA_4_ENDS, True),
        # It ends a turn with the beginning of the next: results, or the user's turn.
        ("glm4moe.jinja", GLM, ("<|endoftext|>", "<|user|>", "<|observation|>"), True),
        # No tool format, so no tools.
        ("gemma.jinja", GEMMA, ("<eos>", "<end_of_turn>"), False),
        ("gemma3.jinja", GEMMA, ("<eos>", "<end_of_turn>"), False),
    ],
)
def test_the_templates_that_trl_ships_pass(make, template, words, ends, tools):
    tokenizer, end_ids = family(template, words, ends)
    task = Task(questions(), tools=[tiny.search] if tools else [], reward_funcs=[exact_match])
    thinks = {"chat_template_kwargs": {"enable_thinking": False}} if template == "qwen3.jinja" else {}
    found = run(make(tokenizer, task, end_ids, **thinks))
    assert {finding.status for finding in found.values()} == {"pass"}, found


def test_the_shipped_policy_passes(tmp_path):
    from a2tgpo_trl.recipe.recipe import read_recipe

    found = preflight.preflight(read_recipe(["--config", "quickstart", "--output_dir", str(tmp_path)]))
    assert {finding.status for finding in found} == {"pass"}, found


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU reads such a recipe as it is")
def test_recipe_for_gpus_can_be_checked_on_a_cpu_machine(capsys):
    words = ["lora_24gb", "--model_name_or_path", "atlas-tiny"]
    assert cli(["check", *words]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "WARN machine Checked for another machine; the recipe would not run on this one:" in shown
    assert "bf16" in shown
    assert cli(["check", *words, "--lerning_rate", "3"]) == 2  # what is wrong on any machine is still refused


def test_training_variant_of_the_template_is_used_and_named(make):
    # The plain template of Qwen3 writes an empty thought into the last turn only; TRL trains with one that keeps it.
    assert "variant" in run(make())["prefixes"].message
    assert Chat(tiny.make_tokenizer(), [tiny.search]).chat_template is not None


def test_template_without_parallel_calls_passes_with_a_note(make):
    tokenizer, ends = family("llama3_1.jinja", LLAMA)
    assert "one call per turn" in run(make(tokenizer, ends=ends))["parallel calls"].message


# ---- templates


def qwen3_edited(old: str, new: str, base: str = "qwen3_training.jinja"):
    """Qwen3 with an edited template, and with the parser that belongs to it."""
    template = tiny.chat_template(base)
    assert old in template
    tokenizer = tiny.make_tokenizer(template.replace(old, new))
    tokenizer.response_template = add_response_schema(tiny.make_tokenizer()).response_template
    return tokenizer


THINKING = "{{- '<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}"


def test_a_template_that_drops_the_thinking_of_earlier_turns_fails(make):
    tokenizer = qwen3_edited(
        THINKING, "{%- if loop.last and reasoning_content %}" + THINKING + "{%- else %}{{- content }}{%- endif %}"
    )
    message = failed(make(tokenizer))["prefixes"]
    assert "with thinking in reasoning_content" in message and "I know no river." in message
    assert "Use a template that leaves earlier turns as they were" in message and "enable_thinking" in message


def test_a_template_that_drops_thinking_and_that_trl_cannot_patch_fails(make):
    # Any edit hides Qwen3 from TRL, which recognises templates letter by letter. A tool result then changes the empty
    # thought, which only the last turn has.
    tokenizer = tiny.make_tokenizer(tiny.chat_template() + "\n")
    found = failed(make(tokenizer))
    assert "Training would refuse this" in found["prefixes"] and "leaves earlier turns" in found["prefixes"]
    assert "character by character" in found["tool parser"] and "response_template" in found["tool parser"]


def test_a_template_that_drops_all_thinking_fails(make):
    tokenizer = qwen3_edited(THINKING, "{{- content.split('</think>')[-1] }}")
    assert "drops the thinking of every turn" in failed(make(tokenizer))["prefixes"]


def test_a_template_without_a_tool_format_fails_and_what_needs_one_is_not_tried(make):
    tokenizer, ends = family("gemma.jinja", GEMMA, ("<eos>", "<end_of_turn>"))
    found = run(make(tokenizer, ends=ends))
    assert found["tool format"].status == "fail"
    assert "no tool format" in found["tool format"].message and "Use a model whose" in found["tool format"].message
    assert found["mask"].status == "warn" and "not tried: it needs tool format" in found["mask"].message
    assert found["fit"].status == found["log-probabilities"].status == "pass"  # the other checks are unaffected


def test_a_lost_separator_fails_and_names_the_token_to_set(make):
    # The model stops at <|im_end|>, but the tokenizer has another end token: TRL then cuts after the line break, and
    # the next turn starts without it.
    tokenizer = tiny.make_tokenizer(tiny.chat_template("qwen2_5.jinja"))
    tokenizer.eos_token = "<|endoftext|>"
    message = failed(make(tokenizer, ends=tokenizer.convert_tokens_to_ids(["<|im_end|>"])))["separators"]
    assert "<|im_end|>\\n<|im_start|>" in message and "<|im_end|><|im_start|>" in message
    assert "Set eos_token of the tokenizer to '<|im_end|>'" in message


def test_a_turn_that_ends_in_no_end_token_fails(make):
    tokenizer = tiny.make_tokenizer(tiny.chat_template("qwen2_5.jinja"))
    tokenizer.eos_token = "<|endoftext|>"
    message = failed(make(tokenizer))["separators"]
    assert "none of the tokens that end a completion ('<|endoftext|>')" in message and "Set eos_token" in message


def test_tokens_that_merge_over_a_border_are_a_warning():
    # Here the policy's turn starts with another line break, right after "assistant\n"; a tokenizer that has a token
    # for two line breaks reads them as that token.
    tokenizer = qwen3_edited("{{- '<think>", "{{- '\\n<think>")
    tokenizer.add_tokens(["\n\n"])
    status, message = preflight.check_separators(Chat(tokenizer, [tiny.search]), {"training": questions()})
    assert status == "warn" and "serve the policy from tokens" in message


def test_results_dropped_by_the_template_fail_the_mask_check(monkeypatch):
    chat = Chat(add_response_schema(tiny.make_tokenizer()), [tiny.search])
    assert preflight.check_mask(chat)[0] == "pass"
    monkeypatch.setattr(Chat, "_get_tool_suffix_ids", lambda *_: [])
    status, message = preflight.check_mask(chat)
    assert status == "fail" and "Of 3 turns that the policy wrote, the mask shows 1" in message


def test_a_mask_that_is_off_by_a_token_fails(monkeypatch):
    chat = Chat(add_response_schema(tiny.make_tokenizer()), [tiny.search])
    play = preflight.template.play

    def late(*inputs):
        ids, mask = play(*inputs)
        return ids, [0, *mask[:-1]]

    monkeypatch.setattr(preflight.template, "play", late)
    status, message = preflight.check_mask(chat)
    assert status == "fail" and "The mask of turn 1 does not show what the policy wrote" in message


def test_a_decoder_that_changes_the_text_is_a_warning():
    tokenizer = tiny.make_tokenizer()
    chat = Chat(tokenizer, [tiny.search])
    preflight.check_parser(tokenizer, chat.tools)
    plain = tokenizer.decode
    tokenizer.decode = lambda ids, **kwargs: plain(ids, **kwargs).replace("Marrow.", "Marrow .")
    status, message = preflight.check_mask(chat)
    assert status == "warn" and "clean_up_tokenization_spaces" in message


# ---- tool calls


def lookup(title: str, pages: list[int], exact: bool, weight: float = 1.0) -> str:
    """Read an encyclopedia page.

    Args:
        title: Title of the page.
        pages: Their numbers.
        exact: Whether the title is exact.
        weight: Of the page.
    """
    raise AssertionError("a preflight calls no tool")


def undocumented(query):
    return query


@pytest.mark.parametrize("template", ["qwen2_5.jinja", "qwen3.jinja", "qwen3_5_nothink.jinja"])
def test_arguments_of_every_type_come_back(template):
    tokenizer, ends = family(template, [])
    chat = Chat(tokenizer, [lookup, tiny.search], ends)
    preflight.check_parser(tokenizer, chat.tools)
    assert preflight.check_tool_calls(chat) == ("pass", "parsed: lookup, search")
    assert preflight.check_parallel_calls(chat)[0] == "pass"


def test_a_call_that_is_not_read_back_fails():
    tokenizer = tiny.make_tokenizer()
    parser = add_response_schema(tiny.make_tokenizer(tiny.chat_template("llama3_1.jinja")))
    tokenizer.response_template = parser.response_template
    status, message = preflight.check_tool_calls(Chat(tokenizer, [tiny.search]))
    assert status == "fail" and "plain text" in message and "Set a response_template" in message


def test_parallel_calls_of_which_one_is_read_are_a_warning():
    tokenizer = add_response_schema(tiny.make_tokenizer())
    fields = dict(tokenizer.response_template["fields"])
    # The pattern that closes the first call swallows the second.
    fields["tool_calls"] = {**fields["tool_calls"], "close_pattern": r"</tool_call>[\s\S]*"}
    tokenizer.response_template = {**tokenizer.response_template, "fields": fields}
    chat = Chat(tokenizer, [tiny.search])
    assert preflight.check_tool_calls(chat)[0] == "pass"
    status, message = preflight.check_parallel_calls(chat)
    assert status == "warn" and "count as unparsed_call" in message and "one call at a time" in message


def test_a_tool_without_a_schema_fails(make):
    task = Task(questions(), tools=[undocumented], reward_funcs=[exact_match])
    message = failed(make(task=task))["tool format"]
    assert "'undocumented' has no schema" in message and "type hints and a docstring" in message


class Environment:
    def reset(self, **_):
        return None

    def search(self, query: str) -> str:
        """Look something up.

        Args:
            query: What to look for.
        """
        raise AssertionError("a preflight calls no tool")


def test_the_methods_of_an_environment_are_tools_and_its_prompts_may_grow(make):
    found = run(make(task=Task(questions(), reward_funcs=[exact_match], environment_factory=Environment)))
    assert "search" in found["tool calls"].message and found["mask"].status == "pass"
    assert found["fit"].status == "warn" and "reset()" in found["fit"].message


def test_tools_of_one_name_fail_as_in_training(make):
    both = Task(questions(), tools=[tiny.search], reward_funcs=[exact_match], environment_factory=Environment)
    assert "two tools are named 'search'" in failed(make(task=both))["tools"]


# ---- data


def test_a_data_set_without_answers_fails(make):
    task = Task(questions().remove_columns("answer"), tools=[tiny.search], reward_funcs=[exact_match])
    message = failed(make(task=task))["answers"]
    assert "no column 'answer'; it has prompt" in message and "answer_column" in message


def test_without_gains_a_missing_column_is_a_warning(make):
    task = Task(questions().remove_columns("answer"), tools=[tiny.search], reward_funcs=[exact_match])
    found = run(make(task=task, gain_weight=0.0, clip_adaptation=0.0))
    assert found["answers"].status == "warn" and "rewards of this package" in found["answers"].message


def test_the_test_set_is_checked_too(make):
    blank = questions().map(lambda _: {"answer": " "})
    task = Task(questions(), blank, tools=[tiny.search], reward_funcs=[exact_match])
    assert "Row 0 of the evaluation data set" in failed(make(task=task))["answers"]


def test_the_first_row_of_a_stream_is_checked(make):
    rows = [{"prompt": row["prompt"], "answer": 3} for row in questions()]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    task = Task(stream, tools=[tiny.search], reward_funcs=[exact_match])
    assert "first row of the training data set" in failed(make(task=task))["answers"]


def test_prompts_of_plain_text_cannot_call_tools(make):
    plain = Dataset.from_list([{"prompt": "The capital of France is", "answer": "Paris"}])
    message = failed(make(task=Task(plain, tools=[tiny.search], reward_funcs=[exact_match])))["prompts"]
    assert "list of messages" in message
    found = run(make(task=Task(plain, reward_funcs=[exact_match])))
    assert {finding.status for finding in found.values()} == {"pass"}, found


def test_a_prompt_that_the_template_refuses_fails(make):
    tokenizer, ends = family("gemma.jinja", GEMMA, ("<eos>", "<end_of_turn>"))
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    task = Task(Dataset.from_list([{"prompt": system, "answer": "Paris"}]), reward_funcs=[exact_match])
    message = failed(make(tokenizer, task, ends))["prompts"]
    assert "System role not supported" in message and "Change the prompts" in message


# ---- the probe


def test_a_probe_that_tokenises_differently_fails(make):
    # If two line breaks are one token, a probe that starts with a line break merges with "assistant\n".
    tokenizer = tiny.make_tokenizer()
    tokenizer.add_tokens(["\n\n"])
    message = failed(make(tokenizer, probe_template="\n<answer>{answer}</answer>"))["probe"]
    assert "After the prompt" in message and "tokenises differently" in message
    assert "Begin probe_template with other characters" in message


def test_probe_lacking_the_thought_of_the_template_is_a_warning(make):
    found = run(make())  # Qwen3 thinks unless told not to
    assert found["probe"].status == "warn"
    assert r"probe_template='<think>\n\n</think>\n\n<answer>{answer}</answer>'" in found["probe"].message
    after_thought = run(make(probe_template="<think>\n\n</think>\n\n<answer>{answer}</answer>"))
    without_thoughts = run(make(chat_template_kwargs={"enable_thinking": False}))
    without_gain = run(make(gain_weight=0.0, clip_adaptation=0.0))
    assert {found["probe"].status for found in (after_thought, without_thoughts, without_gain)} == {"pass"}


def test_a_probe_inside_a_thought_fails_after_a_tool_result_too(make):
    chat = Chat(tiny.make_tokenizer(tiny.chat_template("qwen3_5_think.jinja")), [tiny.search])
    chat.text = lambda messages, generation_prompt=False: "x" if len(messages) == 1 else "<think>\n"
    chat.conversations = {"without thinking": preflight.chat.conversation(chat.tools)}
    status, message = preflight.check_probe(chat, A2TGPOConfig("out", bf16=False), {"training": questions()})
    assert status == "fail" and message.startswith("After a tool result") and "enable_thinking" in message


# ---- lengths


def test_a_context_too_short_fails_with_the_numbers(make):
    message = failed(make(sizes={"max_position_embeddings": 500}))["fit"]
    assert "max_completion_length 256 = 629 is above the model's max_position_embeddings 500" in message
    assert "Lower max_completion_length to at most" in message


def test_prompt_and_completion_may_fill_the_context_exactly(make):
    assert run(make(sizes={"max_position_embeddings": 629}))["fit"].status == "pass"
    assert "Lower max_completion_length to at most 255" in failed(make(sizes={"max_position_embeddings": 628}))["fit"]


def test_longest_of_many_prompts_is_found():
    # Only 64 prompts are tokenized. Row i holds "Who? " i + 1 times, so the last of 70 is the longest.
    chat, rows = Chat(tiny.make_tokenizer(), []), questions("Who? ", number=70)
    (ids,) = chat.prompt_ids([rows[69]["prompt"]])
    assert longest_prompt(chat, {"training": rows}) == (len(ids), "training data")


def test_a_model_without_positions_has_no_limit():
    config, args, data = MambaConfig(), A2TGPOConfig("out", bf16=False), {"training": questions()}
    for tools in ([tiny.search], []):
        status, message = preflight.check_fit(Chat(tiny.make_tokenizer(), tools), args, data, config, False)
        assert status == "pass" and "no limit" in message


def test_the_longest_prompt_counts_whichever_data_set_it_is_in(make):
    long = questions("Which city lies on the river? " * 40, number=1)
    task = Task(questions(), long, tools=[tiny.search], reward_funcs=[exact_match])
    message = failed(make(task=task, sizes={"max_position_embeddings": 600}))["fit"]
    assert "evaluation data" in message


def test_a_completion_too_short_for_a_call_is_a_warning(make):
    found = run(make(max_completion_length=16))
    assert (
        found["tool turn"].status == "warn"
        and "max_completion_length is 16: a longer result ends the rollout. Raise it" in found["tool turn"].message
    )


# ---- rewards and credit


def test_rewards_and_weights_of_different_numbers_fail(make):
    assert "2 weights, and there are 1 rewards (exact_match)" in failed(make(reward_weights=[1.0, 0.5]))["rewards"]


def test_method_without_the_turn_rewards_that_it_reads_fails(make):
    assert "needs turn rewards with a weight, and there are none" in failed(make(credit="mt_grpo"))["credit"]
    assert "credit" not in failed(make(credit="mt_grpo", turn_rewards={"failed_call": -0.1}, turn_reward_weight=1.0))
    unknown = failed(make(turn_rewards={"read_onl": 1.0}, turn_reward_weight=1.0))
    assert "read_onl" in unknown["credit"]


class Rewarding(Environment):
    turn_reward = 0.0


def test_environment_may_set_the_turn_rewards_that_a_method_reads(make):
    task = Task(questions(), reward_funcs=[exact_match], environment_factory=Rewarding)
    assert failed(make(task=task, credit="mt_grpo")) == {}
    assert failed(make(task=task, credit="gtpo", turn_rewards={"environment": 0.5})) == {}


def test_settings_of_a_tool_that_there_is_not_fail(make):
    assert "no tool 'serch'" in failed(make(tool_settings={"serch": {"timeout": 3}}))["tool settings"]


# ---- log-probabilities


def test_sampling_with_another_temperature_fails(make):
    message = failed(make(generation_kwargs={"temperature": 0.5}))["log-probabilities"]
    assert "ratios would be off" in message and "same temperature" in message


@pytest.mark.parametrize(("difference", "status"), [(5e-4, "pass"), (2e-3, "fail"), (math.nan, "fail")])
def test_log_probabilities_in_float32_may_differ_by_a_thousandth(difference, status, make, monkeypatch):
    monkeypatch.setattr(preflight.sampling, "logp_difference", lambda *_: difference)
    assert run(make())["log-probabilities"].status == status


def test_temperature_applied_by_sampler_and_trainer_passes(make):
    assert run(make(temperature=0.7))["log-probabilities"].status == "pass"


def test_truncated_sampling_is_a_warning(make):
    found = run(make(top_p=0.9, top_k=5))["log-probabilities"]
    assert found.status == "warn" and "top_p=0.9, top_k=5" in found.message


def test_positions_that_count_padding_are_found():
    # Both learn an embedding per position. `generate` counts positions from the first token; the trainer's forward
    # passes none: OPT then also counts by the mask, and GPT-2 counts the padding.
    args = A2TGPOConfig("out", bf16=False, disable_dropout=True)
    errors = {}
    for name in ("opt", "gpt2"):
        model = tiny.architectures()[name]()
        for module in model.modules():
            if isinstance(getattr(module, "dropout", None), float):  # OPT's, not a module that TRL could disable
                module.dropout = 0.0
        errors[name] = preflight.sampling.logp_difference(model, [[5, 6, 7], [8] * 9], 0, [1], args)
    assert errors["opt"] < 1e-4 and errors["gpt2"] > 1e-2


def test_dropout_while_training_is_found_and_disabling_it_helps():
    args = A2TGPOConfig("out", bf16=False, credit="grpo")
    model = tiny.make_model(tiny.make_tokenizer(), attention_dropout=0.5)
    prompts = [[5, 6, 7], [8] * 9]
    assert preflight.sampling.logp_difference(model, prompts, 0, [2], args) > 1e-2
    args.disable_dropout = True
    assert preflight.sampling.logp_difference(model, prompts, 0, [2], args) < 1e-4


def test_dropout_switched_off_by_a_shared_ratio_is_not_reported():
    model = tiny.make_model(tiny.make_tokenizer(), attention_dropout=0.5)
    args = A2TGPOConfig("out", bf16=False)
    assert preflight.sampling.logp_difference(model, [[5, 6, 7], [8] * 9], 0, [2], args) < 1e-4


def test_bfloat16_has_its_own_tolerance(make):
    recipe = make()
    recipe.args.bf16 = True  # set here, because the setting itself asks for a GPU
    found = run(recipe)["log-probabilities"]
    assert found.status == "pass" and "bfloat16" in found.message and "0.3" in found.message


def test_vllm_is_not_started_by_the_check(make):
    recipe = make()
    recipe.args.use_vllm = True  # set here, because the setting itself asks for the package
    found = run(recipe)["log-probabilities"]
    assert found.status == "warn" and "not tried: vLLM" in found.message and "changed by" not in found.message
    recipe.args.top_k, recipe.args.generation_kwargs = -1, {"min_tokens": 5}  # all tokens; an end that is masked
    assert "changed by min_tokens=5," in run(recipe)["log-probabilities"].message


# ---- as a whole


def test_missing_policy_is_one_failure_and_other_checks_are_skipped(make, tmp_path):
    recipe = make()
    recipe = replace(recipe, model=ModelConfig(model_name_or_path=str(tmp_path / "nowhere")))
    found = run(recipe)
    assert found["tokenizer"].status == "fail" and "nowhere" in found["tokenizer"].message
    without_model = ("tokenizer", "model config", "rewards", "credit", "tool settings", "clip range")
    others = [finding for name, finding in found.items() if name not in without_model]
    assert (
        others
        and found["clip range"].status == "pass"
        and all(f.status == "warn" and f.message.startswith("not tried") for f in others)
    )


def test_unexpected_error_in_a_check_is_a_failure_and_others_still_run(make, monkeypatch):
    def broken(*_):
        raise RuntimeError("the roof is on fire")

    monkeypatch.setattr(preflight, "check_separators", broken)
    found = run(make())
    assert found["separators"] == Finding("separators", "fail", "RuntimeError: the roof is on fire")
    assert found["mask"].status == found["log-probabilities"].status == "pass"


def test_the_command_prints_a_line_per_finding_wraps_it_and_counts(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    long = "a word " * 40 + "the end"
    command.report([Finding("probe", "pass", "[4 tokens]"), Finding("fit", "fail", long)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["PASS", "probe", "[4", "tokens]"]  # brackets are not markup
    assert max(map(len, lines)) <= 80 and "the end" in "\n".join(lines)
    assert lines[-1] == "1 passed, 0 warned, 1 failed"


def test_the_exit_code_says_whether_anything_failed(monkeypatch, capsys):
    from a2tgpo_trl.cli import main
    from a2tgpo_trl.recipe import recipe

    read = []
    monkeypatch.setattr(recipe, "read_recipe", lambda words: read.append(words))
    for status, code in (("pass", 0), ("warn", 0), ("fail", 1)):
        monkeypatch.setattr(preflight, "preflight", lambda *_, status=status: [Finding("fit", status, "")])
        assert main(["check", "quickstart", "--max_completion_length", "64"]) == code
    assert read[0] == ["--config", "quickstart", "--max_completion_length", "64"]
    capsys.readouterr()
