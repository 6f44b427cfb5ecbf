"""What programs print when they fail: torch, CUDA, NCCL, gloo, Slurm of many versions, Python, bash and memdist itself.

Patterns are searched in a line without what launchers put before it, and without regard to case.
"""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal[
    "finished",
    "stopped",
    "gpu-memory",
    "host-memory",
    "time-limit",
    "pre-empted",
    "node-failure",
    "communication",
    "disk-full",
    "bad-data",
    "diverged",
    "wrong-input",
    "cancelled",
    "no-progress",
    "bug",
]


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_SENTENCE = r"^memdist(?: \(rank \d+\))?: "

CAUSES: list[tuple[Kind, re.Pattern[str]]] = [
    # The kernel or Slurm says so: cgroups (three generations of Slurm), and Slurm's own count.
    (
        "host-memory",
        _any(
            r"oom[-_]kill(?:er|:| event)",
            r"OOM Killed",
            r"tasks? [\d,-]+: Out Of Memory",
            r"Out of memory: Killed process",
            r"exceeded (?:\w+ )*memory limit \(.{0,80}\), being killed",
            r"Exceeded (?:job|step) memory limit(?! at some point)",
        ),
    ),
    # A full /dev/shm says "No space left on device" as well.
    (
        "host-memory",
        _any(
            r"(?:out of|insufficient) shared memory",
            r"creating shared memory segment",
            r"(?:/dev/shm|posix_fallocate|/torch_\d+).*No space left",
            r"killed by signal: Bus error",
            r"tasks? [\d,-]+: Bus error",
        ),
    ),
    (
        "node-failure",
        _any(
            r"\bECC error",
            r"UNCORRECTABLE MEMORY ERROR",
            r"NVRM: Xid [^:]*(?::[^: ]*)*: (?!13\b|31\b|43\b|45\b)\d",  # those four are the program's own faults
            r"fallen off the bus",
            r"unspecified launch failure",
            r"over nvlink or a hardware error",
            r"device\(s\) is/are busy or unavailable",
            r"no CUDA-capable device is detected",
            r"Unable to determine the device handle",
            r"GPU requires reset",
            r"Driver/library version mismatch",
            r"CUDA (?:error: )?unknown error",
        ),
    ),
    (
        "gpu-memory",
        _any(
            r"\bOutOfMemoryError\b",
            r"\b(?:CUDA|HIP|XPU|MPS backend)(?: error:)? out of memory",
            r"Cuda failure (?:\d+ )?'out of memory'",
            r"\bCU\w+_STATUS_ALLOC_FAILED",
            r"cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY",
            r"Failed to CUDA (?:host )?[cm]alloc",
            r"has too little memory now for the maps",
        ),
    ),
    (
        "host-memory",
        _any(
            r"(?<![a-z])(?:_Array)?MemoryError\b",
            r"\bbad_alloc\b",
            r"^(?!.*(?:ibv_|NCCL)).*Cannot allocate memory",  # network cards lock memory, of which there is little
            r"can't allocate memory",
            r"not enough memory: you tried to allocate",
            r"killed by signal: Killed",
            r"BrokenProcessPool",
            _SENTENCE + r".*for want of memory",
        ),
    ),
    (
        "disk-full",
        _any(r"No space left on device", r"Disk quota exceeded", r"\[Errno (?:28|122)\]", r"os error (?:28|122)\b"),
    ),
    ("diverged", _any(r"\bhas diverged: ", r"^diverged: ", r"returned nan values in its")),
    (
        "bad-data",
        _any(
            r"^(?:\w+\.)*UnidentifiedImageError",
            r"^OSError: image file is truncated",
            r"^DataError: ",
            _SENTENCE + r".*(?:cannot be trained on|cannot be read as a picture|has too many pixels|has no two halves)",
            _SENTENCE + r".*(?:is not there any more|cannot be read: .*restore it or take it out)",
            _SENTENCE + r".*\bdata\.(?:images|maps|side_by_side|csv|fixations|groups|train|val|test) = ",
            _SENTENCE + r"line \d+ of .*",
            _SENTENCE + r".*(?:split would be empty|pairs of one group belong|a pair belongs to one split|is no split)",
            _SENTENCE + r".*(?:cannot be read as a split|is no pair of|names none of the pairs)",
        ),
    ),
    # The disk of a node, or a file system that it has lost.
    (
        "node-failure",
        _any(r"Input/output error", r"\[Errno 5\]", r"Stale file handle", r"Transport endpoint is not connected"),
    ),
]

VERDICTS: list[tuple[Kind, re.Pattern[str]]] = [
    ("node-failure", _any(r"DUE TO NODE FAILURE", r"error: Node failure on ", r"Task launch for \S+ failed on node ")),
    ("pre-empted", _any(r"\*\*\* .*DUE TO (?:PREEMPTION|JOB REQUEUE)")),
    ("time-limit", _any(r"\*\*\* .*DUE TO TIME LIMIT")),
    # Of a step alone it is how srun ends the ranks that are left.
    ("cancelled", _any(r"\*\*\* JOB \S+ .*CANCELLED AT ")),
]

