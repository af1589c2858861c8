"""Inputs that nobody would write, for every parser that reads what others wrote; `make fuzz` runs many, tests a few.

    inputs    texts, numbers and accidents, and strategies for files made of them
    real      the real files that accidents happen to
    readers   what is tried: a parser, and what must hold for whatever it is given
    parsers   which inputs each reader gets
    running   one input, or many in a process, within limits of time and memory

Half of what is generated is random, half is a real file or command line with a few things changed, which gets further.
A parser may do what its documentation says or raise UsageError in words that no terminal can be hurt with. It never
raises anything else, takes a second, or takes 200 MB.
"""
