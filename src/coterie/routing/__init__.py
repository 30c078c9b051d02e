"""Eligibility, features, routers, policy, fitting, statistics. Pure tensors: no store, no expert, no tokenizer."""
