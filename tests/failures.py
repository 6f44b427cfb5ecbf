"""What programs print when they fail, in their own words, and what they ended of."""

from memdist.distributed import hang
from memdist.triage import Kind

TRACE = ["Traceback (most recent call last):", '  File "/x/step.py", line 12, in take_step', "    loss = net(x)"]
CUDA = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which "
    "1.32 GiB is free. Process 4711 has 77.81 GiB memory in use."
)
GLOO = "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:51234"
LOST = (
    "memdist (rank 3): the connection to another rank was lost, so that rank has ended or cannot be reached: what it said "
    "itself, or the log of its machine, tells why"
)
WATCHDOG = (
    "[rank1]:[E321 02:07:08.408271257 ProcessGroupNCCL.cpp:607] [Rank 1] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=1580, OpType=ALLREDUCE, NumelIn=466119168, NumelOut=466119168, Timeout(ms)=600000) ran for 600060 "
    "milliseconds before timing out."
)
NCCL = [
    *TRACE,
    "torch.distributed.DistBackendError: NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:268, unhandled system error "
    "(run with NCCL_DEBUG=INFO for details), NCCL version 2.21.5",
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. ",
    "Last error:",
    "socketStartConnect: Connect to 10.0.0.2<45763> failed : Software caused connection abort",
]
ABORTED = "srun: Job step aborted: Waiting up to 32 seconds for job step to finish."
STEP = "slurmstepd: error: *** STEP 12.0 ON n01 CANCELLED AT 2026-01-02T03:04:05 ***"
REST = [ABORTED, STEP, "srun: error: n01: tasks 0,2-3: Killed", "srun: Terminating StepId=12.0"]


def by_slurm(why: str, what: str = "JOB 12", prefix: str = "slurmstepd: error: ") -> str:
    """What Slurm writes into a log of a job or step that it ends."""
    return f"{prefix}*** {what} ON n01 CANCELLED AT 2026-01-02T03:04:05{why} ***"


NODE = by_slurm(" DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS", "STEP 12.0")
OOM = "slurmstepd: error: Detected 1 oom_kill event in StepId=12.0. Some of the step tasks have been OOM Killed."
HANG = "memdist: " + hang.sentence(
    hang.Missing((2,), True), {rank: hang.Stand(9, "step 90", 700, 600, 3) for rank in range(4)}, 4, 10
)

