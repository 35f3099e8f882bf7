"""Code that `deploy render triton` copies into a model repository as `1/model.py`.

These files run inside Triton's python backend, on a machine without mmprod: they import nothing of
this package, and nothing of this package imports them.
"""
