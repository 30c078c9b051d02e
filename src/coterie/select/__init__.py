"""Which of a corpus's documents are trained on: profile, plan, pick. No torch, unless a sentence-embedding model is asked
for."""
