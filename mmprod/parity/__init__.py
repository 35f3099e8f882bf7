"""Does a compiled graph still compute what PyTorch computes? Torch-free: speaks to runners and
bundle files only.

compare.py measures two outputs, limits.py says how far apart they may be and why, cases.py yields
the inputs, candidates.py finds what a bundle offers, check.py compares, overflow.py looks for what
float32 arithmetic hides of half precision, report.py keeps and render.py shows the verdicts,
merge.py carries earlier ones over, run.py is the whole. sabotage.py and trials.py prove that a
damaged graph does not get through.
"""
