"""The paper's four tasks, asked question by question with neurons off."""

from .catalogue import TASKS
from .result import ALL, ENGLISH, GROUPS, LIKELIHOOD, MEASURED, ORIGINAL, TaskResult
from .task import Answer, Hub, Question, Task, load_questions
