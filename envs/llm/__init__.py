"""The language-model adapter, in which a state is the tokens so far and an action is the next token."""
