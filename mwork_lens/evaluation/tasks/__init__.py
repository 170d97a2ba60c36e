"""The paper's four tasks, asked question by question with neurons off."""

from .catalogue import TASKS as TASKS
from .prompts import make_prompts as make_prompts
from .result import TaskResult as TaskResult
from .running import Condition as Condition
from .running import run_task as run_task
from .sources import load_questions as load_questions
from .task import Answer as Answer
from .task import Hub as Hub
from .task import Question as Question
from .task import Task as Task
