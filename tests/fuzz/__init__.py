"""Malformed and unusual inputs for every parser of external data. `make fuzz` tries many of them, the tests a few.

    inputs      texts, numbers and mutations, and strategies that build files from them
    real_files  the real files that are mutated
    readers     calls each parser and checks its result
    parsers     the input strategy of each reader
    trials      runs one input, or many in a process, with limits on time and memory

Half of the generated inputs are random. The other half are real files or command lines with a few changes, which get
past the first checks. For every input, a parser must behave as documented or raise UsageError with a message that is
safe to print. It must not raise any other error, take a second, or use 200 MB.
"""
