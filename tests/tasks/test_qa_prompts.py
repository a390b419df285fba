r"""The prompts of each family: read from data files, rendered by chat templates, answered in the form rewards read.

Round trip: prompt, sampled turns and results, tokenised one after another as in a rollout, give the tokens of the
whole conversation.
"""

import importlib.resources

import pytest
import tiny
from trl.chat_template_utils import add_response_schema, parse_response, supports_tool_calling

from a2tgpo_trl.cli.bench_policy import byte_level_tokenizer
from a2tgpo_trl.information_gain.probes import ProbeMaker, check_seam, thought_before_answer
from a2tgpo_trl.preflight.chat import Chat
from a2tgpo_trl.rewards import answer_format, exact_match, f1, paper_reward
from a2tgpo_trl.tasks.qa.prompts import FAMILIES, read_prompts


THOUGHTS = ("Who built it?", "And where was he born?", "Both are known.")
QUERIES = ("builder of Dyle Bridge", "Mason 3")
RESULTS = ("Dyle Bridge: it was built by Mason 3.", "Mason 3: born in Hamlet 3.")

# What ends a turn in templates where <|im_end|> does not.
ENDS = [
    "<|user|>",
    "<|observation|>",
    "<|eot_id|>",
    "<|call|>",
    "<|return|>",
    "<|eot|>",
    "<turn|>",
    "<|tool_response>",
]
SHIPPED = sorted(
    file.name.removesuffix(".jinja")
    for file in importlib.resources.files("trl").joinpath("chat_templates").iterdir()
    if file.name.endswith(".jinja") and not file.name.endswith("_training.jinja")
)
# Templates with which no conversation of searches makes the round trip, and why.
NO_ROUND_TRIP = {
    "deepseekv3": "takes arguments of calls as JSON text, where training has mappings",
    "gemma4_v2": "writes a line break behind the end of a turn that is not in the next turn's suffix",
}
# What a family thinks in, and where its templates have the thought.
THINKING = [
    *(("qwen3", template) for template in ("qwen3", "lfm2_2_5")),
    *(("qwen3_5", template) for template in ("qwen3_5_think", "qwen3_6", "qwen3_8", "nemotron_3_nano")),
    *(("qwen2_5", template) for template in ("qwen2_5", "qwen3_instruct_2507", "qwen3_vl", "lfm2_v2")),
]
# Templates that drop the thought of a turn that calls a tool: the policy would be trained on what it never reads.
DROP_THOUGHTS = ("llama3_1", "llama3_2", "muse_glimmer")


def tokenizer_of(template: str):
    return byte_level_tokenizer(tiny.CORPUS * 4, 420, [*tiny.SPECIAL, *ENDS], tiny.chat_template(f"{template}.jinja"))


def chat_of(tokenizer, prompts) -> Chat:
    end_ids = tokenizer.convert_tokens_to_ids(["<|im_end|>", *ENDS])
    return Chat(tokenizer, [tiny.search], end_ids, prompts.chat_template_kwargs)


def conversation(prompts, thinking: bool) -> list[dict]:
    """The question, two searches with a thought each, and the answer in the form of these prompts."""

    def turn(thought: str, content: str, **others) -> dict:
        thought = f"<think>\n{thought}\n</think>\n\n" if thinking else ""
        return {"role": "assistant", "content": thought + content, **others}

    messages = prompts.ask("Where was the builder of Dyle Bridge born?")
    for thought, query, result in zip(THOUGHTS, QUERIES, RESULTS, strict=False):
        call = {"type": "function", "function": {"name": "search", "arguments": {"query": query}}}
        messages += [turn(thought, "", tool_calls=[call]), {"role": "tool", "name": "search", "content": result}]
    return [*messages, turn(THOUGHTS[-1], answer_of(prompts, "Hamlet 3"))]


def answer_of(prompts, answer: str) -> str:
    """The probe from its answer on. Example: "</think><answer>{answer}</answer>" -> "<answer>Hamlet 3</answer>." """
    return prompts.probe[prompts.probe.index("<answer>") :].replace("{answer}", answer)


def pieces_and_whole(chat: Chat, messages: list[dict]) -> tuple[list[int], list[int]]:
    """The tokens as a rollout puts them together, and those of the conversation rendered as a whole."""
    last = len(messages) - 1
    rendered = chat.text(messages[:last], generation_prompt=True) + chat.turn_text(messages, last)
    return chat.pieces(messages), chat.ids(rendered)


# ---- templates


def test_plain_prompts_round_trip_in_all_tool_templates_but_known_ones():
    prompts, failed = read_prompts("plain"), set()
    with_tools = [template for template in SHIPPED if supports_tool_calling(tokenizer_of(template))]
    for template in with_tools:
        try:
            _assert_round_trip(tokenizer_of(template), prompts)
        except (AssertionError, TypeError, ValueError):
            failed.add(template)
    assert len(with_tools) > 20 and failed == set(NO_ROUND_TRIP)


def _assert_round_trip(tokenizer, prompts) -> None:
    pieces, whole = pieces_and_whole(chat_of(tokenizer, prompts), conversation(prompts, thinking=False))
    assert pieces == whole
    text = tokenizer.decode(whole)
    assert all(part in text for part in (*QUERIES, *RESULTS, prompts.system, "<answer>Hamlet 3</answer>"))


