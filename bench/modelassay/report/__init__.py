"""A run or a comparison as one document: a file of HTML that asks nobody for anything, Markdown, or what a tracker shows."""
