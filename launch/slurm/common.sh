# What both batch scripts share: where workers meet, where the run goes, and how it goes on.

PYTHON=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=$(scontrol --oneliner show node "$head" | sed 's/.*NodeAddr=\([^ ]*\).*/\1/')
export MASTER_ADDR
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) # two jobs on one node do not collide

# The same directory whenever the job starts; a --run_dir of the user's comes behind it and wins.
RUN_DIR=runs/slurm-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}
RUN=(--run_dir "$RUN_DIR" --resume auto)

# In an array, %a stands for the task's number: --seed %a. (Sourced without arguments, this file shares its caller's.)
[ -z "${SLURM_ARRAY_TASK_ID:-}" ] || set -- "${@//\%a/$SLURM_ARRAY_TASK_ID}"

# Of a sweep's array, each task's keys stand in a file of their own, an argument a line.
if [ -n "${FEDSIM_TASKS:-}" ]; then
    mapfile -t TASK < "$FEDSIM_TASKS/$SLURM_ARRAY_TASK_ID"
    set -- "$@" "${TASK[@]}"
fi

# An array's own number is that of one of its tasks, too; by this name a task is meant alone.
JOB=${SLURM_ARRAY_TASK_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB=${JOB:-$SLURM_JOB_ID}

# Whether SLURM wants the nodes and gave the job time to leave. It queues a job again that stays to the end of that time, or
# that got none; one that leaves within it would count as failed. A job that was cancelled is no longer RUNNING.
asked_to_make_room() {
    local shown
    shown=$(scontrol --oneliner show job "$JOB") || return 1
    [[ $shown == *" JobState=RUNNING "* && $shown == *" PreemptTime="* && $shown != *" PreemptTime=None "* ]]
}

# Runs a job step, and queues the job again where the run can go on, and the time limit came or others want the nodes.
run_and_requeue() {
    local previous="" argument step status heard limit=""
    for argument in "$@"; do
        [ "$previous" = --run_dir ] && RUN_DIR=$argument
        case $argument in --run_dir=*) RUN_DIR=${argument#--run_dir=} ;; esac
        previous=$argument
    done
    rm -f "$RUN_DIR/PREEMPTED"
    # The signal of --signal=B: is the shell's alone; SIGTERM SLURM sends to every step, and the shell stays until they end.
    trap 'heard=yes limit=yes; scancel --signal="${STOP_SIGNAL:-USR1}" "$JOB" 2> /dev/null || true' USR1
    trap heard=yes TERM
    "$@" &
    step=$!
    while
        heard="" status=0
        wait "$step" || status=$?
        [ "$heard" ] # then it was the waiting that ended; the shell remembers the step's status where that has ended, too
    do :; done
    # At its time limit a run that left no marker came no further in all this time. One that has to make room was only new.
    if [ "$status" != 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "${MAX_REQUEUES:-100}" ] &&
        { { [ "$limit" ] && [ -e "$RUN_DIR/PREEMPTED" ]; } || asked_to_make_room; }; then
        scontrol requeue "$JOB"
    fi
    exit "$status"
}
