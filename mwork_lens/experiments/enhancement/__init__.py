"""Does tuning only a language's neurons improve it without harm to others? Fig. 4 and the low-resource table."""

from .design import ARMS, Design
from .experiment import enhancement
from .result import Enhancement
