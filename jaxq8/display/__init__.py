"""How results are shown: rows of text, tables that can be saved, pictures.

In come rows and numbers; out come text and files of pictures. matplotlib is touched in `figures` alone. Nothing here knows
what is quantized, or what the numbers mean.
"""
