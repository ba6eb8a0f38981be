#!/usr/bin/env bash
# The choices behind the embedded default, one by one: tables in the appendix of its card (the older there: commit d08716e).
#
#   train/tiny_experiments.sh DATA_DIR OUT_DIR [NAME …]
#
# DATA_DIR and OUT_DIR as they were given to train/tiny.sh, which has run: its data and its ground are used. Each run is a
# short one of a recipe with one setting changed. Of stage ground the words are counted that are heard wrong, and behind
# the later stages held-out questions of dev.jsonl are asked, aloud in a voice that no training heard and typed. With
# NAMEs only those are run; lora and no_lora need `align`, aligner_align `aligner`. Run again, it goes on where it was
# interrupted. About 2 hours on 2 cores.
set -euo pipefail
[ $# -ge 2 ] && [ -d "$1" ] && [ -d "$2" ] || { echo "usage: train/tiny_experiments.sh DATA_DIR OUT_DIR [NAME …]: '${1:-}' and '${2:-}' must be folders" >&2; exit 2; }
data=$(realpath "$1")
tiny=$(realpath "$2")
wanted=" ${*:3} "
grounds=(all half quarter one_voice clean aligner)
known=("${grounds[@]}" align repeat_0 repeat_50 temperature_1 temperature_4 aligner_align swiglu lora no_lora)
for name in "${@:3}"; do
    [[ " ${known[*]} " == *" $name "* ]] || { echo "train/tiny_experiments.sh: unknown run '$name': choose from ${known[*]}" >&2; exit 2; }
done
bin=$(realpath "${BIN:-.venv/bin}")
benchmarks=$(realpath benchmarks)
[ -f "$tiny/runs/tiny_ground/metrics.json" ] || { echo "$tiny: run train/tiny.sh first" >&2; exit 2; }
mkdir -p "$tiny/experiments" && cd "$tiny/experiments"
prompts=$tiny/data/tiny/prompts
joe=piper:en_US-joe-medium  # whom no training heard
noisy=(--voice "$joe" --snr 10 --noise "$data/noise/noise_misc")
awk 'NR % 4 == 1' "$prompts/dev.jsonl" > dev.jsonl  # of every source; 211 questions

part() {  # NAME FILES: the first files of the voices, as a data set of their own
    local files=("$tiny/data/tiny/ground/data"/*.parquet)
    mkdir -p "data/$1/data"
    ln -sf "${files[@]:0:$2}" "data/$1/data/"
}
part all 4  # 8 hours, of which 120 steps hear a half; a half of it once, a quarter twice
part half 2
part quarter 1

chosen() { [[ $wanted == "  " || $wanted == *" $1 "* ]]; }
build() {  # NAME PROMPTS [options]: as many rows in another way
    ! chosen "$1" || [ -f "data/$1/README.md" ] || "$bin/llasm" data build tiny_ground --output "data/$1" \
        --sources "[{\"path\": \"$prompts/ground.jsonl\", \"limit\": $2}]" "${@:3}"
}
build one_voice 3900 --speak.voices '["hibari"]' --vary.noise "[\"$tiny/sounds/taught\"]" \
    --vary.licence "CC BY 3.0" --vary.attribution "the Freesound authors listed in the README of github karoldvl/ESC-10"
build clean 7800 --vary.variants 0
train() {  # RECIPE NAME [options]
    [ -f "runs/$2/metrics.json" ] || "$bin/llasm" train "$1" --output "runs/$2" --n_examples 0 --resume "${@:3}"
    rm -rf "runs/$2/snapshots"
}
ground() {  # NAME [options]
    ! chosen "$1" || train tiny_ground "$1" --data '["data/all"]' --n_steps 120 --eval_steps 120 "${@:2}"
}
asked() {  # RECIPE NAME [options]: trained and asked
    chosen "$2" || return 0
    train "$@"
    [ -f "evals/$2/report.md" ] || "$bin/llasm" eval --model "runs/$2" --task custom --data dev.jsonl \
        --conditions speech,text --voice "$joe" --max_new_tokens 32 --latency_items 0 --out "evals/$2" --resume
}
align() {  # NAME START [options]
    asked tiny_align "$1" --data "[\"$tiny/data/tiny/align\"]" --init "$2" --n_steps 30 --eval_steps 30 "${@:3}"
}

# Stage ground: hours of speech, voices, noise; and CTC in place of Whisper's decoder.
ground all
ground half --data '["data/half"]'
ground quarter --data '["data/quarter"]'
ground one_voice --data '["data/one_voice"]'
ground clean --data '["data/clean"]'
ground aligner --adapter.name aligner --adapter.rate heard --learning_rate 1e-3 --warmup_steps 60 --n_steps 300

# Stage align, from the default's own ground: its settings.
trained=$tiny/runs/tiny_ground
align align "$trained"
align repeat_0 "$trained" --repeat_share 0
align repeat_50 "$trained" --repeat_share 0.5
align temperature_1 "$trained" --temperature 1
align temperature_4 "$trained" --temperature 4
align aligner_align runs/aligner --learning_rate 1e-4
# Without stage ground, for as long as aligner and aligner_align take together: 7.3 minutes with AMX.
asked tiny_align swiglu --data "[\"$tiny/data/tiny/align\"]" --init null --adapter.name swiglu --adapter.stack 8 \
    --adapter.width 1024 --adapter.rate fixed --n_steps 133 --eval_steps 133

# Stage chat: with LoRA, and as long without.
chat=(--data "[\"$tiny/data/tiny/chat\"]" --init runs/align --repeat_share 0.25 --n_steps 30 --eval_steps 30)
asked tiny_default_chat lora "${chat[@]}"
asked tiny_align no_lora "${chat[@]}" --learning_rate 2e-4 --warmup_steps 10

heard=()
for name in "${grounds[@]}"; do
    [ ! -f "runs/$name/metrics.json" ] || heard+=("runs/$name")
done
[ ${#heard[@]} = 0 ] || "$bin/python" "$benchmarks/heard.py" "${heard[@]}" --data dev.jsonl "${noisy[@]}" --asr whisper-base
"$bin/python" - <<'PY'
import json
from pathlib import Path

from llasm.evals.report import GAP_HEADS, gap_cells, markdown_table, number

rows = []
for file in sorted(Path("evals").glob("*/scores.json"), key=lambda path: path.stat().st_mtime):
    found = json.loads(file.read_text())["custom"]
    scores = [number(found["conditions"][kind]["score"][0], found["metric"]) for kind in ("speech", "text")]
    metrics = json.loads(Path(f"runs/{file.parent.name}/metrics.json").read_text())
    cells = gap_cells(found["gaps"]["speech - text"], found["metric"])
    rows.append([file.parent.name, *scores, *cells, f"{metrics['held_out']['kl']:.2f}", f"{metrics['seconds'] / 60:.0f}"])
print("\n".join(markdown_table(["run", "aloud", "typed", "aloud - typed", *GAP_HEADS, "kl", "minutes"], rows)))
PY
