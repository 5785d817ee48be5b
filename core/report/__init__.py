"""Reports for people: one description of a page, written as a single HTML file and as Markdown."""
