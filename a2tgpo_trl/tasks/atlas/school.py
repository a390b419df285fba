"""From nothing to the tiny policy that is shipped: `python -m a2tgpo_trl.tasks.atlas.school OUTPUT_FOLDER`.

    worlds of school names, drawn anew for every batch -> transcripts of questions that are answered by searching ->
    weights

Two terms. In the first the transcripts are faultless: one search for each fact of the chain, then the answer. In the
second the same transcripts are spoilt by chance, which is what reinforcement learning is to undo (`Habits`): at each
step the pupil may search for the bare name, which finds nothing of use and costs one of its searches, or, once it has
found something, may take it for the answer and stop. No coin is written down, so all that the policy can learn of them
is how often they fall.

Only names of the part "school" are drawn (see `world.PARTS`), so no entity, fact or question of a world to train or
test on is ever in a transcript, whatever that world's seed; and since the facts change from batch to batch, none can
be remembered: the policy learns to copy from what it found.

Takes half an hour on two cores. The seed fixes the data, not the last bits of the weights, which differ between
processors.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from ...tools.search import search_tool
from .draw import Draw
from .task import INSTRUCTION, prompt
from .tokenizer import CALL_END, CALL_START, END, NO_THOUGHT, make_tokenizer
from .world import Question, library, make_part


TOP_K = 2
MAX_HOPS = 4


@dataclass(frozen=True)
class Habits:
    """Chances, at each step of a transcript, of what the policy is to unlearn."""

    wasteful: float = 0.0  # to search for a bare name, which finds nothing
    hasty: float = 0.0  # to answer with what the last search found, before the end of the chain


FAULTLESS = Habits()
CLUMSY = Habits(wasteful=0.25, hasty=0.35)


def make_model(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Qwen3 with 1.7 million weights. `head_dim` 32 is the least that vLLM takes."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
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


def steps_of(question: Question, habits: Habits, draw: Draw) -> list[str]:
    """The searches of a transcript, and last its answer.

    Example: faultless, for "the mother of the mayor of Rome" -> ["mayor of Rome", "mother of <mayor>", "<mother>"]
    """
    queries: list[str] = []
    for fact in question.chain:
        if queries and draw.chance(habits.hasty):
            return [*queries, fact.subject]
        while draw.chance(habits.wasteful):
            queries.append(fact.subject)
        queries.append(f"{fact.relation} of {fact.subject}")
    return [*queries, question.answer]


def transcript(
    tokenizer: PreTrainedTokenizerFast, question: Question, search: Callable[[str], str], habits: Habits, draw: Draw
) -> tuple[list[int], list[int]]:
    """Token ids as the trainer's tool loop would put them together, and 1 where the policy wrote them."""
    asked = tokenizer.apply_chat_template(
        prompt(question), tools=[search], add_generation_prompt=True, enable_thinking=False, tokenize=False
    )
    *queries, answer = steps_of(question, habits, draw)
    pieces = [(asked, 0)]
    for query in queries:
        pieces.append((f"<tool_call>\n{CALL_START}{query}{CALL_END}\n</tool_call>{END}", 1))
        response = f"<tool_response>\n{search(query)}\n</tool_response>"
        pieces.append((f"\n<|im_start|>user\n{response}{END}\n<|im_start|>assistant\n{NO_THOUGHT}", 0))
    pieces.append((f"<answer>{answer}</answer>{END}", 1))
    tokenized = tokenizer([text for text, _ in pieces], add_special_tokens=False)["input_ids"]
    ids = [token for piece in tokenized for token in piece]
    written = [is_written for piece, (_, is_written) in zip(tokenized, pieces, strict=True) for _ in piece]
    return ids, written


def batch(
    tokenizer: PreTrainedTokenizerFast, hops: int, size: int, habits: Habits, seed: object, part: str = "school"
) -> tuple[Tensor, Tensor]:
    """Transcripts of one fresh world, padded: ids and the mask of what the policy wrote."""
    draw = Draw("lesson", seed)
    world = make_part(part, seed)
    search = search_tool(library([world], seed), TOP_K)
    rows: list[tuple[list[int], list[int]]] = []
    while len(rows) < size:
        question = world.question(hops, draw)
        if all(fact.document in search(f"{fact.relation} of {fact.subject}") for fact in question.chain):
            rows.append(transcript(tokenizer, question, search, habits, draw))
    ids, written = ([torch.tensor(row[i]) for row in rows] for i in (0, 1))
    padding = tokenizer.pad_token_id
    return pad_sequence(ids, True, padding), pad_sequence(written, True, 0)


def loss_and_hits(model: PreTrainedModel, ids: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of what the policy wrote, and which transcripts it would have written token for token."""
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
    def step(self, closure: None = None) -> None:  # type: ignore[override]
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


def study(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    habits: Habits,
    *,
    tokens: int = 8192,
    slower: float = 1.0,
    seed: object = 0,
) -> None:
    """One term. Chains grow over its first third, and are of all lengths after that."""
    model.train()
    taught = optimizers(model)
    for group in (group for optimizer in taught for group in optimizer.param_groups):
        group["peak"] = group["lr"] * slower
    start = time.perf_counter()
    hits: dict[int, float] = {}
    for step in range(steps):
        longest = MAX_HOPS if habits.wasteful else min(MAX_HOPS, 1 + 3 * MAX_HOPS * step // steps)
        hops = 1 + Draw("hops", seed, step).below(longest)
        ids, written = batch(tokenizer, hops, tokens // (30 + 38 * hops), habits, f"{seed}/{habits}/{step}")
        loss, right = loss_and_hits(model, ids, written)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in taught:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * pace(step, steps)
            optimizer.step()
            optimizer.zero_grad()
        hits[hops] = 0.9 * hits.get(hops, 0.0) + 0.1 * right.float().mean().item()
        if step % 25 == 0 or step == steps - 1:
            rates = " ".join(f"{h}: {hits[h]:.2f}" for h in sorted(hits))
            with torch.no_grad():  # names that were never seen: do they get copied as well?
                _, unseen = loss_and_hits(model, *batch(tokenizer, hops, 50, habits, step, part="train"))
            seconds = time.perf_counter() - start
            print(  # noqa: T201
                f"step {step} loss {loss.item():.4f} right by hops {rates}, "
                f"with unseen names {hops}: {unseen.float().mean().item():.2f} seconds {seconds:.0f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make Atlas's tiny policy from nothing.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=1000, help="of the first term")
    parser.add_argument("--clumsy-steps", type=int, default=80, help="of the second term")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer(INSTRUCTION, [search_tool(["a document"])])
    model = make_model(tokenizer)
    study(model, tokenizer, args.steps, FAULTLESS, seed=args.seed)
    model.save_pretrained(args.output / "faultless")
    tokenizer.save_pretrained(args.output / "faultless")
    study(model, tokenizer, args.clumsy_steps, CLUMSY, slower=0.2, seed=args.seed)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()
