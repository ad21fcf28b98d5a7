"""What a code is.

In come real numbers and the choice of how to represent them (`Spec`); out come codes with a scale and a zero point (`QTensor`,
`CodeBook`). Ranges, roundings and observers live here because they decide which real number a code stands for. Nothing here
knows of functions, jaxprs, sites or models.
"""
