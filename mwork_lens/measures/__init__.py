"""What each neuron's score is."""

from .measure import LayerMeasure, Measure, Receive, SiteMasks, SiteScores, score_hooks
from .plnd import FORMULATIONS, Where, exact
from .plnd.published import parallel
from .selection import Selection
