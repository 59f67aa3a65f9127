"""Training data for relation classifiers: pictures with known relations, and the attention maps that they give."""
