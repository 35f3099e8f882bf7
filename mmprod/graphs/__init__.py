"""The deployable graphs: what they take and give (torch-free) and how they are composed from the
models (torch).
"""
