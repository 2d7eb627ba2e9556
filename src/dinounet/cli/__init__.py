"""The command line: one thin module a verb, whose function is also the verb's Python function."""
