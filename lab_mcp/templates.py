"""The texts that `lab-mcp init` writes for people to fill in."""

PROGRAM = """\
# Research program

The lab reads this before it proposes anything. Write it in your own words; every part may stay short.

## Goal

What should be found out or reached? One or two sentences.

> Example: the best validation bits per byte a model of this family reaches in five minutes of training on one device.

## What counts as better

- Metric: `val_bpb` (bits per byte on held-back text; lower is better)
- Smallest difference worth having: for example 0.005
- What it must not cost: for example no more memory, no more than 10 % fewer tokens per second

## Constraints

- Budget of one run: as in `recipe/recipe.toml`
- What must not be changed: for example the data, the tokenizer, the context length
- When and on which devices the lab may run

## Ideas, most promising first

1.
2.
3.

## What was learnt

What is known already, so that it is not tried again: what helped, what did not, what surprised.
"""

PAPERS_README = """\
# Papers

Put what the lab should know here: PDF, Markdown, text, `.bib`; folders are fine.
`rag_index` reads what is new or changed, `rag_search` finds passages with page and source.
Nothing in this folder is sent anywhere.
"""
