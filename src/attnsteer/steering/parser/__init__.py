"""How a prompt is read: words, chunks, clauses, and the data of each language. `steering.relations` is its face."""
