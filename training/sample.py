"""Text from a trained model: `python -P -s -m training.sample RUN_DIR --prompt "def "`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

from training.tokenizer import ByteTokenizer
from workspace.errors import LabError


@torch.no_grad()
def generate(
    model: nn.Module,
    tokenizer: ByteTokenizer,
    prompt: str,
    *,
    tokens: int,
    context: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """`prompt` continued by at most `tokens` tokens, up to the end of the document.

    Temperature 0 takes the likeliest token each time; above it tokens are drawn, repeatably by `seed`.
    """
    device = next(model.parameters()).device
    draw = torch.Generator().manual_seed(seed)
    ids = [tokenizer.bos, *tokenizer.encode(prompt)]
    start = len(ids)
    was_training = model.training
    model.eval()
    try:
        for _ in range(tokens):
            window = torch.tensor([ids[-context:]], device=device)
            logits = model(window)[0, -1].float().cpu()  # (V,)
            if temperature > 0:
                chosen = int(torch.multinomial(torch.softmax(logits / temperature, dim=0), 1, generator=draw))
            else:
                chosen = int(logits.argmax())
            if chosen == tokenizer.bos:
                break
            ids.append(chosen)
    finally:
        model.train(was_training)
    return prompt + tokenizer.decode(ids[start:])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="training.sample", description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, or a checkpoint's")
    parser.add_argument("--prompt", default="")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe-dir", type=Path, help="where the recipe's model.py lies, when it had one")
    options = parser.parse_args(arguments)
    from training.checkpoint import open_checkpoint
    from training.recipe_code import builders

    try:
        checkpoint = open_checkpoint(options.run)
        model = builders(options.recipe_dir).model(checkpoint.config)
        checkpoint.load_model(model)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    config = checkpoint.config
    tokenizer = ByteTokenizer.load(checkpoint.folder / "tokenizer.json", config.data.vocab_size)
    text = generate(
        model, tokenizer, options.prompt, tokens=options.tokens, context=config.data.context,
        temperature=options.temperature, seed=options.seed,
    )  # fmt: skip
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