STATES: dict[str, Kind] = {
    "NODE_FAIL": "node-failure",
    "BOOT_FAIL": "node-failure",
    "LAUNCH_FAILED": "node-failure",
    "RECONFIG_FAIL": "node-failure",
    "PREEMPTED": "pre-empted",
    "REQUEUED": "pre-empted",
    "TIMEOUT": "time-limit",
    "CANCELLED": "cancelled",
    "DEADLINE": "cancelled",
    "REVOKED": "cancelled",
}

CRASH = _any(
    r"Fatal Python error: (?!Aborted)",  # so does NCCL's watchdog end a rank
    r"\bSegmentation fault",
    r"\bIllegal instruction",
    r"INTERNAL ASSERT FAILED",
    r"device-side assert triggered",
    r"illegal memory access",
    r"CUDA error: misaligned address",
)

NO_PROGRESS = _any(_SENTENCE + r".*\(hang_minutes[;)]")

LOST = _any(
    r"watchdog (?:caught|thread terminated)",
    r"\bnccl(?:System|Remote|Internal|UnhandledCuda|InProgress)?Error\b",
    r"NCCL (?:error|timeout|communicator was aborted)",
    r"remote process exited or there was a network error",
    r"gloo/transport|Gloo connectFullMesh",
    r"Connection (?:closed|reset|refused|aborted|timed out|was likely closed)",
    r"\bDist(?:Network|Store|Backend)Error\b",
    r"Failed to (?:recv|send), got 0 bytes",
    r"TCPStore|Broken pipe|EADDRINUSE|Address already in use",
    r"No route to host|Network is unreachable|Name or service not known|failure in name resolution",
    r"\bibv_\w+.*fail|NET/IB.*(?:error|failed)",
    _SENTENCE + r"(?:the connection to another rank was lost|rank 0 was not met at)",
)

# Exceptions that follow from another process's end.
FOLLOWS = _any(
    LOST.pattern,
    r"^(?:\w+\.)*(?:ChildFailedError|CalledProcessError|SignalException|KeyboardInterrupt|EOFError|BrokenPipeError)\b",
    r"^(?:\w+\.)*Connection(?:Reset|Refused|Aborted)?Error\b",
    r"killed by signal: Terminated|exited unexpectedly",
)

SETTING = _any(
    r"^(?:\w+\.)*(?:ModuleNotFoundError|ImportError): |No module named |command not found$",
    r"execve\(\): |slurm_script: line \d+: .*(?:No such file|Permission denied)",
    r"Found no NVIDIA driver|driver on your system is too old|no kernel image is available|Duplicate GPU detected",
    r"^.?Error: (?:No such|Invalid|Missing|Got unexpected)|No such option",
)

WEAK: list[tuple[Kind, re.Pattern[str]]] = [
    ("communication", LOST),
    ("cancelled", _any(r"^KeyboardInterrupt\b|got signal: (?:2|15)\b")),
    ("wrong-input", SETTING),
]

BY_CODE: dict[int, Kind] = {
    **dict.fromkeys((2, 126, 127), "wrong-input"),
    **dict.fromkeys((-1, -2, -15), "cancelled"),
    # Wishes to stop that came before there was anybody to take note of them.
    **dict.fromkeys((-10, -12), "stopped"),
    -7: "host-memory",  # SIGBUS: /dev/shm is full
}

TASK = re.compile(r"srun: error: (\S+): tasks? [\d,-]+: (.+)")
NODE = re.compile(r"error: (?:Node failure on|Task launch for \S+ failed on node) ([^\s:]+)|" + TASK.pattern)
KILLED = _any(
    r"line \d+:\s+\d+ Killed\b",
    r"rank \d+ (?:was killed by SIGKILL|ended without a word)",
    r"exitcode\s*: -9\b|return code = -9\b|Signal 9 \(SIGKILL\)",
)
HINT = _any(r"memory limit at (?:some point|least once)")

SENTENCE = _any(_SENTENCE)
REMARK = _any(r"^(?:memdist: )?warning: ", r"^memdist: waiting up to ")
SCHEDULER = _any(
    r"^(?:srun|slurmstepd[^:]*|salloc): ", r"^\[\d{4}-\S+\] error: ", r"^memdist: rank \d+ (?:ended|was killed)"
)

OTHER = _any(REMARK.pattern, NO_PROGRESS.pattern, LOST.pattern, _SENTENCE + r"rank \d+ (?:ended|was killed)")
"""Sentences of memdist that are not about what it was given."""

MISTAKE = _any(r"^(?:Config|Data|Checkpoint|Cluster|Search|Memdist)Error: ", SETTING.pattern)
