"""An image that every working stage can process: what a stage checks itself with."""

from __future__ import annotations

import base64

# A grey gradient of 16 x 16 pixels, an RGB PNG as the sanitizer writes it.
GOLDEN_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAK0lEQVR42mPk4OBgIAWw8PPzk6ZBUFCQNA0CAgKjGkY1UEMD4/fv30nSAABy"
    "kAXYWE5U5AAAAABJRU5ErkJggg=="
)
