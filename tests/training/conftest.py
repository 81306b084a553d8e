"""Settings of torch's threads for these tests; they must stand before torch is imported."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the trainer does: other tests may run beside
