"""The stages of a retraining, a file each, with packages of what several share: a stage takes frozen values, calls one room,
and returns frozen values.
"""
