"""Public question and instruction texts → the prompts that the embedded default learns from.

    python -m llasm.data_gen.prompts TEXT_DIR OUT_DIR [--speech DIR] [--keep_out FILE …] [--ground N] [--align N] …

TEXT_DIR holds `qa/NAME.jsonl` (webquestions_trainmodel, _val and _devtest, efficientqa_dev, open_trivia) with rows
{"question", "answers", "licence"}, and, as their authors publish them, in `instructions/`: disfl_qa, self_instruct,
llms_from_scratch_instructions, open_assistant_sample, slurp_text, clinc_oos, snips_nlu. CREDITS names where they come
from; sources and licences are kept in every row's `meta`.

Writes `ground.jsonl`, `align.jsonl`, `chat.jsonl`, `repeat.jsonl` and `short.jsonl`, which are disjoint. `repeat` is
what `chat` asks to repeat: three quarters statements out of the answers to the instructions, and texts that ground
could have. `short` is for ground too, one or two words each: prompts that are no longer ("Yes please"), then answers.
Held out are all of `webquestions_devtest` and every 20th row of each other source, of which `trivia.jsonl` has 500 of
the open trivia, to evaluate with, and `dev.jsonl` the other held-out questions that have answers, to choose by; a
prompt whose normalised text equals a held-out one, or any text in the JSONL of --keep_out, is dropped, and so is a
short one that equals an answer held out.

--speech holds speechocean762_adult_train and kathleen_cc0, each with a `manifest.jsonl` of rows {"id", "audio", "text",
"speaker"}, ljspeech_bits, with `metadata.csv` and `audio/*.flac`, and fsdd, with `recordings/DIGIT_SPEAKER_N.wav`. It
adds `speech.jsonl`, recordings of speechocean762 and LJ Speech, and `speech_heldout.jsonl`: 15 speakers of
speechocean762, all of Kathleen and the spoken digits of fsdd.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llasm.errors import LlasmError
from llasm.files import jsonl, write_whole

HELD_OUT_EVERY = 20
HELD_OUT_SPEAKERS = 15
N_TRIVIA = 500  # of the held-out open trivia, as `llasm eval --task custom` reads them
MIN_WORDS, MAX_WORDS, MAX_CHARS = 3, 28, 170  # of a prompt; what is shorter is `short`
# The open trivia questions cover names best, the assistant requests repeat a few hundred templates.
LIMITS = {"clinc_oos": 3000, "snips_nlu": 3000}
UNANSWERED = {"snips_nlu"}
DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
_QUESTION = re.compile(
    r"^(who|what|when|where|which|why|how|whose|whom|is|are|was|were|do|does|did|can|could|will|would|should"
    r"|has|have|had|may)\b",
    re.IGNORECASE,
)
_WORDS = re.compile(r"[A-Za-z0-9][A-Za-z0-9' -]*[.!?]?")
_UNSPEAKABLE = re.compile(r"https?:|www\.|[<>{}\[\]|\\_=#*~^`@]|\.\.\.|-->|__|\n")

CREDITS = {  # whom the data cards and the model card name, by the beginning of a source's name
    "webquestions": "github brmson/dataset-factoid-webquestions",
    "efficientqa": "github google-research-datasets/natural-questions",
    "open_trivia": "github uberspot/OpenTriviaQA",
    "disfl_qa": "github google-research-datasets/Disfl-QA",
    "self_instruct": "github yizhongw/self-instruct",
    "llms_from_scratch": "github rasbt/LLMs-from-scratch",
    "open_assistant": "github LAION-AI/Open-Assistant",
    "slurp": "github pswietojanski/slurp",
    "clinc_oos": "github clinc/oos-eval",
    "snips_nlu": "github sonos/nlu-benchmark",
    "speechocean762": "github jimbozhang/speechocean762",
    "ljspeech": "the LJ Speech data set, by Keith Ito and Linda Johnson",
    "kathleen": "github rhasspy/dataset-voice-kathleen",
    "fsdd": "github Jakobovski/free-spoken-digit-dataset",
}

Row = dict[str, object]


def credited(source: str, licence: str) -> Row:
    """A row's `meta`: where it comes from; LlasmError where CREDITS does not know."""
    for name, credit in CREDITS.items():
        if source.startswith(name):
            return {"source": source, "licence": licence, "attribution": credit}
    raise LlasmError(f"{source}: nobody to credit for it; the sources known are {', '.join(CREDITS)}")


