"""How fast a bundle answers, beside PyTorch and beside a loop on the host. Torch-free.

    subjects.py    what is measured, and what a figure would be void for
    child.py       the process of one subject; process.py starts it and talks to it
    edges.py       text and picture files to arrays and back: end to end
    host_loop.py   the sampler as a loop on the host over the graph `fusion_step`
    run.py         the rounds; figures.py what comes out; machine.py where; compare.py old and new

It does not say whether the answers are right: that is parity's part, and without its pass on the
same files there is no figure.
"""
