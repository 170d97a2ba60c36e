"""The paper's four tasks, asked question by question with neurons off."""

from .catalogue import TASKS
from .prompts import Prompt, make_prompts, templates, uses_chat
from .result import ALL, ENGLISH, GROUPS, LIKELIHOOD, MEASURED, ORIGINAL, TaskResult
from .run import Condition, require_room, run_task
from .task import Answer, Hub, Question, Task, limited, load_questions
