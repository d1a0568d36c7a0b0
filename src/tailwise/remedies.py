"""The remedies by their public name, `tailwise.remedies`; they live with the training that they are for."""

import sys

from tailwise.training import remedies

sys.modules[__name__] = remedies
