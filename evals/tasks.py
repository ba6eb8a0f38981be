"""The tasks by name. To add one: a class with `item` (see `task.Task`), and its line here."""

from __future__ import annotations

from .own_sets import Custom, FollowUp, NoSpeech, Transcription, Typed
from .qa_sets import SDQA, LlamaQuestions, NQOpen, SpokenSQuAD, TriviaQA, WebQuestions
from .task import Task
from .voicebench import BigBenchAudio, VoiceBenchChoice, VoiceBenchOpen, VoiceBenchQA

_CLASSES: tuple[type[Task], ...] = (
    LlamaQuestions,
    WebQuestions,
    TriviaQA,
    NQOpen,
    SDQA,
    SpokenSQuAD,
    VoiceBenchOpen,
    VoiceBenchQA,
    VoiceBenchChoice,
    BigBenchAudio,
    Custom,
    FollowUp,
    Transcription,
    NoSpeech,
    Typed,
)
TASKS: dict[str, Task] = {cls.name: cls() for cls in _CLASSES}
