"""What the server of warm processes imports."""

import gc

gc.disable()

import support.fit
import support.ranks  # noqa: F401

gc.collect()
gc.freeze()  # forks share what lies here, as long as nobody looks through it for garbage
gc.enable()
