"""Causal language models as rollouts: state = prefix, action = next token."""