def _rows(path: Path) -> list[Any]:
    """Of JSONL."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sources(root: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """Yields (source, licence, prompt, answers) in the order of the files."""
    for path in sorted((root / "qa").glob("*.jsonl")):
        for row in _rows(path):
            yield path.stem, row["licence"], row["question"], row["answers"]
    folder = root / "instructions"
    for name in ("train", "dev"):
        for pair in json.loads((folder / f"disfl_qa/{name}.json").read_text(encoding="utf-8")).values():
            yield "disfl_qa", "CC BY 4.0", pair["original"], []
    for row in _rows(folder / "self_instruct/seed_tasks.jsonl"):
        yield "self_instruct", "Apache-2.0", row["instruction"], []
    path = folder / "llms_from_scratch_instructions/instruction-data.json"
    for row in json.loads(path.read_text(encoding="utf-8")):
        prompt = f"{row['instruction']} {row['input']}".strip()
        yield "llms_from_scratch", "Apache-2.0", prompt, []
    for row in _rows(folder / "open_assistant_sample/en_100_tree.jsonl"):
        yield "open_assistant", "Apache-2.0", row["prompt"]["text"], []
    for row in _rows(folder / "slurp_text/devel.jsonl"):
        yield "slurp", "CC BY 4.0", row["sentence"], []
    clinc = json.loads((folder / "clinc_oos/data_full.json").read_text(encoding="utf-8"))
    for part in sorted(clinc):
        for text, _intent in clinc[part]:
            yield "clinc_oos", "CC BY 3.0", text, []
    for path in sorted((folder / "snips_nlu").rglob("train_*_full.json")):
        for rows in json.loads(path.read_bytes().decode("utf-8", "replace")).values():
            for row in rows:
                yield "snips_nlu", "CC0 1.0", "".join(part["text"] for part in row["data"]), []


def statements(root: Path) -> Iterator[tuple[str, str, str]]:
    """Yields (source, licence, sentence): the prose in the answers of the instructions, for prompts are few of them
    statements."""
    folder = root / "instructions"
    texts: list[tuple[str, str]] = []
    path = folder / "llms_from_scratch_instructions/instruction-data.json"
    texts += [("llms_from_scratch", row["output"]) for row in json.loads(path.read_text(encoding="utf-8"))]
    for row in _rows(folder / "self_instruct/seed_tasks.jsonl"):
        texts += [("self_instruct", part[side]) for part in row["instances"] for side in ("input", "output")]
    replies = [row["prompt"] for row in _rows(folder / "open_assistant_sample/en_100_tree.jsonl")]
    while replies:
        reply = replies.pop()
        texts.append(("open_assistant", reply["text"]))
        replies += reply.get("replies", [])
    for source, text in texts:
        for sentence in re.split(r"(?<=[.!])\s+|\n+", text):
            if re.fullmatch(r"[A-Z][^:;\"()\d?]*[.!]", sentence.strip()):
                yield source, "Apache-2.0", sentence.strip()


def normalise(text: str) -> str:
    """Lower-case words only: two prompts that sound alike compare equal."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def plain(text: str) -> bool:
    """Short, and without anything that reads differently from how it is written."""
    words = text.split()
    return MIN_WORDS <= len(words) <= MAX_WORDS and len(text) <= MAX_CHARS and not _UNSPEAKABLE.search(text)


class Truecaser:
    """Gives lower-case sources the commonest spelling that a word has inside sentences of the others.

    Speech carries no case: with one style of writing the recognised tokens need not guess it.
    """

    def __init__(self, texts: list[str]) -> None:
        seen: dict[str, Counter[str]] = defaultdict(Counter)
        for text in texts:
            if text != text.lower():
                for word in re.findall(r"[A-Za-z']+", text)[1:]:
                    seen[word.lower()][word] += 1
        self._spelling = {lower: c.most_common(1)[0][0] for lower, c in seen.items() if c.total() > 1}

    def __call__(self, text: str) -> str:
        text = " ".join(text.split())
        if text == text.lower():
            text = re.sub(r"[a-z']+", lambda m: self._spelling.get(m[0], m[0]), text)
            text = re.sub(r"\bi\b", "I", text)
        text = text[:1].upper() + text[1:]
        if text[-1:].isalnum():
            text += "?" if _QUESTION.match(text) else "."
        return text