CASES: list[tuple[Kind, int | None, str | None, list[str]]] = [
    ("finished", 0, None, ["memdist: anything"]),
    ("finished", 0, "COMPLETED", []),
    ("finished", None, "COMPLETED", []),
    ("stopped", 75, None, []),
    ("stopped", 75, "FAILED", ["stopped by SIGUSR1"]),
    ("stopped", -12, None, []),
    ("time-limit", 75, "TIMEOUT", []),
    ("pre-empted", 75, None, [by_slurm(" DUE TO PREEMPTION")]),
    ("cancelled", 75, "CANCELLED by 1000", []),
    ("gpu-memory", 1, None, [*TRACE, CUDA]),
    ("gpu-memory", 1, None, [LOST, *(f"[rank0]: {line}" for line in [*TRACE, CUDA]), WATCHDOG, *REST]),
    (
        "gpu-memory",
        1,
        None,
        ["RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"],
    ),
    ("gpu-memory", 1, None, ["torch.AcceleratorError: CUDA error: out of memory"]),
    ("gpu-memory", 1, None, ["n1:7:9 [0] include/alloc.h:178 NCCL WARN Cuda failure 2 'out of memory'", *NCCL]),
    (
        "gpu-memory",
        2,
        None,
        ["memdist: cuda:0 has too little memory now for the maps that are predicted at once: give ..."],
    ),
    ("gpu-memory", -9, "TIMEOUT", [CUDA, by_slurm(" DUE TO TIME LIMIT")]),
    ("host-memory", 1, None, [LOST, *TRACE, GLOO, OOM, "srun: error: n01: task 0: Out Of Memory"]),
    (
        "host-memory",
        -9,
        None,
        [
            "slurmstepd: error: Detected 593060 oom-kill event(s) in step 18446833.batch cgroup. Some of your processes may have "
            "been killed by the cgroup out-of-memory handler."
        ],
    ),
    (
        "host-memory",
        1,
        None,
        ["[2026-09-21T10:00:00.123] error: Detected 2 oom_kill events in StepId=7.0. Some of ..."],
    ),
    ("host-memory", -9, None, ["slurmstepd: error: Job 12 exceeded memory limit (1500 > 1024), being killed"]),
    ("host-memory", -9, None, ["slurmstepd: error: StepId=7.batch exceeded memory limit (734 > 524), being killed"]),
    ("host-memory", None, None, ["slurmstepd-n01: error: Exceeded job memory limit"]),
    (
        "host-memory",
        -9,
        None,
        ["slurmstepd: error: Exceeded step memory limit at some point.", "srun: error: n1: task 0: Killed"],
    ),
    ("host-memory", 0, "OUT_OF_MEMORY", []),
    ("host-memory", None, "OUT_OF_ME+", [GLOO]),
    (
        "host-memory",
        1,
        None,
        [*TRACE, "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7.1 PiB for an array"],
    ),
    (
        "host-memory",
        1,
        None,
        [
            *TRACE,
            "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: ...",
        ],
    ),
    ("host-memory", 1, None, [*TRACE, "RuntimeError: DataLoader worker (pid 4711) is killed by signal: Killed. "]),
    (
        "host-memory",
        1,
        None,
        [
            "ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory (shm)."
        ],
    ),
    (
        "host-memory",
        1,
        None,
        [*TRACE, "RuntimeError: unable to write to file </torch_77_1_0>: No space left on device (28)"],
    ),
    (
        "host-memory",
        1,
        None,
        ["n1:7:9 [0] misc/shmutils.cc:81 NCCL WARN Call to posix_fallocate failed : No space left on device"],
    ),
    ("host-memory", -7, None, []),
    ("host-memory", 137, None, ["step 1000"]),
    (
        "host-memory",
        1,
        None,
        ["memdist: rank 1 was killed by SIGKILL (out of memory?); the other ranks were stopped", LOST],
    ),
    (
        "host-memory",
        137,
        None,
        ["/var/spool/slurmd/job12/slurm_script: line 33: 430069 Killed                  python x.py"],
    ),
    ("time-limit", None, "TIMEOUT", []),
    ("time-limit", 0, "TIMEOUT", []),
    (
        "time-limit",
        None,
        None,
        [ABORTED, by_slurm(" DUE TO TIME LIMIT"), by_slurm(" DUE TO TIME LIMIT", "STEP 12.0"), LOST],
    ),
    (
        "time-limit",
        1,
        "FAILED",
        [by_slurm(" DUE TO TIME LIMIT", prefix="[2026-09-21T10:00:00.1] error: "), *TRACE, "KeyError: 'x'"],
    ),
    ("pre-empted", None, "PREEMPTED", []),
    ("pre-empted", 143, None, [by_slurm(" DUE TO PREEMPTION"), by_slurm(" DUE TO PREEMPTION", "STEP 12.0"), WATCHDOG]),
    ("pre-empted", None, None, [by_slurm(" DUE TO JOB REQUEUE")]),
    ("node-failure", None, "NODE_FAIL", [GLOO]),
    (
        "node-failure",
        1,
        None,
        [LOST, "srun: error: Node failure on n02", ABORTED, NODE, "srun: error: n01: tasks 0-1: Killed"],
    ),
    ("node-failure", 1, None, [WATCHDOG, *TRACE, "RuntimeError: CUDA error: uncorrectable ECC error encountered"]),
    ("node-failure", -6, None, ["RuntimeError: CUDA error: unspecified launch failure"]),
    ("node-failure", 1, None, ["RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable"]),
    ("node-failure", 1, None, ["NVRM: Xid (PCI:0000:41:00): 79, pid=12345, GPU has fallen off the bus."]),
    ("node-failure", 1, None, ["[ 12.3] NVRM: Xid (PCI:0000:41:00): 48, pid=12345, An uncorrectable double bit error"]),
    (
        "node-failure",
        137,
        None,
        [LOST, "srun: error: n02: task 3: Killed", ABORTED, "srun: error: n01: task 0: Exited with exit code 1"],
    ),
    ("node-failure", 1, None, [*TRACE, "OSError: [Errno 116] Stale file handle: '/scratch/a.png'"]),
    ("node-failure", None, None, ["step 1200"]),
    ("node-failure", None, None, []),
    ("communication", 1, None, NCCL),
    ("communication", -6, None, [WATCHDOG, "terminate called after throwing an instance of 'c10::DistBackendError'"]),
    (
        "communication",
        1,
        None,
        [*TRACE, GLOO, "During handling of the above exception, another:", *TRACE, "KeyError: 1"],
    ),
    ("communication", 1, None, [LOST, "srun: error: n01: task 0: Exited with exit code 1", *REST]),
    ("communication", 1, None, ["memdist: rank 0 was not met at n01:29500: see what it says, and whether ..."]),
    (
        "disk-full",
        2,
        None,
        ["memdist: cannot write runs/a/x: no space left on device; what was written before is untouched: ..."],
    ),
    ("disk-full", 1, None, [LOST, *TRACE, "OSError: [Errno 122] Disk quota exceeded: '/home/x/a.pt'"]),
    (
        "disk-full",
        2,
        None,
        ["memdist: the cache of decoded pictures cannot be written in /c: no space left on device; make room"],
    ),
    (
        "bad-data",
        2,
        None,
        ["memdist: /d/a.png cannot be read as a picture (truncated): replace it or take it out", *REST],
    ),
    ("bad-data", 2, None, ["memdist (rank 1): 2 files cannot be trained on: '/d/a.png' (empty file); replace ..."]),
    ("bad-data", 2, None, ["memdist: data.images = /d is not there: give a folder of pictures"]),
    ("bad-data", 1, None, [*TRACE, "PIL.UnidentifiedImageError: cannot identify image file '/d/a.png'"]),
    (
        "diverged",
        2,
        None,
        ["memdist: runs/a has diverged: train/loss is nan at step 9; there is no checkpoint from before yet"],
    ),
    ("wrong-input", 2, None, ["memdist: batch.size = -1 cannot be: give a whole number from 1"]),
    (
        "wrong-input",
        137,
        None,
        ["memdist: batch.size = -1 cannot be", "srun: error: n01: task 1: Exited with exit code 2", *REST],
    ),
    ("wrong-input", 1, None, ["memdist: batch.size = -1 cannot be: give a whole number from 1"]),
    ("wrong-input", 2, None, ["Usage: memdist train [OPTIONS]", "Error: No such option: --gpu"]),
    ("wrong-input", 127, None, ["/var/spool/slurmd/job12/slurm_script: line 9: memdist: command not found"]),
    ("wrong-input", 1, None, [*TRACE, "ModuleNotFoundError: No module named 'memdist'"]),
    ("cancelled", None, "CANCELLED by 1000", [LOST]),
    ("cancelled", 143, None, [ABORTED, STEP, by_slurm("")]),
    ("cancelled", 143, None, [by_slurm(" DUE to SIGNAL Terminated", prefix="[2026-09-21T10:00:00.1] error: ")]),
    ("cancelled", 1, None, ["slurmstepd: *** JOB 1479012 CANCELLED AT 2015-02-04T06:33:25 *** on sh-2-3"]),
    ("cancelled", 130, None, [*TRACE, "KeyboardInterrupt"]),
    ("cancelled", -15, None, []),
    ("no-progress", 1, None, [HANG, "srun: error: n01: task 0: Exited with exit code 1", *REST]),
    ("no-progress", -6, None, [HANG, WATCHDOG, LOST]),
    ("bug", 1, None, [*TRACE, "ZeroDivisionError: division by zero"]),
    ("bug", 1, None, [LOST, *(f"1: {line}" for line in [*TRACE, "ValueError"]), STEP, WATCHDOG, *REST]),
    ("bug", 1, None, ["    x = 1 / 0", '  File "a.py", line 3, in f', "    x = 1 / 0", "ZeroDivisionError: x"]),
    (
        "bug",
        -6,
        None,
        [WATCHDOG.replace("collective operation timeout", "x"), "CUDA error: an illegal memory access was encountered"],
    ),
    ("bug", 139, None, ["srun: error: n01: task 0: Segmentation fault (core dumped)", *REST]),
    ("bug", 1, None, []),
    ("bug", None, "FAILED", []),
]
