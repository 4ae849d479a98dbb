"""Recipes of two small priors of cartoon faces: flow matching in latents of stride 8, and diffusion in pixels.

No setting of the package was chosen on them, so that they tell what its defaults are worth elsewhere.
"""
