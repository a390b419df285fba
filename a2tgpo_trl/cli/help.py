"""`a2tgpo help [TOPIC]`: the page of a topic, which is the docstring of the room or module that it is about."""

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
        "train on rows, a tool and a reward of your own; tasks that come along",
    ),
    "recipes": ("recipe/__init__.py", "what a recipe says, one that is built on others, the command line over it"),
    "tools": ("tools/__init__.py", "write a tool; time limits, retries, outages, threads, servers of MCP"),
    "environments": ("rollout/environments.py", "tools that keep a state, one object for each rollout"),
    "rollout functions": ("rollout/__init__.py", "a loop of your own; ToolTrainer, which stands alone"),
    PYTHON: ("tools/python/__init__.py", "let the policy run Python, and what its code cannot reach"),
    "search": ("search/__init__.py", "a corpus, its index, a server and a tool that searches it"),
    "rewards": ("rewards/__init__.py", "rewards that come along, one of your own, which texts are answers"),
    "failures": ("rollout/failures.py", "how a turn can end, and what follows"),
    "gain": ("information_gain/__init__.py", "what information gain is, which models it takes, rounding"),
    "credit": ("credit/__init__.py", "the methods of credit, one of your own, rewards of single turns"),
    SETTINGS: ("config.py", "every field of A2TGPOConfig that TRL's GRPOConfig lacks or sets otherwise"),
    "evaluation": ("evaluation.py", "score a policy, compare two on the same questions, what a corpus can answer"),
    "studies": ("study/__init__.py", "compare methods over many seeds; a report that writes itself"),
    "records": ("recording/__init__.py", "what is written of rollouts, tokens and ratios; datasets, DuckDB, Parquet"),
    "view": ("view/__init__.py", "a page of runs for a browser, live as well: curves, turns, rollouts"),
    METRICS: ("report/metrics.py", "what is logged, what good and bad curves look like, what to do"),
    "check": ("preflight/__init__.py", "what a2tgpo check looks at before the first step"),
    "plan": ("plan/__init__.py", "the memory of a run, computed; the seconds of a step, measured"),
    "launch": ("launch/__init__.py", "several processes, GPUs or machines; exit codes"),
    "vllm": ("rollout/vllm_engine.py", "sampling by vLLM: modes, importance weights, what was tried"),
    "resume": ("resume/__init__.py", "go on with a run that was interrupted"),
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
    """What there is to read about a topic."""
    if topic not in PAGES:
        raise ValueError(f"There is no page on {topic!r}.{nearest(topic, PAGES)} There are: {', '.join(PAGES)}.")
    if topic == SETTINGS:  # made of the fields, which takes TRL
        from ..config import A2TGPOConfig

        return str(A2TGPOConfig.__doc__)
    if topic == PYTHON:  # ends with a table that is made of the threats
        from ..tools import python

        return inspect.cleandoc(str(python.__doc__))
    if topic == METRICS:
        from ..report.metrics import table

        return f"{_docstring(topic)}\n\n{table()}"
    return _docstring(topic)


def _docstring(topic: str) -> str:
    """Read off the source: what it imports would take seconds."""
    found = ast.get_docstring(ast.parse((PACKAGE / PAGES[topic][0]).read_text()))
    assert found is not None
    return found


def _topics() -> str:
    width = max(map(len, PAGES))
    lines = [f"    {topic:<{width}}   {line}" for topic, (_, line) in PAGES.items()]
    return "\n".join(["a2tgpo help TOPIC, where TOPIC is one of", "", *lines])