@pytest.mark.parametrize(("family", "template"), THINKING)
def test_conversation_with_thoughts_round_trips_and_keeps_them(family, template):
    tokenizer, prompts = tokenizer_of(template), read_prompts(family)
    messages = conversation(prompts, thinking=True)
    pieces, whole = pieces_and_whole(chat_of(tokenizer, prompts), messages)
    assert pieces == whole
    text = tokenizer.decode(whole)
    assert all(part in text for part in (*THOUGHTS, *QUERIES, *RESULTS, prompts.system, messages[-1]["content"][-40:]))


@pytest.mark.parametrize("template", DROP_THOUGHTS)
def test_this_template_drops_the_thought_of_a_turn_that_calls_a_tool(template):
    prompts = read_prompts("qwen2_5")
    text = chat_of(tokenizer_of(template), prompts).text(conversation(prompts, thinking=True))
    assert [thought in text for thought in THOUGHTS] == [False, False, True]


# TRL's call parser knows newer versions of LFM2's templates.
@pytest.mark.parametrize(("family", "template"), [pair for pair in THINKING if not pair[1].startswith("lfm2")])
def test_a_turn_is_parsed_to_its_call_with_the_thought_before_it(family, template):
    tokenizer, prompts = add_response_schema(tokenizer_of(template)), read_prompts(family)
    chat, messages = chat_of(tokenizer, prompts), conversation(prompts, thinking=True)
    prefix = chat.prompt_ids([messages[:2]])[0]
    parsed = parse_response(tokenizer, chat.turn_ids(messages, 2), prefix=prefix, tools=chat.tools)
    assert [call["function"] for call in parsed["tool_calls"]] == [messages[2]["tool_calls"][0]["function"]]


# ---- probes


@pytest.mark.parametrize(("family", "template"), [*THINKING, ("plain", "qwen3"), ("plain", "llama3_1")])
def test_probe_follows_the_generation_prompt_and_closes_any_thought(family, template):
    tokenizer, prompts = tokenizer_of(template), read_prompts(family)
    chat, messages = chat_of(tokenizer, prompts), conversation(prompts, thinking=False)
    for place in (2, 4, 6):  # after the question, and after each result
        context = chat.text(messages[:place], generation_prompt=True)
        check_seam(tokenizer, prompts.probe, context)
        without = chat.text(messages[:place], generation_prompt=True, enable_thinking=False)
        assert thought_before_answer(prompts.probe, context, without) is None
        written = context[len(chat.text(messages[:place])) :] + prompts.probe
        assert written.count("<think>") == written.count("</think>") <= 1
    probe = ProbeMaker(tokenizer, prompts.probe).make("Hamlet 3")
    gold = [token for token, is_gold in zip(probe.ids, probe.gold, strict=True) if is_gold]
    assert "Hamlet 3" in tokenizer.decode(gold)


# ---- the form of the answer


@pytest.mark.parametrize("family", [file.stem for file in FAMILIES.iterdir()])
def test_answers_in_the_requested_format_are_read_by_the_rewards(family):
    prompts = read_prompts(family)
    assert prompts.ask("Who?")[1] == {"role": "user", "content": "Who?"}
    assert answer_of(prompts, "ANSWER") in prompts.system
    completion = [{"role": "assistant", "content": answer_of(prompts, "the Hamlet 3.")}]
    for reward, right in ((exact_match, 1.0), (f1, 1.0)):
        assert reward([completion], ["Hamlet 3"]) == [right]
    assert answer_format([completion]) == [0.0]
    if family != "plain":
        said = {"role": "assistant", "content": answer_of(prompts, "Hamlet 3").rpartition("</think>")[2]}
        assert paper_reward([[{**said, "reasoning_content": "Both are known."}]], ["Hamlet 3"]) == [1.0]
        assert paper_reward([[{**said, "content": "Hamlet 3"}]], ["Hamlet 3"]) == [-1.0]
    trained = (
        {"answer_format": 0.1, "exact_match": 1.0} if family == "plain" else {"paper_reward": 1.0, "exact_match": 0.0}
    )
    assert prompts.rewards == {**trained, "f1": 0.0}
    assert prompts.settings["probe_template"] == prompts.probe


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sytem": "Hi"}, "there is no key 'sytem'. Did you mean 'system'"),
        ({"system": None}, "system must be text; got None"),
        ({"rewards": "[f1]"}, "rewards must be a mapping; got \\['f1'\\]"),
        ({"probe": "answer"}, "probe must contain {answer} exactly once; got 'answer'"),
        ({"rewards": "{exact: 1.0}"}, "there is no reward 'exact'. Did you mean 'exact_match'"),
    ],
)
def test_invalid_prompt_file_is_an_error_naming_the_problem(change, said, tmp_path):
    keys = {"system": "Answer.", "probe": "'{answer}'", "chat_template_kwargs": "{}", "rewards": "{f1: 1.0}", **change}
    file = tmp_path / "mine.yaml"
    file.write_text("\n".join(f"{key}: {value}" for key, value in keys.items() if value is not None))
    with pytest.raises(ValueError, match=f"mine.yaml: {said}"):
        read_prompts(str(file))


def test_prompts_are_read_by_family_name_or_file(tmp_path):
    (tmp_path / "mine.yaml").write_text((FAMILIES / "plain.yaml").read_text())
    assert read_prompts(str(tmp_path / "mine.yaml")) == read_prompts("plain")
    with pytest.raises(ValueError, match="no prompts 'qwen33'. Did you mean 'qwen3'. Known: plain, qwen2_5, qwen3"):
        read_prompts("qwen33")
