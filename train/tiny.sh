#!/usr/bin/env bash
# The embedded default from public text and recordings to figures: data → ground → align → chat → sft → evals.
#
#   train/tiny.sh DATA_DIR [OUT_DIR]      (make train-tiny DATA=DATA_DIR)
#
# DATA_DIR holds text and speech, as data_gen/prompts.py says, noise/esc10 with CLASS/FOLD-….ogg of ESC-10, whose first
# fold trains and whose second is asked, and noise/noise_misc; llasm/default/README.md names every source. Each step is
# a command that a person could type; run again, the script goes on where it was interrupted. The checkpoint is then in
# OUT_DIR/llasm-tiny, the figures in OUT_DIR/evals.
set -euo pipefail
[ -d "${1:-}" ] || { echo "train/tiny.sh: ${1:-DATA_DIR}: no such folder; make train-tiny DATA=DATA_DIR, or train/tiny.sh DATA_DIR [OUT_DIR]" >&2; exit 2; }
data=$(realpath "$1")
out=${2:-runs/tiny}
root=$(realpath "$(dirname "$0")/..")
bin=$(realpath -m "${BIN:-$root/.venv/bin}")
[ -x "$bin/llasm" ] || { echo "train/tiny.sh: $bin holds no llasm; make install, or BIN=FOLDER" >&2; exit 2; }
noise=(--vary.noise '["sounds/taught"]' --vary.licence "CC BY 3.0"
    --vary.attribution "the Freesound authors listed in the README of github karoldvl/ESC-10")
for folder in text/qa text/instructions speech speech/fsdd/recordings noise/esc10 noise/noise_misc; do
    [ -d "$data/$folder" ] || { echo "train/tiny.sh: $data holds no $folder; see data_gen/prompts.py for what DATA_DIR holds" >&2; exit 2; }
done
"$bin/python" - <<'PY'
import sys

from llasm.errors import LlasmError
from llasm.tts import load_voice

try:
    for voice in ("hibari", "kokoro", "flite", "espeak-ng", "piper:en_US-joe-medium"):
        load_voice(voice)
except LlasmError as error:
    sys.exit(f"train/tiny.sh: {error}")
PY
compgen -G "$data/noise/esc10/*/[12]-*.ogg" > /dev/null || { echo "train/tiny.sh: $data/noise/esc10 holds no CLASS/FOLD-….ogg, as ESC-10 has them" >&2; exit 2; }
mkdir -p "$out/sounds/taught" "$out/sounds/kept_out" && cd "$out"
ln -sf "$data"/noise/esc10/*/1-*.ogg sounds/taught  # ESC-10's first fold; no recording is in two
ln -sf "$data"/noise/esc10/*/2-*.ogg sounds/kept_out

# What the steps took on 2 cores with AMX, scaled to this machine: speaking by how long hibari takes for a sentence, the
# rest by a step of a Transformer layer.
"$bin/python" - <<'PY'
import time
import torch

from llasm.tts import load_voice

layer, frames = torch.nn.TransformerEncoderLayer(512, 8, 2048, dropout=0.0, batch_first=True), torch.randn(32, 175, 512)
engine, voice = load_voice("hibari")

def step():
    with torch.autocast("cpu", torch.bfloat16):
        states = layer(frames)
    states.float().square().mean().backward()

def seconds(work):
    work()
    started = time.perf_counter()
    for _ in range(8):
        work()
    return (time.perf_counter() - started) / 8

speaking = seconds(lambda: engine.synthesize("What is the capital of France?", voice)) / 0.024
training = seconds(step) / 0.28  # from 0.24 to 0.42 were seen there
steps = {
    "speak and answer": 53 * speaking, "encode": 18 * training, "ground": 7 * training,
    "align": 5 * training, "chat": 40 * training, "sft": 8 * training, "evals": 46 * training,
}
for name, minutes in steps.items():
    print(f"{name:16} about {minutes:5.0f} min")
print(f"{'all':16} about {sum(steps.values()) / 60:5.1f} h; 7 GB of disk, and 10 in LLASM_HOME", flush=True)
PY
"$bin/python" -m llasm.data_gen.prompts "$data/text" data/tiny/prompts --speech "$data/speech" \
    --ground 16000 --align 700 --chat 1600 --repeat 4000 --short 2000 \
    --keep_out "$root/evals/sets/follow_ups.jsonl" "$root/tests/data/typed.jsonl"
"$bin/llasm" data build tiny_ground "${noise[@]}"
"$bin/llasm" data build tiny_kokoro "${noise[@]}"
"$bin/llasm" data build tiny_people "${noise[@]}"
"$bin/llasm" data build tiny_align "${noise[@]}"
"$bin/llasm" data build tiny_default_chat "${noise[@]}"
"$bin/llasm" data build tiny_repeat "${noise[@]}"
"$bin/llasm" data build tiny_repeat_heard "${noise[@]}"
"$bin/llasm" train tiny_ground --resume
"$bin/llasm" train tiny_align --resume
"$bin/llasm" train tiny_default_chat --resume
"$bin/llasm" train tiny_default_chat_sft --resume
if [ ! -d llasm-tiny ]; then
    rm -rf unfinished
    "$bin/llasm" export --model runs/tiny_default_chat_sft --format adapter --output unfinished
    mv unfinished llasm-tiny
fi

# The figures of the card, in a voice that no training heard.
joe=piper:en_US-joe-medium
ask() {
    [ -f "evals/$1/report.md" ] || "$bin/llasm" eval --model ./llasm-tiny --voice "$joe" --out "evals/$1" --resume "${@:2}"
}
noisy=(--snr 10 --noise "$data/noise/noise_misc")
ask devtest --task webquestions --data "$data/text/qa/webquestions_devtest.jsonl" "${noisy[@]}"
ask trivia --task custom --data data/tiny/prompts/trivia.jsonl "${noisy[@]}" --latency_items 0
for source in speechocean762_adult_train kathleen_cc0 fsdd; do
    grep "\"source\": \"$source\"" data/tiny/prompts/speech_heldout.jsonl > "evals/$source.jsonl"
done
for source in speechocean762_adult_train kathleen_cc0; do
    ask "repeat_$source" --task transcription --data "evals/$source.jsonl" --conditions speech,cascade --latency_items 0
done
ask follow_up --task follow_up --latency_items 0
ask other --task no_speech,typed --latency_items 0
ask recorded --task no_speech --data sounds/kept_out --latency_items 0
measure() {  # NAME COMMAND
    [ -f "evals/$1.md" ] || { "${@:2}" > "evals/$1.part" && mv "evals/$1.part" "evals/$1.md"; }
}
awk 'NR % 4 == 1' data/tiny/prompts/dev.jsonl > evals/dev.jsonl  # of every source; 211 questions
heard() {  # NAME DATA [options]
    measure "$1" "$bin/python" "$root/benchmarks/heard.py" ./llasm-tiny --data "$2" --asr whisper-base "${@:3}"
}
heard heard evals/dev.jsonl --voice "$joe" "${noisy[@]}"
heard heard_speechocean762 evals/speechocean762_adult_train.jsonl
heard heard_kathleen evals/kathleen_cc0.jsonl
heard heard_digits evals/fsdd.jsonl
measure perplexity "$bin/python" "$root/benchmarks/perplexity.py" "$root/tests/data/typed.jsonl" --model ./llasm-tiny
