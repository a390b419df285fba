"""`a2tgpo help [TOPIC]`: the page of a topic, which is the docstring of its room or module."""

import argparse
import ast
import inspect
from pathlib import Path

from ..lookup import nearest
from .pipe import until_closed


PACKAGE = Path(__file__).parents[1]
SETTINGS, PYTHON, METRICS = "settings", "python", "metrics"

# topic -> the file whose docstring is its page, and what it answers; in the order of a newcomer's questions
PAGES = {
    "your own questions": (
        "tasks/__init__.py",
        "train on your own rows, tool and reward; tasks that come with the package",
    ),
    "recipes": ("recipe/__init__.py", "what a recipe says, building on others, overriding on the command line"),
    "tools": ("tools/__init__.py", "write a tool; time limits, retries, outages, threads, MCP servers"),
    "environments": ("rollout/environments.py", "tools that keep state, one object for each rollout"),
    "rollout functions": ("rollout/__init__.py", "write your own loop; ToolTrainer, which works alone"),
    PYTHON: ("tools/python/__init__.py", "let the policy run Python, and what its code cannot reach"),
    "search": ("search/__init__.py", "a corpus, its index, a server and a tool that searches it"),
    "rewards": ("rewards/__init__.py", "the package's rewards, writing your own, which texts are answers"),
    "failures": ("rollout/failures.py", "how a turn can end, and what follows"),
    "gain": ("information_gain/__init__.py", "what information gain is, which models it works with, rounding"),
    "credit": ("credit/__init__.py", "the methods of credit, writing your own, rewards of single turns"),
    SETTINGS: ("config.py", "every field of A2TGPOConfig that TRL's GRPOConfig lacks or sets differently"),
    "evaluation": ("evaluation.py", "score a policy, compare two on the same questions, what a corpus can answer"),
    "studies": ("study/__init__.py", "compare methods over many seeds, with an automatic report"),
    "records": ("recording/__init__.py", "what is recorded of rollouts, tokens and ratios; datasets, DuckDB, Parquet"),
    "view": ("view/__init__.py", "a browser page of runs, also live: curves, turns, rollouts"),
    METRICS: ("report/metrics.py", "what is logged, what good and bad curves look like, what to do"),
    "check": ("preflight/__init__.py", "what a2tgpo check looks at before the first step"),
    "plan": ("plan/__init__.py", "the memory of a run, computed; the seconds of a step, measured"),
    "launch": ("launch/__init__.py", "several processes, GPUs or machines; exit codes"),
    "vllm": ("rollout/vllm_engine.py", "sampling with vLLM: modes, importance weights, what was tried"),
    "resume": ("resume/__init__.py", "resume a run that was interrupted"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", nargs="*", help=f"one of: {', '.join(PAGES)}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    topic = " ".join(args.topic).lower().replace("-", " ").replace("_", " ")
    with until_closed():
        print(page(topic) if topic else _topics())
    return 0


def page(topic: str) -> str:
    """Return the page of a topic."""
    if topic not in PAGES:
        raise ValueError(f"There is no page on {topic!r}.{nearest(topic, PAGES)} There are: {', '.join(PAGES)}.")
    if topic == SETTINGS:  # made from the fields, which needs TRL
        from ..config import A2TGPOConfig

        return str(A2TGPOConfig.__doc__)
    if topic == PYTHON:  # ends with a table made from the threats
        from ..tools import python

        return inspect.cleandoc(str(python.__doc__))
    if topic == METRICS:
        from ..report.metrics import table

        return f"{_docstring(topic)}\n\n{table()}"
    return _docstring(topic)


def _docstring(topic: str) -> str:
    """Return a topic's docstring from its source, because importing the module would take seconds."""
    found = ast.get_docstring(ast.parse((PACKAGE / PAGES[topic][0]).read_text()))
    assert found is not None
    return found


def _topics() -> str:
    width = max(map(len, PAGES))
    lines = [f"    {topic:<{width}}   {line}" for topic, (_, line) in PAGES.items()]
    return "\n".join(["a2tgpo help TOPIC, where TOPIC is one of", "", *lines])