def kept_out(files: list[Path]) -> set[str]:
    """The normalised texts in JSONL, at whatever depth of its rows; LlasmError where a file is none."""

    def texts(value: object) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, dict)):
            for part in value.values() if isinstance(value, dict) else value:
                yield from texts(part)

    found: set[str] = set()
    for file in files:
        try:
            rows = _rows(file)
        except (OSError, ValueError) as error:
            raise LlasmError(f"--keep_out {file}: cannot be read as JSONL ({error})") from error
        found |= {normalise(text) for row in rows for text in texts(row)}
    return found


def build(
    root: Path,
    n_ground: int,
    n_align: int,
    n_chat: int,
    n_repeat: int = 0,
    n_short: int = 0,
    aside: set[str] | frozenset[str] = frozenset(),
    seed: int = 0,
) -> dict[str, list[Row]]:
    """The lists of prompts by name; the held-out ones keep their text exactly as published, and no other is one of
    the normalised texts in `aside`."""
    rows: list[Row] = []
    heldout: list[Row] = []
    counts: Counter[str] = Counter()
    for source, licence, text, answers in sources(root):
        counts[source] += 1
        meta: Row = {**credited(source, licence), "answers": answers}
        row: Row = {"id": f"{source}-{counts[source] - 1}", "text": text, "meta": meta}
        is_heldout = source == "webquestions_devtest" or counts[source] % HELD_OUT_EVERY == 0
        (heldout if is_heldout else rows).append(row)
    forbidden = {normalise(str(row["text"])) for row in heldout} | aside
    answers_heldout = {normalise(answer) for row in heldout for answer in row["meta"]["answers"]}  # type: ignore[index]
    answers_heldout |= set(map(normalise, DIGITS))  # what fsdd says
    truecase = Truecaser([str(row["text"]) for row in rows])
    random.Random(seed).shuffle(rows)
    kept: list[Row] = []
    taken: Counter[str] = Counter()
    for row in rows:
        text, source = str(row["text"]), row["meta"]["source"]  # type: ignore[index]
        key = normalise(text)
        if key in forbidden or not plain(text) or taken[source] >= LIMITS.get(source, 10**9):
            continue
        forbidden.add(key)
        taken[source] += 1
        kept.append({**row, "text": truecase(text)})
    asked = [row for row in kept if row["meta"]["source"] not in UNANSWERED]  # type: ignore[index]
    align, chat = asked[:n_align], asked[n_align : n_align + n_chat]
    chosen = {row["id"] for row in align + chat}
    rest = [row for row in kept if row["id"] not in chosen]
    random.Random(seed).shuffle(rest)  # at its head are sources that align and chat leave alone
    said: list[Row] = []
    for source, licence, text in statements(root):
        key = normalise(text)
        if key not in forbidden and plain(text):
            forbidden.add(key)
            said.append({"id": f"{source}-said-{len(said)}", "text": text, "meta": credited(source, licence)})
    random.Random(seed).shuffle(said)
    said = said[: n_repeat * 3 // 4]
    n_rest = max(0, len(rest) - (n_repeat - len(said)))
    ground, repeat = rest[:n_rest][:n_ground], rest[n_rest:] + said
    random.Random(seed).shuffle(repeat)
    short = []
    for row in brief(rows):
        key = normalise(str(row["text"]))
        if key not in forbidden and key not in answers_heldout:
            forbidden.add(key)
            short.append({**row, "text": truecase(str(row["text"]))})
    made = {"ground": ground, "align": align, "chat": chat, "repeat": repeat, "short": short[:n_short]}
    return {**made, "heldout": heldout}


def brief(rows: list[Row]) -> Iterator[Row]:
    """What is shorter than a prompt may be: rows themselves, then the first answer of each."""
    answers = [
        {**row, "id": f"{row['id']}-answer", "text": answer}
        for row in rows
        for answer in row["meta"]["answers"][:1]  # type: ignore[index]
    ]
    for row in rows + answers:
        text = str(row["text"])
        if _WORDS.fullmatch(text) and len(text.split()) < MIN_WORDS:
            yield {**row, "meta": {**row["meta"], "answers": []}}  # type: ignore[dict-item]


def recordings(root: Path, texts: list[str], seed: int = 0) -> tuple[list[Row], list[Row]]:
    """(training, held-out) clips with transcripts in the prompts' spelling, which follows `texts`."""
    truecase = Truecaser(texts)

    def manifest(name: str, licence: str) -> list[Row]:
        meta = credited(name, licence)
        rows = _rows(root / name / "manifest.jsonl")
        return [{**row, "audio": str((root / name / row["audio"]).resolve()), "meta": meta} for row in rows]

    free = "free for commercial and non-commercial use"
    ocean = manifest("speechocean762_adult_train", free)
    ocean = [{**row, "text": truecase(str(row["text"]).lower())} for row in ocean]
    speakers = sorted({str(row["speaker"]) for row in ocean})
    aside = set(random.Random(seed).sample(speakers, HELD_OUT_SPEAKERS))
    folder = root / "ljspeech_bits"
    read = [line.split("|") for line in (folder / "metadata.csv").read_text(encoding="utf-8").splitlines()]
    meta = credited("ljspeech", "public domain")
    lj: list[Row] = [
        {"id": name, "audio": str((folder / "audio" / f"{name}.flac").resolve()), "text": truecase(text), "meta": meta}
        for name, _, text in read
    ]
    meta = credited("fsdd", "CC BY-SA 4.0")
    digits: list[Row] = []
    for file in sorted((root / "fsdd/recordings").glob("*.wav")):
        digit, speaker, _ = file.stem.split("_")
        row: Row = {"id": file.stem, "audio": str(file.resolve()), "text": f"{DIGITS[int(digit)]}."}
        digits.append({**row, "speaker": speaker, "meta": meta})
    training = [row for row in ocean if row["speaker"] not in aside] + lj
    heldout = [row for row in ocean if row["speaker"] in aside]
    return training, heldout + manifest("kathleen_cc0", "CC0 1.0") + digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("text_dir", type=Path)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--ground", type=int, default=10**9, help="at most this many prompts for `ground`")
    parser.add_argument("--align", type=int, default=4000, help="this many prompts for `align`")
    parser.add_argument("--chat", type=int, default=0, help="this many prompts for stage `chat`")
    parser.add_argument("--repeat", type=int, default=0, help="this many texts that `chat` asks to repeat")
    parser.add_argument("--short", type=int, default=0, help="this many texts of one or two words for `ground`")
    parser.add_argument("--speech", type=Path, metavar="DIR", help="folder of the recordings named above")
    parser.add_argument(
        "--keep_out", type=Path, nargs="+", default=[], metavar="FILE", help="JSONL whose texts no prompt repeats"
    )
    args = parser.parse_args()
    for name in ("text_dir", "speech"):
        if (path := getattr(args, name)) and not path.exists():
            parser.error(f"{path}: there is no such folder")
    try:
        aside = kept_out(args.keep_out)
        prompts = build(args.text_dir, args.ground, args.align, args.chat, args.repeat, args.short, aside)
        spoken = recordings(args.speech, [str(row["text"]) for row in prompts["ground"]]) if args.speech else None
    except LlasmError as error:
        parser.error(str(error))
    except FileNotFoundError as error:
        parser.error(f"{error.filename}: there is no such file; --help says what must lie where")
    heldout = prompts.pop("heldout")
    if args.repeat and args.ground and not prompts["ground"]:
        parser.error(f"--repeat {args.repeat}: leaves none of the texts to ground; fewer would")
    args.out_dir.mkdir(parents=True, exist_ok=True)
    for name, rows in prompts.items():
        lines = [{"id": row["id"], "messages": [_asked(row["text"])], "meta": row["meta"]} for row in rows]
        _write(args.out_dir / f"{name}.jsonl", lines)
    asked = [{"id": row["id"], "question": row["text"], **row["meta"]} for row in heldout if row["meta"]["answers"]]  # type: ignore[dict-item, index]
    trivia = [row for row in asked if row["source"] == "open_trivia"][:N_TRIVIA]
    tested = {row["id"] for row in trivia}
    _write(args.out_dir / "trivia.jsonl", trivia)
    tested |= {row["id"] for row in asked if row["source"] == "webquestions_devtest"}
    _write(args.out_dir / "dev.jsonl", [row for row in asked if row["id"] not in tested])
    if spoken:
        training, others = spoken
        _write(args.out_dir / "speech.jsonl", training)
        _write(args.out_dir / "speech_heldout.jsonl", others)


def _asked(text: object) -> Row:
    return {"role": "user", "content": text}


def _write(path: Path, rows: list[Row]) -> None:
    write_whole(path, jsonl(rows))
    print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
