"""The commands of `gemma-tpu`: each module here is the command of its name.

A command has `HELP`, one line for the list of commands; `add_arguments(parser)`; and `main(args)`, which returns the
exit code. All modules are imported at every start, so heavy imports stand inside the functions.
"""
