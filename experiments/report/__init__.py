"""What a paper would need: methods, results, figures, as Markdown and as a page that opens without a network."""
