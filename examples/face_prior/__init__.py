"""The embedded world: how the miniature Stable Diffusion of faces and its feature network were made.

Run the modules in this order; each resumes where it was stopped, and ``data/README.md`` has the commands:
``autoencoder``, ``features``, ``diffusion``, then ``report`` to measure them.
"""
