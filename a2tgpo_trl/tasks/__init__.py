"""A task: prompts with answers, the tools to find the answers, and the rewards. Or: your own questions.

A row is a prompt and its answer, which may be a list of accepted texts; other columns are passed to rewards and
`reset` by name. With your own file of rows, tool and reward, a recipe of ten lines is enough
(`recipes/own_tool.yaml`):

    model_name_or_path: Qwen/Qwen3-0.6B
    dataset_name: questions.jsonl            # rows {"prompt": [...], "answer": ...}; or a data set of the hub
    dataset_test_split: train[:50]           # held out: what is scored before and after
    dataset_train_split: train[50:]
    tools: [my_tool.py:lookup]               # a file beside the recipe, or package.module:name
    reward_funcs: [my_tool.py:short_answer, exact_match]
    output_dir: outputs/own

Rewards of this package: exact_match, exact_number, f1, answer_format, math_equal, paper_reward and others
(`a2tgpo help rewards`). They read the last pair of <answer> tags of the last message. Scores on rows that the run also
trains on are marked as such. In a script, pass the same things to the trainer.

Tasks of this package, by their names in recipes (`task:`, with `task_kwargs:`):

    atlas         a generated world, questions of one to four hops; search
    arithmetic    generated problems of one to four steps, each needing the one before; Python
    gsm8k, math   the data sets of these names, from the hub or from files ({path: FOLDER}); Python
    qa            seven sets of questions, from the hub or from files ({folder: FOLDER}), and a server or index to
                  search ({search: http://localhost:8000}; `a2tgpo help search`). `a2tgpo answerable` writes a file
                  that says which questions a corpus can answer at all: with {answerable: FILE} they are scored
                  apart from the others, with {answerable_only: true} the others are left out of training
    facts         facts about countries, questions of one and two hops (extra `smol`); search
    textworld     TextWorld houses (extra `textworld`) in which to find things; commands

These settings make Atlas harder:

    task_kwargs:
      train_hops: [4, 5, 6]       # longer chains of facts, up to eight; test_hops alike
      alike: 1                    # beside each relation one that looks alike: "the alleged mayor"
      distractors: 1              # documents of no use that rank before each fact
      top_k: 3                    # documents that a search brings up: the fact has to be among them
      name_index: true            # a second tool, an index of names, which answers nothing
      hidden_answers: true        # the answer comes up in the last search and not before
      answerable: true            # no question whose facts are not found
      supporting_documents: true  # a column with the documents that a question needs

Three more settings show what credit is worth when something is wrong: `wrong_answers` (share of the training answers),
`guessable` (share of the questions, which then need no search) and `warm_up` (number of useless searches, before all
others).

With `supporting_documents`, `tasks.atlas.useful.useful_search` says which turns of a record were useful. How many
turns there are to search in is a setting of the run, `max_tool_calling_iterations`.

TextWorld is an external world: its generator draws and names the houses, and its rules say what a command does. The
policy has one tool, `act(command)`. Games are made in memory, some tens per second, the same on each rank for a seed;
there are no files. Answers are facts of the games. The settings:

    task_kwargs:
      kinds: [location, existence, edible]   # Where is the peanut? Is there any in the house? Is it edible?
      train_moves: [2, 3, 4]      # commands that it takes at least to see the thing; test_moves alike
      rooms: 4                    # how large a house is; also containers, supporters (tables and the like), things
      supporting_documents: true  # a column with the replies to a shortest walk: `useful_search` tells those turns

Names are swapped between things, so that no name tells where its thing is or whether it can be eaten: a policy has to
look. What it sees is described in one sentence per thing, in this package's words: TextWorld's own texts are longer,
and need each game compiled to a file.

To add a task, write a function that returns a `Task`, in any file: a recipe names it by import path
(`my_task.py:make`). Tasks of this package are also in `TASKS`, under a short name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from datasets import Dataset, IterableDataset

from ..errors import shown


# short name -> import path of a function that makes the task
TASKS = {
    "atlas": "a2tgpo_trl.tasks.atlas.task:atlas",
    "arithmetic": "a2tgpo_trl.tasks.arithmetic.task:arithmetic",
    "gsm8k": "a2tgpo_trl.tasks.math.task:gsm8k",
    "math": "a2tgpo_trl.tasks.math.task:math",
    "qa": "a2tgpo_trl.tasks.qa.task:qa",
    "facts": "a2tgpo_trl.tasks.facts.task:facts",
    "textworld": "a2tgpo_trl.tasks.textworld.task:textworld",
}


@dataclass
class Task:
    """The data, tools and rewards that a trainer needs besides a policy and settings."""

    train_dataset: Dataset | IterableDataset
    test_dataset: Dataset | None = None
    tools: Sequence[Callable] = ()
    reward_funcs: Sequence[Any] = ()
    reward_weights: Sequence[float] | None = None
    environment_factory: Any = None
    # A column of the test set: an evaluation's tables have a line for each of its values.
    group_by: str | None = field(default=None, kw_only=True)
    # Further lines, by name, each over the questions that have one of these values in each of these columns:
    # {"multi-hop": {"set": ["hotpotqa", "musique"]}}. If they are in several groups, a line weighs the groups equally.
    averages: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict, kw_only=True)
    # Settings of a run that belong to its prompts, such as their probe; a recipe's own settings take precedence.
    settings: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    @property
    def reward_names(self) -> list[str]:
        """Names of its reward functions, as the log has them."""
        return [getattr(reward, "__name__", str(reward)) for reward in self.reward_funcs]


def check_number(name: str, number: Any, lowest: int = 0, most: float = inf) -> None:
    """Raise an error unless a setting of a task is a whole number in its range: YAML reads 1e3 as text."""
    if type(number) is not int or not lowest <= number <= most:
        to = " upwards" if most == inf else f" to {most}"
        raise ValueError(f"{name} must be a whole number from {lowest}{to}; got {shown(number)}.")
