"""Types shared by the packages."""

from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
