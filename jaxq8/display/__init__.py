"""Shows results as rows of text, as tables that can be saved, as pictures, and as HTML.

Only `figures` imports matplotlib. Nothing here depends on what is quantized or on what the numbers mean.
"""
