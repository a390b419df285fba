"""demonstrations of a task, made anew for every batch -> weights of a tiny policy, from nothing, by imitation.

What a task adds is a way to write demonstrations (`atlas.py`, `arithmetic.py`).
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from word_tokenizer import END, NO_THOUGHT


# Token ids as the trainer's tool loop would put them together, and 1 where the policy wrote them.
Demonstration = tuple[list[int], list[int]]
# The length of its chains (hops, steps), its token ids and the mask of what the policy wrote, both padded.
Batch = tuple[int, Tensor, Tensor]


def make_model(
    tokenizer: PreTrainedTokenizerFast, *, layers: int = 4, heads: int = 6, intermediate_size: int = 512
) -> PreTrainedModel:
    """Qwen3 with four layers: with six heads 1.6 million weights beside its embeddings, with four 0.8 million.

    32 numbers a head are the least that vLLM takes.
    """
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32 * heads,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


# ---- demonstrations


def demonstration(
    tokenizer: PreTrainedTokenizerFast,
    messages: list[dict[str, str]],
    tools: list[Callable],
    calls: Sequence[tuple[str, str]],
    answer: str,
) -> Demonstration:
    """A prompt, each call's JSON with what the tool said to it, and the answer."""
    asked = tokenizer.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, enable_thinking=False, tokenize=False
    )
    pieces = [(asked, 0)]
    for call, result in calls:
        pieces.append((f"<tool_call>\n{call}\n</tool_call>{END}", 1))
        response = f"<tool_response>\n{result}\n</tool_response>"
        pieces.append((f"\n<|im_start|>user\n{response}{END}\n<|im_start|>assistant\n{NO_THOUGHT}", 0))
    pieces.append((f"<answer>{answer}</answer>{END}", 1))
    tokenized = tokenizer([text for text, _ in pieces], add_special_tokens=False)["input_ids"]
    ids = [token for piece in tokenized for token in piece]
    written = [is_written for piece, (_, is_written) in zip(tokenized, pieces, strict=True) for _ in piece]
    return ids, written


def padded(tokenizer: PreTrainedTokenizerFast, rows: list[Demonstration]) -> tuple[Tensor, Tensor]:
    """Token ids and masks of demonstrations as tensors, padded on the right."""
    ids, written = ([torch.tensor(row[i]) for row in rows] for i in (0, 1))
    return pad_sequence(ids, True, tokenizer.pad_token_id), pad_sequence(written, True, 0)


# ---- learning


def loss_and_hits(model: PreTrainedModel, ids: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of what the policy wrote, and which demonstrations it would have written token for token."""
    hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state  # padding is on the right: causal is mask enough
    mask = written[:, 1:].bool()
    logits = model.lm_head(hidden[mask])
    targets = ids[:, 1:][mask]
    wrong = torch.zeros(mask.shape, dtype=torch.bool)
    wrong[mask] = logits.argmax(-1) != targets
    return cross_entropy(logits, targets), ~wrong.any(dim=1)


class Muon(torch.optim.Optimizer):
    """Steps along the orthogonalised momentum of a matrix.

    `torch.optim.Muon` does the same in bfloat16: 2.4 s a step in place of 0.07 s on two cores without bfloat16.
    """

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for matrix in group["params"]:
                mean = self.state[matrix].setdefault("mean", torch.zeros_like(matrix))
                mean.lerp_(matrix.grad, 1 - group["momentum"])
                direction = orthogonal(matrix.grad.lerp(mean, group["momentum"]))
                # As large as an AdamW step would be, so that both take the same learning rates.
                matrix.sub_(direction, alpha=group["lr"] * 0.2 * max(matrix.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V' of the matrix's decomposition U S V', by five Newton-Schulz steps."""
    tall = matrix.size(0) > matrix.size(1)
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if tall else x


def optimizers(model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for the rest."""
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    outer = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [Muon(inner, lr=4e-3), torch.optim.AdamW(outer, lr=3e-3, weight_decay=0.0, betas=(0.9, 0.98))]


def pace(step: int, steps: int) -> float:
    """Factor of the learning rate: 50 steps of warm-up, then level, then down to nothing over the last third."""
    return min(1.0, (step + 1) / 50, 3 * (steps - step) / steps)


def longest(step: int, steps: int, most: int) -> int:
    """The longest chain of a batch: 1 at first, `most` from the first third of the steps on.

    Example: of 9 steps, at most 4 long -> 1, 2, 3, 4, 4, 4, 4, 4, 4
    """
    return min(most, 1 + 3 * most * step // steps)


def imitate(
    model: PreTrainedModel,
    steps: int,
    batch_of: Callable[[int], Batch],
    unseen: Callable[[int, int], Batch],
    *,
    slower: float = 1.0,
) -> None:
    """One phase. Now and then the policy is tried on a batch that it does not learn from.

    Args:
        batch_of: Step -> the batch to learn from.
        unseen: Step and length of the chains -> a batch of things that it never learns from.
        slower: Factor of the learning rates.
    """
    model.train()
    chosen = optimizers(model)
    for group in (group for optimizer in chosen for group in optimizer.param_groups):
        group["peak"] = group["lr"] * slower
    start = time.perf_counter()
    hits: dict[int, float] = {}
    for step in range(steps):
        length, ids, written = batch_of(step)
        loss, right = loss_and_hits(model, ids, written)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in chosen:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * pace(step, steps)
            optimizer.step()
            optimizer.zero_grad()
        hits[length] = 0.9 * hits.get(length, 0.0) + 0.1 * right.float().mean().item()
        if step % 25 == 0 or step == steps - 1:
            rates = " ".join(f"{h}: {hits[h]:.2f}" for h in sorted(hits))
            with torch.no_grad():
                _, transferred = loss_and_hits(model, *unseen(step, length)[1:])
            seconds = time.perf_counter() - start
            print(
                f"step {step} loss {loss.item():.4f} right by length {rates}, "
                f"of unseen ones {length}: {transferred.float().mean().item():.2f} seconds {seconds:.0f}",
                flush=True,
            )
