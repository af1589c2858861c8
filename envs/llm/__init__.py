"""The adapter for causal language models: the state is the tokens so far, the action is the next token."""
