"""Learns codes, scales and ranges from data, and compares ways to choose them.

Given a float function, its variables and batches of data, this folder returns variables with learned codes (`learn_rounding`,
`reconstruction`), steps and ranges that have derivatives (`training`), or a table that compares many settings (`laboratory`).
Nothing here depends on the formats of files or on the command line.
"""
