"""What a user can get wrong, found before the first step: each error says what, where, and what to do."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import isfunction
from pathlib import Path
from typing import Any, TypeVar

from peft.utils import TrainableTokensWrapper
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..resume.folders import check_writable
from .settings import ToolConfig


Args = TypeVar("Args", bound=ToolConfig)


ADAPTER_CONFIG = "adapter_config.json"


def complete_args(model: str | PreTrainedModel, args: Args | None, kind: type[Args]) -> Args:
    """The given settings after checks, or default settings of this kind for this model if none are given."""
    if args is None:
        args = kind(f"{_name_of(model).split('/')[-1] or 'model'}-{kind.__name__.removesuffix('Config')}")
    elif not isinstance(args, kind):
        given, article = type(args).__name__, "an" if kind.__name__.startswith("A") else "a"
        raise TypeError(
            f"args must be {article} {kind.__name__}, got {given}. Replace {given}(...) with {kind.__name__}(...), "
            "which takes the same fields, some with different defaults."
        )
    if args.enable_jit_checkpoint:
        raise ValueError(
            "enable_jit_checkpoint: leave it out. On SIGTERM, all processes save a checkpoint together in any case, "
            "and exit with code 75."
        )
    if args.save_on_each_node:
        raise ValueError(
            "save_on_each_node: leave it out. Checkpoints are written once, to an output_dir that all nodes share."
        )
    stops = [name for name in ("stop", "stop_token_ids") if (args.generation_kwargs or {}).get(name)]
    if args.mask_truncated_completions and stops:
        raise ValueError(
            f"mask_truncated_completions takes a rollout whose last turn ended at {' or '.join(stops)} "
            "(generation_kwargs) for truncated, so that none that answered would be trained on. Leave one of them out."
        )
    check_output_apart(args.output_dir, _name_of(model))
    if args.should_save:
        check_writable(args.output_dir)
    return args


def check_patience(args: ToolConfig, processes: int) -> None:
    """Check that a process may wait for its tools without the others giving it up."""
    if processes > 1 and args.outage_patience >= args.ddp_timeout:
        raise ValueError(
            f"outage_patience ({args.outage_patience:g} s) is not below ddp_timeout ({args.ddp_timeout} s): while one "
            "process waits for its tools, the others would abort the run, without a checkpoint. Raise ddp_timeout, or "
            "lower outage_patience."
        )


def _name_of(model: str | PreTrainedModel) -> str:
    return model if isinstance(model, str) else model.config._name_or_path


def check_output_apart(output_dir: str, policy: str) -> None:
    """Check that a run does not start from the folder where its results go, which would overwrite the policy.

    Nor may it start from a checkpoint there: those are removed once there are enough, and when a run is overwritten.
    """
    output, adapter = Path(output_dir), Path(policy, ADAPTER_CONFIG)
    sources = {"policy": policy}
    if adapter.is_file():
        sources["base"] = json.loads(adapter.read_text()).get("base_model_name_or_path") or ""
    for what, name in sources.items():
        is_checkpoint = f"{PREFIX_CHECKPOINT_DIR}-" in Path(name).name and _are_one(
            Path(name).resolve().parent, output
        )
        if name and (is_checkpoint or _are_one(Path(name), output)):
            raise ValueError(
                f"output_dir {output_dir}: the {what} is loaded from there ({name}), and training would overwrite or "
                "remove it. Name another output_dir."
            )


def _are_one(folder: Path, other: Path) -> bool:
    return folder.resolve() == other.resolve() or (folder.is_dir() and other.is_dir() and folder.samefile(other))


def check_best_metric(args: ToolConfig, eval_dataset: Any) -> None:
    """With several evaluation data sets, check that `metric_for_best_model` names one of them."""
    metric = args.metric_for_best_model
    if metric is None or not isinstance(eval_dataset, dict):
        return
    if not metric.removeprefix("eval_").startswith(tuple(f"{name}_" for name in eval_dataset)):
        rewards = ", ".join(repr(f"eval_{name}_reward") for name in eval_dataset)
        raise ValueError(
            f"metric_for_best_model={metric!r} belongs to no evaluation data set: there are several, and each logs "
            f"metrics under its own name. Name one of them, such as {rewards}."
        )


def check_tools(tools: Any) -> None:
    """Check that each tool is a function that can be called, not a description of one."""
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise TypeError(f"tools must be a list of functions; got {type(tools).__name__}. Write tools=[search].")
    for i, tool in enumerate(tools):
        if callable(tool) and hasattr(tool, "__name__") and not isinstance(tool, type):
            continue
        name = tool.get("function", tool).get("name") if isinstance(tool, Mapping) else None
        what = f"{tool!r:.80}" if name is None else f"the schema of {name!r}"
        raise TypeError(
            f"tools[{i}] must be a function; got {type(tool).__name__}, {what}. The trainer makes the calls itself: "
            "pass the function (or the method of an object), with type hints and a docstring, from which its schema "
            "is made."
        )
    check_names(tools)


def check_names(tools: Iterable[Callable]) -> None:
    """Check that all tools of a rollout, including the methods of its environment, have different names."""
    found: dict[str, Callable] = {}
    for tool in tools:
        if tool.__name__ in found:
            where, others = (f"{one.__module__}.{one.__qualname__}" for one in (tool, found[tool.__name__]))
            raise ValueError(
                f"tools: two tools are named {tool.__name__!r}: {others} and {where}. The policy calls tools by "
                "name, so it could not call one of them. Rename one: a function or a method where it is defined, a "
                "SearchTool with name=; mcp_tools(server, names=[...]) leaves out tools of a server."
            )
        found[tool.__name__] = tool


def check_factory(factory: Any, where: str = "environment_factory") -> None:
    """Check that what makes environments can be called: a class or a function, or several by name."""
    if isinstance(factory, Mapping):
        for name, one in factory.items():
            check_factory(one, f"{where}[{name!r}]")
    elif not callable(factory):
        kind = type(factory).__name__
        raise TypeError(
            f"{where} must return a new environment each time it is called, because each rollout has its own; got an "
            f"object of class {kind}. Pass the class itself ({where}={kind}), or a function that returns a new "
            "environment."
        )


def checked_environment(environment: Any) -> Any:
    """The environment, after a check that it has the `reset` that the trainer calls before each rollout."""
    kind = type(environment)
    if not isfunction(getattr(kind, "reset", None)):
        raise TypeError(
            f"Environments of class {kind.__name__} have no method reset. Each rollout begins with it: define "
            "reset(self, **row), which gets the row's columns and returns what the policy reads after the prompt, or "
            "None."
        )
    return environment


def check_head(head: nn.Module) -> None:
    """Check that the head is one whose weights can be read, as training and gains do."""
    if isinstance(head, TrainableTokensWrapper):
        raise ValueError(
            "trainable_token_indices in peft_config: the policy's head is trained for these tokens as well, because "
            "its embeddings are tied to it, or because lm_head is named. Log-probabilities are computed from the "
            "weights of the head alone, without what is trained. Leave it out, or train all embeddings "
            '(modules_to_save=["embed_tokens"]), which leaves the head as it is.'
        )


def check_one_sequence(given: GenerationConfig, of_model: GenerationConfig | None, seeded: bool) -> None:
    """Check that `generate` makes one sequence per prompt, and draws it alone if rollouts have their own seeds."""

    def effective(name: str) -> int:
        return getattr(given, name) or getattr(of_model, name, None) or 1

    where = "generation_kwargs (or the policy's generation_config)"
    if (sequences := effective("num_return_sequences")) > 1:
        raise ValueError(
            f"num_return_sequences={sequences} in {where} would make more completions than there are prompts. Leave "
            "it out: num_generations sets the number of rollouts per prompt."
        )
    if seeded and (beams := effective("num_beams")) > 1:
        raise ValueError(
            f"num_beams={beams} in {where} does not work with a seed for each rollout, because beams are drawn "
            "together. Leave it out, or set seeded_rollouts=False. Note that beam search does not draw from the "
            "policy's probabilities, with which the policy is trained."
        )


def checked_rollout_func(rollout_func: Callable[..., dict[str, Any]], end_id: int) -> Callable[..., dict[str, Any]]:
    """Hold a user's rollout function to its contract: one mask entry and one log-probability per token.

    An empty completion, which the parent cannot handle, becomes a single end token outside the mask: nothing to train
    on, but its reward counts in its group.
    """

    def rollout(prompts: list, trainer: Any) -> dict[str, Any]:
        output = dict(rollout_func(prompts, trainer))
        completions = output.get("completion_ids")
        if completions is None:
            return output  # the parent names the missing key
        if len(completions) != len(prompts):
            raise ValueError(f"rollout_func returned {len(completions)} completions for {len(prompts)} prompts.")
        for key in ("env_mask", "logprobs"):
            _check_lengths(key, output.get(key), completions)
        if not all(len(ids) for ids in completions):
            _fill_empty(output, end_id)
        return output

    return rollout


def _check_lengths(key: str, values: Sequence[Sequence] | None, completions: Sequence[Sequence[int]]) -> None:
    if values is None:
        return
    if len(values) != len(completions):
        raise ValueError(f"rollout_func returned {len(values)} rows of {key!r} for {len(completions)} completions.")
    for i, (row, ids) in enumerate(zip(values, completions, strict=True)):
        if len(row) != len(ids):
            raise ValueError(
                f"rollout_func returned {len(row)} entries of {key!r} for the {len(ids)} completion tokens of rollout "
                f"{i}. Return one per token: for env_mask, 1 where the policy sampled the token and 0 where the "
                "environment wrote it."
            )


def _fill_empty(output: dict[str, Any], end_id: int) -> None:
    completions = output["completion_ids"]
    masks = output.get("env_mask") or [[1] * len(ids) for ids in completions]
    output["env_mask"] = [mask if len(ids) else [0] for mask, ids in zip(masks, completions, strict=True)]
    if output.get("logprobs") is not None:
        output["logprobs"] = [
            logps if len(ids) else [0.0] for logps, ids in zip(output["logprobs"], completions, strict=True)
        ]
    output["completion_ids"] = [ids if len(ids) else [end_id] for ids in completions]
