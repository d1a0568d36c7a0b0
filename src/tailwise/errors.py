"""The exceptions by their public name, `tailwise.errors`."""

import sys

from tailwise.core import errors

sys.modules[__name__] = errors
