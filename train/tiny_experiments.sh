#!/usr/bin/env bash
# The choices behind the embedded default, one by one: the table in the appendix of its card.
#
#   train/tiny_experiments.sh DATA_DIR [OUT_DIR]        after train/tiny.sh with the same two, whose data it uses
#
# Each is a short run of a recipe with one setting changed, asked the held-out questions of dev.jsonl aloud in a voice
# that no training heard, clean and at 10 dB. Run again, it goes on where it was interrupted; evals/x_* holds every answer.
set -euo pipefail
data=$(realpath "${1:?usage: train/tiny_experiments.sh DATA_DIR [OUT_DIR]}")
out=${2:-runs/tiny}
llasm=$(realpath "${BIN:-.venv/bin}")/llasm
cd "$out"
noise="[\"$data/noise/esc10\"]"

measure() {  # NAME CONDITIONS [options]: of runs/NAME
    [ -f "evals/x_$1/report.md" ] || "$llasm" eval --model "runs/$1" --task custom --data data/tiny/prompts/dev.jsonl \
        --conditions "$2" --voice piper --max_new_tokens 32 --latency_items 0 --out "evals/x_$1" --resume "${@:3}"
}
try() {  # RECIPE NAME [options]: train, measure, and forget what the snapshots need of the disk
    [ -f "runs/x_$2/metrics.json" ] || "$llasm" train "$1" --output "runs/x_$2" --resume "${@:3}"
    rm -rf "runs/x_$2"/snapshots
    measure "x_$2" speech --snr 10 --noise "$data/noise/noise_misc"
}
sets() { echo "[\"data/tiny/$1/ground\", \"data/tiny/$1/voices\", \"data/tiny/people\"]"; }
part() {  # NAME N: the first 1/N of the files of text that was spoken, as data sets of their own
    for set in ground voices; do
        mkdir -p "data/tiny/$1/$set/data"
        files=("data/tiny/$set"/data/*.parquet)
        for file in "${files[@]:0:$((${#files[@]} / $2))}"; do ln -sf "$(realpath "$file")" "data/tiny/$1/$set/data/"; done
    done
}

# What the LLM answers to the text: what every row below is measured against.
measure tiny_ground speech,text --snr 10 --noise "$data/noise/noise_misc"

# Stage ground, 1,200 steps of 32 each.
short=(--n_steps 1200 --eval_steps 1200)
part quarter 4 && part half 2
"$llasm" data build tiny_voices --output data/tiny/clean --vary.variants 0
try tiny_ground all "${short[@]}"
try tiny_ground half "${short[@]}" --data "$(sets half)"
try tiny_ground quarter "${short[@]}" --data "$(sets quarter)"
try tiny_ground one_voice "${short[@]}" --data '["data/tiny/ground"]'
try tiny_ground no_noise "${short[@]}" --data '["data/tiny/ground", "data/tiny/clean"]'
try tiny_ground narrow "${short[@]}" --adapter.width 256
try tiny_ground shallow "${short[@]}" --adapter.n_layers 2
try tiny_ground deep "${short[@]}" --adapter.n_layers 6

# Every frame, or one embedding for each token heard; then without stage ground, for as long as both stages took.
try tiny_ground fixed "${short[@]}" --adapter.rate fixed
try tiny_align fixed_align --init runs/x_fixed
try tiny_align heard_align --init runs/x_all
try tiny_align swiglu --init null --adapter.name swiglu --adapter.stack 8 --adapter.width 1024 --adapter.rate fixed \
    --losses.ctc 0 --n_steps 500 --learning_rate 1e-3 --warmup_steps 50

# Stage align, from the default's own ground.
try tiny_align repeat_0 --repeat_share 0
try tiny_align repeat_50 --repeat_share 0.5
try tiny_align temperature_1 --temperature 1
try tiny_align temperature_4 --temperature 4
try tiny_align no_ctc --losses.ctc 0

# The stages themselves; the last one is LoRA.
measure tiny_align speech,text --snr 10 --noise "$data/noise/noise_misc"
measure tiny_default_chat speech,text --snr 10 --noise "$data/noise/noise_misc"

"$(dirname "$llasm")/python" - <<'PY'
import json
from pathlib import Path

print("| run | asked aloud | 95 % | at 10 dB | 95 % | text |\n|---|---|---|---|---|---|")
for folder in sorted(Path("evals").glob("x_*"), key=lambda path: path.stat().st_ctime):
    found = json.loads((folder / "scores.json").read_text())["custom"]["conditions"]
    cells = []
    for name in ("speech", "speech@snr10"):
        score, low, high = (100 * x for x in found[name]["score"])
        cells += [f"{score:.1f} %", f"{low:.1f} to {high:.1f}"]
    cells.append(f"{100 * found['text']['score'][0]:.1f} %" if "text" in found else "")
    print(f"| {folder.name[2:]} | {' | '.join(cells)} |")
PY
