"""Codes, scales and ranges that are learned, and the laboratory that compares ways to choose them.

In come a float function, its variables and batches of data; out come variables with learned codes (`learn_rounding`,
`reconstruction`), steps and ranges that have derivatives (`training`), or a table of many settings (`laboratory`). Nothing
here knows of files or of the command line.
"""
