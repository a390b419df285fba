r"""a YAML file -> how a family of models is asked, in which form it answers, and what is rewarded.

    system: ... <answer>\boxed{ANSWER}</answer> ...       the instruction; the question is the user's message
    probe: "<answer>\\boxed{{answer}}</answer>"           an immediate answer, after the generation prompt
    chat_template_kwargs: {enable_thinking: true}         arguments of the chat template
    rewards: {exact_match: 1.0}                           rewards that read this form, and their weights

The package's files are in `families/`. Unless a recipe sets them itself, `probe` becomes the run's `probe_template`,
and `chat_template_kwargs` its setting of that name.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...lookup import nearest, read_yaml
from ...rewards import REWARDS


FAMILIES = Path(__file__).parent / "families"
KINDS = {"system": str, "probe": str, "chat_template_kwargs": dict, "rewards": dict}  # the keys of a file


@dataclass(frozen=True)
class Prompts:
    """How a family of models is asked, and how it answers."""

    system: str
    probe: str
    chat_template_kwargs: dict[str, Any]
    rewards: dict[str, float]

    def ask(self, question: str) -> list[dict[str, str]]:
        """The prompt for a question."""
        return [{"role": "system", "content": self.system}, {"role": "user", "content": question}]

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of a run with these prompts, unless its recipe sets them."""
        return {"probe_template": self.probe, "chat_template_kwargs": self.chat_template_kwargs}


def read_prompts(name: str) -> Prompts:
    """The prompts of this family, or those in your own file."""
    shipped = {file.stem: file for file in sorted(FAMILIES.glob("*.yaml"))}
    file = shipped.get(name, Path(name).expanduser())
    if not file.is_file():
        known = ", ".join(shipped)
        raise ValueError(f"There are no prompts {name!r}.{nearest(name, shipped)} Known: {known}, and files (.yaml).")
    content = read_yaml(file)
    for key in content:
        if key not in KINDS:
            raise ValueError(f"{file}: there is no key {key!r}.{nearest(str(key), KINDS)}")
    for key, kind in KINDS.items():
        if not isinstance(content.get(key), kind):
            wanted = "text" if kind is str else "a mapping"
            raise ValueError(f"{file}: {key} must be {wanted}; got {content.get(key)!r}.")
    prompts = Prompts(**content)
    if prompts.probe.count("{answer}") != 1:
        raise ValueError(f"{file}: probe must contain {{answer}} exactly once; got {prompts.probe!r}.")
    for reward in prompts.rewards:
        if reward not in REWARDS:
            raise ValueError(f"{file}: there is no reward {reward!r}.{nearest(reward, REWARDS)}")
    return prompts
