"""`a2tgpo help [TOPIC]`: the page of a topic, which is the docstring of the room or module that it is about."""

import argparse
import ast
from pathlib import Path

from ..lookup import nearest


PACKAGE = Path(__file__).parents[1]
SETTINGS = "settings"

# topic -> the file whose docstring is its page, in the order of a newcomer's questions
PAGES = {
    "your own questions": "tasks/__init__.py",
    "tools": "tools/__init__.py",
    "environments": "rollout/environments.py",
    "rollout functions": "rollout/__init__.py",
    "python": "tools/python/__init__.py",
    "failures": "rollout/failures.py",
    "gain": "information_gain/__init__.py",
    "credit": "credit/__init__.py",
    SETTINGS: "config.py",
    "metrics": "report/__init__.py",
    "check": "preflight/__init__.py",
    "plan": "plan/__init__.py",
    "launch": "launch/__init__.py",
    "vllm": "rollout/vllm_engine.py",
    "resume": "resume/__init__.py",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", nargs="*", help=f"one of: {', '.join(PAGES)}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    topic = " ".join(args.topic).lower().replace("-", " ").replace("_", " ")
    print(page(topic) if topic else _topics())
    return 0


def page(topic: str) -> str:
    """What there is to read about a topic."""
    if topic not in PAGES:
        raise ValueError(f"There is no page on {topic!r}.{nearest(topic, PAGES)} There are: {', '.join(PAGES)}.")
    if topic == SETTINGS:  # made of the fields, which takes TRL
        from ..config import A2TGPOConfig

        return str(A2TGPOConfig.__doc__)
    return _docstring(topic)


def _docstring(topic: str) -> str:
    """Read off the source: what it imports would take seconds."""
    found = ast.get_docstring(ast.parse((PACKAGE / PAGES[topic]).read_text()))
    assert found is not None
    return found


def _topics() -> str:
    width = max(map(len, PAGES))
    lines = [f"    {topic:<{width}}   {_docstring(topic).splitlines()[0]}" for topic in PAGES]
    return "\n".join(["a2tgpo help TOPIC, where TOPIC is one of", "", *lines])
