"""a recipe -> findings: what would go wrong in training, found before the first step.

`a2tgpo check RECIPE` runs the cheap checks first and loads the model last. Each check passes, warns or fails, says
what it saw and, unless it passed, what to do. A check that needs a failed one is skipped. The exit code is 1 if any
failed.

    answers             each row has an answer that can be scored, if gains are computed
    rewards             each has a weight
    credit              the method of credit has what it reads
    tool settings       they are for tools that there are
    tool format         tools have schemas, and the template writes calls and results
    tools answer        with --call-tools: each tool was called once
    tool parser         calls in the template's form can be parsed
    prompts             the template can write them, and the tool loop can take them
    prefixes            earlier text stays as it was when the conversation goes on
    separators          prompt, turns and results, joined, are the conversation as it is rendered
    tool calls          a call of each tool is parsed back to its name and arguments
    parallel calls      two calls in one turn are both parsed, or the template has no form for them
    mask                tells the policy's turns from results
    probe               its tokens stay the same after the prompt and after a result
    fit, tool turn      the longest prompt and a full completion fit; a call leaves room for an answer
    clip range          whether ratios move, so that it matters
    log-probabilities   the trainer's are those that tokens were sampled with

`--call-tools` calls each tool once, with arguments made up from its schema, under the run's limits and on its own
thread, as training does. A timeout, an error caused by the wrong thread, and an error of a call without arguments
fail; any other error is a warning, because the arguments are made up.

Checks do not imitate what training does with a template: `Chat` runs the methods of `GRPOTrainer` that make prompts
and turns.

    chat.py, loading.py        a made-up rollout; what a recipe names, loaded as training would load it
    data.py, lengths.py        answers and prompts; room
    credit.py                  rewards and the method of credit
    template.py, sampling.py   what the template writes; log-probabilities
    calls.py                   settings of tools, and one call of each
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..recipe.recipe import Recipe
from .calls import check_calls, check_settings
from .chat import Status, Verdict
from .credit import check_credit, check_rewards
from .data import check_answers, check_prompts
from .lengths import check_fit, check_tool_turn
from .loading import all_tools, environment_kinds, load_config, load_data, load_tokenizer, make_chat
from .sampling import check_clip_range, check_logps, check_truncation, uses_other_engine
from .template import (
    check_mask,
    check_parallel_calls,
    check_parser,
    check_prefixes,
    check_probe,
    check_separators,
    check_tool_calls,
    check_tool_format,
)


@dataclass(frozen=True)
class Finding:
    """What one check found, and what to do about it."""

    name: str
    status: Status
    message: str


class Findings:
    """Runs checks one after another and keeps what they found."""

    def __init__(self) -> None:
        self.all: list[Finding] = []
        self._missing: set[str] = set()  # names that failed or were not tried

    def add(self, name: str, check: Callable[..., Verdict], *inputs: Any, needs: Sequence[str] = ()) -> None:
        """Run a check, unless one that it needs has failed."""
        verdict = self._attempt(name, check, inputs, needs)
        if verdict is not None:
            self.all.append(Finding(name, *verdict))
            if verdict[0] == "fail":
                self._missing.add(name)

    def load(self, name: str, loader: Callable[..., Any], *inputs: Any, needs: Sequence[str] = ()) -> Any:
        """Return what a loader returns; if it raises, add a finding and return None."""
        return self._attempt(name, loader, inputs, needs)

    def _attempt(self, name: str, function: Callable[..., Any], inputs: Sequence[Any], needs: Sequence[str]) -> Any:
        lacking = [need for need in needs if need in self._missing]
        if lacking:
            self._note(name, "warn", f"not tried: it needs {' and '.join(lacking)}, see above.")
            return None
        try:
            return function(*inputs)
        except Exception as error:
            # Broad on purpose, only here: tokenizers, templates, tools and models are the user's, and what breaks in
            # one of them is one finding and must not hide the others.
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            self._note(name, "fail", f"{kind}{error}")
            return None

    def _note(self, name: str, status: Status, message: str) -> None:
        self.all.append(Finding(name, status, message))
        self._missing.add(name)


def preflight(recipe: Recipe, call_tools: bool = False) -> list[Finding]:
    """Return all findings on a recipe, cheap checks first; the model is loaded last. `call_tools`: each once."""
    found, args = Findings(), recipe.args
    data = found.load("data", load_data, recipe)
    resets = recipe.task.environment_factory is not None
    tokenizer = found.load("tokenizer", load_tokenizer, recipe)
    config = found.load("model config", load_config, recipe)
    tools = found.load("tools", all_tools, recipe.task)
    basics = ("tokenizer", "model config", "tools")
    kinds = found.load("environments", environment_kinds, recipe.task)
    found.add("answers", check_answers, data, args, tokenizer, kinds, needs=["tokenizer", "data", "environments"])
    found.add("rewards", check_rewards, args, recipe.task)
    found.add("credit", check_credit, recipe, kinds, needs=["environments"])
    found.add("tool settings", check_settings, tools, args, needs=["tools"])
    found.add("tool format", check_tool_format, tokenizer, tools, needs=basics)
    found.add("tools answer", check_calls, tools, recipe.task, args, data, call_tools, needs=["tool format", "data"])
    found.add("tool parser", check_parser, tokenizer, tools, needs=[*basics, "tool format"])
    chat = found.load("template", make_chat, recipe, tokenizer, config, tools, needs=basics)
    found.add("prompts", check_prompts, chat, data, needs=["template", "data"])
    rendered = ["template", "tool format"]
    found.add("prefixes", check_prefixes, chat, needs=rendered)
    found.add("separators", check_separators, chat, data, needs=[*rendered, "prefixes", "prompts"])
    parsed = [*rendered, "tool parser", "prefixes"]
    found.add("tool calls", check_tool_calls, chat, needs=parsed)
    found.add("parallel calls", check_parallel_calls, chat, needs=parsed)
    found.add("mask", check_mask, chat, needs=[*parsed, "tool calls"])
    found.add("probe", check_probe, chat, args, data, needs=[*rendered, "prefixes", "prompts"])
    found.add("fit", check_fit, chat, args, data, config, resets, needs=["template", "prompts"])
    found.add("tool turn", check_tool_turn, chat, args, needs=["separators"])
    found.add("clip range", check_clip_range, args)
    if uses_other_engine(args):
        found.add("log-probabilities", check_truncation, args)
    else:
        model = found.load("model", recipe.load_base, needs=["tokenizer", "model config"])
        found.add("log-probabilities", check_logps, model, chat, args, data, needs=["model", "template", "prompts"])
    return found.all
