"""From documents to what is trained on: read, split, tokenize, pack, order. No torch."""
