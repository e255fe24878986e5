"""A finished model, measured: verified answers, reverse KL against a teacher, tasks of the evaluation harness.

Nothing is imported here: the process that verifies untrusted answers starts in this package and needs none of it.
"""
