"""What this machine does right and fast.

`selfcheck` compares every fast form with plain arithmetic on this processor; `tuning` times the forms that a model could use
and remembers the fastest. In come forms and models, out come verdicts and times. Nothing here changes what is computed, only
which form computes it.
"""
