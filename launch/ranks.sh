# What launch/torchrun, accelerate, deepspeed, srun and ray share; they source it. Sets python, nodes and node_rank.
# shellcheck shell=bash disable=SC2034
set -euo pipefail

fail() {
    echo "memdist: $1" >&2
    exit 2
}

usage() { # the header of the script that was started
    sed -n '2,/^set\|^$\|^\./s/^# \{0,1\}//p' "$0"
    exit "$1"
}

whole() { # NAME VALUE LEAST: whether a variable holds a number
    [[ $2 =~ ^[0-9]{1,6}$ && $2 -ge $3 ]] || fail "$1='$2' cannot be: it is a whole number from $3 on"
}

case ${1:-} in
    '') usage 2 >&2 ;;
    -h | --help) usage 0 ;;
esac

# The installation beside this folder, or else the one that is in use.
python=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin/python
[[ -x $python ]] || python=$(command -v python3 || command -v python) || fail "there is no Python here; run launch/install"

nodes=${NODES:-1}
node_rank=${NODE_RANK:-0}
whole NODES "$nodes" 1
whole NODE_RANK "$node_rank" 0
[[ $node_rank -lt $nodes ]] || fail "NODE_RANK=$node_rank and NODES=$nodes cannot be: NODE_RANK is 0 to NODES - 1"

count_gpus() { # ranks of this machine: GPUS, or as many as it has GPUs
    gpus=${GPUS:-$("$python" -P -m memdist.launch.gpus)}
    whole GPUS "$gpus" 1
}

meeting() { # where rank 0 is met; one machine takes a free port each time, several have to be told
    if [[ $nodes -eq 1 ]]; then
        address=127.0.0.1
        port='{port}'
        return
    fi
    [[ -n ${MASTER_ADDR:-} ]] || fail "NODES=$nodes needs MASTER_ADDR, the name or address of the machine with NODE_RANK=0"
    address=$MASTER_ADDR
    port=${MASTER_PORT:-29500}
    whole MASTER_PORT "$port" 1
}

# Signals go straight to the ranks, and the exit code is theirs.
under() { exec "$python" -P -m memdist.launch.under "$@"; }
