#!/usr/bin/env bash
# Drift, repair, measure, and one table. What is there already is not done again: bash examples/repair/run.sh runs/repair
set -euo pipefail
run=${1:-runs/repair} model=${MODEL:-models/smollm2-135m-instruct}
here=examples/repair
python=${PYTHON:-.venv/bin/python}
stages=("$model" "$run/drifted" "$run/repaired")

[ -e "$run/drifted/adapter_model.safetensors" ] || "$python" $here/drift.py "$model" "$run/drifted"
if [ ! -e "$run/repaired/summary.md" ]; then
    resume=()
    if compgen -G "$run/repaired/step-*" > /dev/null; then resume=(--resume); else rm -rf "$run/repaired"; fi
    "$python" -m local_distill train --config $here/repair.yaml --student_model "$model" --init_adapter "$run/drifted" \
        --output_dir "$run/repaired" ${resume[@]+"${resume[@]}"}
fi

"$python" -m local_distill eval "${stages[@]}" --dataset $here/questions.jsonl --answers contains \
    --max_new_tokens 24 --output "$run/questions"
"$python" -m local_distill eval "${stages[@]}" --prompts_file $here/held_out_prompts.txt --teacher_model "$model" \
    --max_new_tokens 48 --output "$run/chat"
"$python" $here/code_loss.py "$run/code_loss.json" "${stages[@]}"
"$python" $here/table.py "$run"
echo "The report of the repair: $run/repaired/report.html. All of it took $((SECONDS / 60)) min $((SECONDS % 60)) s."
