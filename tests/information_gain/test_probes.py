import pytest
import tiny

from a2tgpo_trl.information_gain.probes import ProbeMaker, check_seam, thought_before_answer


TEMPLATE = "<answer>{answer}</answer>"


def text(tokenizer, ids) -> str:
    return tokenizer.decode(ids)


@pytest.mark.parametrize("answer", ["Paris", "é", "東京", "42", " a b ", "<answer>", "x" * 50])
def test_the_gold_tokens_spell_the_answer_and_nothing_follows_them(answer, tokenizer):
    probe = ProbeMaker(tokenizer, TEMPLATE).make(answer)
    gold = [token for token, is_gold in zip(probe.ids, probe.gold, strict=True) if is_gold]
    assert answer in text(tokenizer, gold)
    assert probe.gold[-1]
    full = tokenizer(TEMPLATE.replace("{answer}", answer))["input_ids"]
    assert list(probe.ids) == full[: len(probe.ids)]


def test_token_across_the_answer_boundary_counts_as_gold(tokenizer):
    # The tokenizer was trained on <answer>Paris</answer>: byte-level merges may join across the tag.
    ids = tokenizer("<answer>Paris</answer>")["input_ids"]
    probe = ProbeMaker(tokenizer, TEMPLATE).make("Paris")
    spans = tokenizer("<answer>Paris</answer>", return_offsets_mapping=True)["offset_mapping"]
    expected = [start < 13 and end > 8 for start, end in spans]
    assert list(probe.gold) == expected[: len(probe.ids)] and len(ids) >= len(probe.ids)


def test_without_offsets_the_parts_are_tokenised_apart(tokenizer):
    class Slow:
        is_fast = False

        def __call__(self, text, add_special_tokens):
            return {"input_ids": [ord(c) for c in text]}

    probe = ProbeMaker(Slow(), "a{answer}b").make("xy")
    assert probe.ids == (97, 120, 121) and probe.gold == (False, True, True)


def test_braces_around_the_slot_stay(tokenizer):
    probe = ProbeMaker(tokenizer, r"\boxed{{answer}}").make("7")
    assert text(tokenizer, probe.ids).startswith(r"\boxed{7")


def test_aliases_beyond_the_first_are_probes_only_where_they_are_used(tokenizer):
    maker = ProbeMaker(tokenizer, TEMPLATE)
    assert len(maker.make_all(["a", "b"], "first")) == 1
    assert len(maker.make_all(["a", "b"], "max")) == len(maker.make_all(["a", "b"], "mean")) == 2
    assert maker.make_all("ab", "max") == [maker.make("ab")]


def test_an_answer_without_tokens_is_an_error():
    class Deaf:
        is_fast = False

        def __call__(self, text, add_special_tokens):
            return {"input_ids": [1] if text.strip() else []}

    with pytest.raises(ValueError, match="tokenises to nothing"):
        ProbeMaker(Deaf(), "a{answer}b").make(" ")


# ---- the seam between generation prompt and probe


def rendered(tokenizer, **kwargs) -> str:
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": "question"}], add_generation_prompt=True, tokenize=False, **kwargs
    )


def test_check_seam_accepts_a_probe_with_stable_tokens(tokenizer):
    check_seam(tokenizer, TEMPLATE, rendered(tokenizer))


def test_a_probe_that_merges_with_the_generation_prompt_is_an_error(tokenizer):
    from tokenizers import AddedToken

    merging = tiny.make_tokenizer()
    merging.add_tokens([AddedToken("\n\n", normalized=False)])  # as Qwen's vocabulary has it
    with pytest.raises(ValueError, match="tokenises differently"):
        check_seam(merging, "\n<answer>{answer}</answer>", rendered(merging))
    check_seam(merging, TEMPLATE, rendered(merging))


def test_opened_thinking_block_is_an_error_unless_the_probe_closes_it(tokenizer):
    context = rendered(tokenizer) + "<think>\n"
    with pytest.raises(ValueError, match="opens a thinking block"):
        check_seam(tokenizer, TEMPLATE, context)
    check_seam(tokenizer, "</think>" + TEMPLATE, context)
    check_seam(tokenizer, TEMPLATE, rendered(tokenizer, enable_thinking=False))


def test_probe_lacking_the_empty_thought_of_the_template_is_detected(tokenizer):
    thinks, does_not = rendered(tokenizer), rendered(tokenizer, enable_thinking=False)
    assert repr("<think>\n\n</think>\n\n" + TEMPLATE) in thought_before_answer(TEMPLATE, thinks, does_not)
    assert thought_before_answer("<think>\n\n</think>\n\n" + TEMPLATE, thinks, does_not) is None
    assert thought_before_answer(TEMPLATE, does_not, does_not) is None
    assert thought_before_answer(TEMPLATE, "assistant:", "assistant: ") is None  # a template without thoughts
