#!/usr/bin/env bash
# The choices behind the embedded default, one by one: the table in the appendix of its card.
#
#   train/tiny_experiments.sh DATA_DIR [OUT_DIR] [NAME …]
#
# DATA_DIR as for train/tiny.sh. The data are made anew, about a third of the default's; each run is a short one of a
# recipe with one setting changed, asked held-out questions of dev.jsonl aloud in a voice that no training heard, clean
# and at 10 dB. With NAMEs only those are run, and what they start from. Run again, it goes on where it was interrupted;
# evals/* holds every answer. About 3.5 hours on 2 cores with AMX.
set -euo pipefail
data=$(realpath "${1:?usage: train/tiny_experiments.sh DATA_DIR [OUT_DIR] [NAME …]}")
out=${2:-runs/experiments}
wanted=" ${*:3} "
wordnet=${WORDNET:-/usr/share/wordnet}
bin=$(realpath "${BIN:-.venv/bin}")
noise="[\"$data/noise/esc10\"]"
mkdir -p "$out" && cd "$out"

build() { [ -f "data/tiny/$1/README.md" ] || "$bin/llasm" data build "$2" --output "data/tiny/$1" "${@:3}"; }
[ -f data/tiny/prompts/dev.jsonl ] || "$bin/python" -m llasm.data_gen.prompts "$data/text" data/tiny/prompts \
    --wordnet "$wordnet" --speech "$data/speech" --ground 32000 --voices 4000 --align 1500 --chat 800
build ground tiny_ground
build voices tiny_voices --vary.noise "$noise"
build clean tiny_voices --vary.variants 0
build people tiny_people --vary.noise "$noise"
build align tiny_align --vary.noise "$noise"
build chat tiny_default_chat --vary.noise "$noise"
part() {  # NAME N: every N-th file of text that was spoken, as data sets of their own
    for set in ground voices; do
        mkdir -p "data/tiny/$1/$set/data"
        files=("data/tiny/$set"/data/*.parquet)
        for ((i = 0; i < ${#files[@]}; i += $2)); do
            ln -sf "$(realpath "${files[i]}")" "data/tiny/$1/$set/data/"
        done
    done
}
part half 2
part quarter 4
sets() { echo "[\"data/tiny/$1/ground\", \"data/tiny/$1/voices\", \"data/tiny/people\"]"; }

run() {  # RECIPE NAME [options]: train, ask, and forget what the snapshots need of the disk
    [[ $wanted == "  " || $wanted == *" $2 "* ]] || return 0
    train "$@"
    [ -f "evals/$2/report.md" ] || "$bin/llasm" eval --model "runs/$2" --task custom --data data/tiny/prompts/dev.jsonl \
        --limit 400 --conditions speech,text --snr 10 --noise "$data/noise/noise_misc" --voice piper \
        --max_new_tokens 32 --latency_items 0 --out "evals/$2" --resume
}
train() {
    [ -f "runs/$2/metrics.json" ] || "$bin/llasm" train "$1" --output "runs/$2" --resume "${@:3}"
    rm -rf "runs/$2/snapshots"
}
ground() { run tiny_ground "$1" --n_steps 800 --eval_steps 800 "${@:2}"; }
align() {  # NAME START [options]
    [[ $wanted == "  " || $wanted == *" $1 "* ]] || return 0
    train tiny_ground "$2" --n_steps 800 --eval_steps 800 ${3:+--adapter.rate "$3"}
    run tiny_align "$1" --init "runs/$2" --n_steps 80 --eval_steps 80 "${@:4}"
}

# Stage ground: hours of speech, voices, noise, the aligner's size, spelling beside the LLM's tokens.
ground all
ground half --data "$(sets half)"
ground quarter --data "$(sets quarter)"
ground one_voice --data '["data/tiny/ground"]'
ground no_noise --data '["data/tiny/ground", "data/tiny/clean"]'
ground narrow --adapter.width 256
ground shallow --adapter.n_layers 2
ground deep --adapter.n_layers 6
ground no_spelling --losses.spelling 0

# Stage align: what it adds; every frame instead of one embedding for each token heard; its settings.
align align all ""
align align_fixed fixed fixed
align repeat_0 all "" --repeat_share 0
align repeat_50 all "" --repeat_share 0.5
align temperature_1 all "" --temperature 1
align temperature_4 all "" --temperature 4
align no_ctc all "" --losses.ctc 0
# Without stage ground, for as long as ground and align took together.
run tiny_align swiglu --init null --adapter.name swiglu --adapter.stack 8 --adapter.width 1024 --adapter.rate fixed \
    --losses.ctc 0 --n_steps 300 --eval_steps 300 --learning_rate 1e-3 --warmup_steps 30

# Stage chat from the same: with LoRA, and as long without.
run tiny_default_chat lora --init runs/all --n_steps 200 --eval_steps 200
run tiny_align no_lora --init runs/all --n_steps 200 --eval_steps 200 --data '["data/tiny/chat"]'

"$bin/python" - <<'PY'
import json
from pathlib import Path

print("| run | asked aloud | 95 % | aloud / typed | at 10 dB | token errors |\n|---|---|---|---|---|---|")
for folder in sorted(Path("evals").glob("*/scores.json"), key=lambda path: path.stat().st_mtime):
    name = folder.parent.name
    found = json.loads(folder.read_text())["custom"]["conditions"]
    (aloud, low, high), typed = (found[kind]["score"] for kind in ("speech", "text"))
    errors = json.loads(Path(f"runs/{name}/metrics.json").read_text())["held_out"].get("token_error_rate")
    cells = [f"{100 * aloud:.1f} %", f"{100 * low:.1f} to {100 * high:.1f}", f"{aloud / typed[0]:.2f}"]
    cells += [f"{100 * found['speech@snr10']['score'][0]:.1f} %", "–" if errors is None else f"{errors:.3f}"]
    print(f"| {name} | {' | '.join(cells)} |")
PY
