"""How the photo prior was made: a latent diffusion prior of natural image patches, from a folder of photographs.

Run the modules in this order; each resumes where it was stopped: ``photographs``, ``autoencoder``, ``denoiser``, then
``report`` to measure them.
"""
