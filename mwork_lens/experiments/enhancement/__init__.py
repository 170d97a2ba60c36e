"""Does tuning only a language's neurons improve it without harm to others? Fig. 4 and the low-resource table."""

from .design import ARMS as ARMS
from .design import Design as Design
from .experiment import enhancement as enhancement
from .result import Enhancement as Enhancement
