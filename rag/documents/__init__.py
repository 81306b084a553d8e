"""Reading documents (PDF, Markdown, text, HTML, BibTeX) and cutting them into passages."""
