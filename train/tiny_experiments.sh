#!/usr/bin/env bash
# The choices behind the embedded default, one by one: the tables in the appendix of its card.
#
#   train/tiny_experiments.sh DATA_DIR OUT_DIR [NAME …]
#
# DATA_DIR and OUT_DIR as they were given to train/tiny.sh, which has run: its data and its ground are used. Each run is a
# short one of a recipe with one setting changed. Of stage ground the words are counted that are heard wrong, and behind
# the later stages held-out questions of dev.jsonl are asked, aloud in a voice that no training heard and typed. With
# NAMEs only those are run; align_fixed and align_all need `all`, lora and no_lora `align`. Run again, it goes on where
# it was interrupted. About 1.5 hours on 2 cores.
set -euo pipefail
data=$(realpath "${1:?usage: train/tiny_experiments.sh DATA_DIR OUT_DIR [NAME …]}")
tiny=$(realpath "${2:?usage: train/tiny_experiments.sh DATA_DIR OUT_DIR [NAME …]}")
wanted=" ${*:3} "
bin=$(realpath "${BIN:-.venv/bin}")
benchmarks=$(realpath benchmarks)
[ -f "$tiny/runs/tiny_ground/metrics.json" ] || { echo "$tiny: run train/tiny.sh first" >&2; exit 2; }
mkdir -p "$tiny/experiments" && cd "$tiny/experiments"
prompts=$tiny/data/tiny/prompts
noisy=(--voice piper --snr 10 --noise "$data/noise/noise_misc")
awk 'NR % 4 == 1' "$prompts/dev.jsonl" > dev.jsonl  # of every source; 211 questions

part() {  # NAME GROUND VOICES: the first files of text that was spoken, as data sets of their own
    local files set
    for set in ground:$2 voices:$3; do
        files=("$tiny/data/tiny/${set%:*}/data"/*.parquet)
        mkdir -p "data/$1/${set%:*}/data"
        [ "${set#*:}" = 0 ] || ln -sf "${files[@]:0:${set#*:}}" "data/$1/${set%:*}/data/"
    done
}
part all 8 4  # 16 hours, of which 300 steps hear 10; half of it twice as often
part half 4 2
part quarter 2 1
part one_voice 16 0

chosen() { [[ $wanted == "  " || $wanted == *" $1 "* ]]; }
# The same voices without noise, rooms and lines.
! chosen clean || [ -f data/clean/README.md ] || "$bin/llasm" data build tiny_voices --output data/clean \
    --vary.variants 0 --sources "[{\"path\": \"$prompts/voices.jsonl\", \"limit\": 4000}]"
train() {  # RECIPE NAME [options]
    [ -f "runs/$2/metrics.json" ] || "$bin/llasm" train "$1" --output "runs/$2" --n_examples 0 --resume "${@:3}"
    rm -rf "runs/$2/snapshots"
}
ground() {  # NAME [options]
    ! chosen "$1" || train tiny_ground "$1" --data "$(sets all)" --n_steps 300 --eval_steps 300 \
        --adapter.read_by table "${@:2}"
}
sets() { echo "[\"data/$1/ground\", \"data/$1/voices\"]"; }
asked() {  # RECIPE NAME [options]: trained and asked
    chosen "$2" || return 0
    train "$@"
    [ -f "evals/$2/report.md" ] || "$bin/llasm" eval --model "runs/$2" --task custom --data dev.jsonl \
        --conditions speech,text --voice piper --max_new_tokens 32 --latency_items 0 --out "evals/$2" --resume
}
align() {  # NAME START [options]
    asked tiny_align "$1" --data "[\"$tiny/data/tiny/align\"]" --init "$2" --n_steps 30 --eval_steps 30 "${@:3}"
}

# Stage ground: hours of speech, voices, noise, the aligner's size, spelling beside the LLM's tokens.
ground all
ground half --data "$(sets half)"
ground quarter --data "$(sets quarter)"
ground one_voice --data '["data/one_voice/ground"]'
ground clean --data '["data/all/ground", "data/clean"]'
ground narrow --adapter.width 256
ground shallow --adapter.n_layers 2
ground deep --adapter.n_layers 6
ground no_spelling --losses.spelling 0
ground letters --adapter.read_by letters

# Stage align, from the default's own ground: its settings.
trained=$tiny/runs/tiny_ground
align align "$trained"
align repeat_0 "$trained" --repeat_share 0
align repeat_50 "$trained" --repeat_share 0.5
align temperature_1 "$trained" --temperature 1
align temperature_4 "$trained" --temperature 4
align no_ctc "$trained" --losses.ctc 0
# Every frame instead of one embedding for each token heard: the same weights, but for what stands for silence. Of
# `all`, since states that are read by letters are none that an LLM could take.
if chosen align_fixed; then
    rm -rf every_frame && cp -rL runs/all every_frame
    sed -i 's/"rate": "heard"/"rate": "fixed"/' every_frame/config.json every_frame/processor_config.json
    "$bin/python" - <<'PY'
from safetensors.torch import load_file, save_file

file = "every_frame/adapter_model.safetensors"
kept = {name: weight for name, weight in load_file(file).items() if not name.endswith(".silence")}
save_file(kept, file, {"format": "pt"})
PY
    align align_fixed every_frame
fi
# Without stage ground, and as long as all and align_all took together.
align align_all runs/all
asked tiny_align swiglu --data "[\"$tiny/data/tiny/align\"]" --init null --adapter.name swiglu --adapter.stack 8 \
    --adapter.width 1024 --adapter.rate fixed --losses.ctc 0 --n_steps 80 --eval_steps 80 --learning_rate 1e-3

# Stage chat: with LoRA, and as long without.
chat=(--data "[\"$tiny/data/tiny/chat\"]" --init runs/align --repeat_share 0.25 --n_steps 30 --eval_steps 30)
asked tiny_default_chat lora "${chat[@]}"
asked tiny_align no_lora "${chat[@]}" --losses.ctc 0.1 --learning_rate 5e-5 --warmup_steps 10

heard=()
for name in all half quarter one_voice clean narrow shallow deep no_spelling letters; do
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
