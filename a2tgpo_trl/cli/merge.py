"""an adapter's folder -> a folder with the policy merged from it and its base, which loads without PEFT."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", type=Path, help="folder of an adapter, as training with LoRA saves it")
    parser.add_argument("output", type=Path, help="folder for the merged policy; must be empty or new")
    parser.add_argument("--base", help="base model, if it is no longer where the adapter says")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..report.progress import quiet_libraries

    quiet_libraries()
    merge(args.adapter, args.output, args.base)
    print(args.output)
    return 0


def merge(adapter: Path, output: Path, base: str | None = None) -> None:
    """Add the adapter to its base in float32, and write the sum in the precision of the base.

    An adapter that was trained on a quantised base is added to its unquantised base, so that the merged policy has no
    quantisation.
    """
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from ..recipe.recipe import check_adapter

    check_adapter(adapter)
    if output.exists() and any(output.iterdir()):
        raise ValueError(
            f"{output} is not empty. Name a new folder: files of another policy beside these would be misleading."
        )
    base = base or PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path
    assert base is not None  # PEFT saves it
    try:
        config = AutoConfig.from_pretrained(base)
    except OSError as error:
        raise ValueError(f"The base of {adapter} is not at {base!r}. Say where it is: --base FOLDER.") from error
    tokenizer = AutoTokenizer.from_pretrained(str(adapter))  # before anything is written
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(
        safe_merge=True
    )  # refuses weights that are not finite
    merged.to(config.dtype or torch.float32).save_pretrained(output)
    tokenizer.save_pretrained(output)
