"""Prepared data sets: where pictures and captions come from, their form on disk, their order.

Sources (`avatars`, `emoji`, `folder`) write through `writer`; training reads through `store`, in
the order of `order`, with texts cut by `tokenizer`. `attributes` is the vocabulary of the generated
faces. Importing this package loads nothing heavy: name the module you need.
"""
