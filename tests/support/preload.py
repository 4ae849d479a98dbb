"""What the server of warm processes imports."""

import support.fit
import support.ranks  # noqa: F401
