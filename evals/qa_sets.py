"""Public sets of questions with short answers, in the layouts that their authors publish."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from llasm.errors import LlasmError
from llasm.records import Record

from .items import Item
from .task import Task, clips, field, row_id, text, texts


class LlamaQuestions(Task):
    """300 spoken questions (Nachmani et al., Spectron, arXiv 2305.15255).

    github google-research-datasets/LLAMA1-Test-Set: llama_questions_300.tsv with the columns Questions, Answer and
    Wav Filename, the wavs beside it.
    """

    name = "llama_questions"
    files = ("llama_questions_300.tsv", "llama_questions*.tsv")
    one_file = True
    hub = "fixie-ai/llama-questions"

    def item(self, record: Record, where: str) -> Item:
        return Item(
            id=row_id(where),
            task=self.name,
            question=text(field(record, "Questions", "question")),
            answers=texts(field(record, "Answer", "answer")),
            audio=clips(record, where, "Wav Filename", "audio"),
        )


class WebQuestions(Task):
    """Questions that people asked a search engine, answered from Freebase (Berant et al., EMNLP 2013).

    The authors' JSON (`utterance`, `targetValue`: `(list (description "…") …)`), the hub's stanfordnlp/web_questions
    and others' JSONL (`question`, `answers`). Text only.
    """

    name = "webquestions"
    files = (
        "*web*questions*examples.test.json*",
        "*web*questions*devtest*.json*",
        "*web*questions*test*.json*",
        "*web*questions*.json*",
        "*test*.parquet",
        "*.parquet",
    )
    one_file = True
    hub = "stanfordnlp/web_questions"

    def item(self, record: Record, where: str) -> Item:
        if "targetValue" in record:
            found = re.findall(r'\(description (?:"((?:[^"\\]|\\.)*)"|([^()\s]+))\)', record["targetValue"])
            answers = tuple((quoted or bare).replace('\\"', '"') for quoted, bare in found)
        else:
            answers = texts(record["answers"])
        question = text(field(record, "utterance", "question"))
        return Item(
            id=str(field(record, "id", default=row_id(where))), task=self.name, question=question, answers=answers
        )


class TriviaQA(Task):
    """Trivia questions with aliases of each answer (Joshi et al., arXiv 1705.03551).

    The authors' qa/*.json (`Data`: Question, QuestionId, Answer with Value and Aliases) and the hub's
    mandarjoshi/trivia_qa. Text only.
    """

    name = "triviaqa"
    files = (
        "wikipedia-dev.json",
        "web-dev.json",
        "unfiltered-web-dev.json",
        "*dev*.json",
        "*.json",
        "*validation*.parquet",
        "*.parquet",
    )
    one_file = True
    hub = "mandarjoshi/trivia_qa:rc.nocontext:validation"

    def records(self, file: Path) -> Iterator[tuple[str, Any]]:
        if file.suffix != ".json":
            yield from super().records(file)
            return
        for number, record in enumerate(_json(file, "Data"), 1):
            yield f"{file}:{number}", record

    def item(self, record: Record, where: str) -> Item:
        answer = field(record, "Answer", "answer")
        aliases = texts(field(answer, "Aliases", "aliases", default=()))
        return Item(
            id=str(field(record, "QuestionId", "question_id")),
            task=self.name,
            question=text(field(record, "Question", "question")),
            answers=tuple(dict.fromkeys((text(field(answer, "Value", "value")), *aliases))),
        )


class NQOpen(Task):
    """Natural Questions with short answers (Lee et al., arXiv 1906.00300), and EfficientQA, made alike.

    github google-research-datasets/natural-questions, nq_open: NQ-open.dev.jsonl (`question`, `answer`: a list); the
    hub's google-research-datasets/nq_open. Text only.
    """

    name = "nq_open"
    files = (
        "NQ-open.dev.jsonl",
        "*efficientqa.dev.1.1.jsonl",
        "*[nN][qQ]*open*dev*.jsonl",
        "*[nN][qQ]*open*.jsonl",
        "*efficientqa*.jsonl",
        "*validation*.parquet",
        "*.parquet",
    )
    one_file = True
    hub = "google-research-datasets/nq_open::validation"

    def item(self, record: Record, where: str) -> Item:
        return Item(
            id=str(field(record, "id", default=row_id(where))),
            task=self.name,
            question=text(record["question"]),
            answers=texts(field(record, "answer", "answers")),
        )


class SDQA(Task):
    """Questions read by speakers of many dialects (Faisal et al., arXiv 2109.12072); LANG/DIALECT is a group.

    github ffaisal93/SD-QA: SPLIT/LANG/DIALECT/*.triples.jsonl (example_id, answers, has_answer), wav_LANG/ID.wav
    beside them, and the gold questions in SPLIT/LANG/*.txt. Questions that its annotators found no answer to are
    left out.
    """

    name = "sd_qa"
    files = ("test/*/*/*.triples.jsonl", "*.triples.jsonl")
    languages: ClassVar = {
        "ara": "ar", "ben": "bn", "eng": "en", "fin": "fi", "ind": "id",
        "kor": "ko", "rus": "ru", "swa": "sw", "tel": "te",
    }  # fmt: skip

    def records(self, file: Path) -> Iterator[tuple[str, Any]]:
        # One file a recogniser: the recordings and answers in them are the same.
        if file == min(file.parent.glob("*.triples.jsonl")):
            yield from super().records(file)

    def item(self, record: Record, where: str) -> Item | None:
        if not record["has_answer"]:
            return None
        file, name = Path(where.rpartition(":")[0]), str(record["example_id"])
        folder = next(iter(sorted(file.parent.glob("wav_*"))), file.parent)
        language, dialect = file.parent.parent.name, file.parent.name
        if language not in self.languages:
            raise ValueError(f"its folder {language!r} names no language: {', '.join(self.languages)}")
        return Item(
            id=f"{language}/{dialect}/{name}",
            task=self.name,
            # The triples hold what a recogniser heard; people's own words are in the gold file.
            question=_gold_questions(file.parent.parent).get(name) or text(record["question"]),
            answers=texts(record["answers"]),
            audio=(str(folder / f"{name}.wav"),),
            group=f"{language}/{dialect}",
            language=self.languages[language],
        )


@lru_cache(maxsize=8)
def _gold_questions(folder: Path) -> dict[str, str]:
    """Tab-separated: ID, a flag, the sentence."""
    found = {}
    for file in sorted(folder.glob("*.txt")):
        with open(file, encoding="utf-8", newline="") as lines:
            for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
                if len(row) > 1:
                    found[row[0]] = row[-1]
    return found


class SpokenSQuAD(Task):
    """Typed questions about spoken passages (Li et al., arXiv 1804.00320).

    github Chia-Hsuan-Lee/Spoken-SQuAD: spoken_test-v1.1.json, SQuAD's format with what a recogniser heard as context;
    one wav a sentence, ARTICLE_PARAGRAPH_SENTENCE.wav, anywhere below the folder (dev_wav/ as unpacked).
    """

    name = "spoken_squad"
    files = ("spoken_test-v1.1.json", "*.json")
    one_file = True

    def records(self, file: Path) -> Iterator[tuple[str, Any]]:
        sentences: dict[str, list[tuple[int, str]]] = {}
        for wav in file.parent.rglob("*_*_*.wav"):
            passage, _, number = wav.stem.rpartition("_")
            sentences.setdefault(passage, []).append((int(number), str(wav)))
        for a, article in enumerate(_json(file, "data")):
            for p, paragraph in enumerate(article["paragraphs"]):
                audio = [path for _, path in sorted(sentences.get(f"{a}_{p}", []))]
                for qa in paragraph["qas"]:
                    yield f"{file}:{qa['id']}", {**qa, "context": paragraph["context"], "audio": audio}

    def item(self, record: Record, where: str) -> Item:
        missing = "" if record["audio"] else f"no wavs of its passage below {Path(where).parent}"
        return Item(
            id=record["id"],
            task=self.name,
            question=record["context"],
            answers=tuple(dict.fromkeys(answer["text"] for answer in record["answers"])),
            audio=tuple(record["audio"]),
            typed=record["question"],
            fault=missing,
        )


def _json(file: Path, key: str) -> list[Any]:
    """The list under that key of a JSON file."""
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise LlasmError(f"{file}: not JSON ({error})") from error
    if not isinstance(found, dict) or not isinstance(found.get(key), list):
        raise LlasmError(f"{file}: no list under {key!r}, so this is another layout")
    return found[key]
