"""The language-model adapter. A state consists of the tokens so far, and an action is the next token."""
