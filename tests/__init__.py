"""All tests. What uses Ray starts it as ``private_ray`` does: no test may start one by accident."""

import os

os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # Ray reads it when it is imported
