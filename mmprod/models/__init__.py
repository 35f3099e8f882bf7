"""The two models. Importing this package imports nothing heavy; the modules below need torch.

Legend of shapes used in every docstring: B batch, H W pixels, h w latent grid, N = h*w latent
positions, D width or code dimension, K codebook size, L text length, V vocabulary, T sampler steps,
E search embedding.
"""
