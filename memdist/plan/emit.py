"""A run's settings in the words of other tools: a configuration of `accelerate launch`, a DeepSpeed JSON."""

from __future__ import annotations

import json
from typing import Any

from memdist.errors import ConfigError
from memdist.plan.estimate import Plan
from memdist.plan.table import advice
from memdist.train.shares import LIVE, REDUCE_BUCKET

KINDS = ("accelerate", "deepspeed")
_HALVES = {"bf16": "bfloat16", "fp16": "float16"}


def check(kind: str) -> None:
    """Raise a ConfigError for what cannot be written."""
    if kind not in KINDS:
        raise ConfigError(f"--emit {kind!r} cannot be: it should be {' or '.join(KINDS)}")


def emit(plan: Plan, kind: str) -> str:
    """The run's own strategy with the largest micro-batch that fits and shares the batch out, or the one that is set."""
    check(kind)
    return json.dumps(deepspeed(plan), indent=2) + "\n" if kind == "deepspeed" else _yaml(accelerate(plan))


def _yaml(record: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(record)


def _micro(plan: Plan, name: str) -> int:
    row = next(row for row in plan.rows if row.choice.name == name)
    if row.refused:
        raise ConfigError(f"{plan.run.model.name} cannot run with {name}: {row.refused}")
    micro = plan.run.batch.micro or row.micro
    if micro == 0 or micro > row.largest:
        most = f"at most {row.largest} pictures at a time fit" if row.largest else "not one picture at a time fits"
        raise ConfigError(f"{name} does not fit on {plan.gpu.name}: {most}. {advice(plan)}")
    return int(micro)


def _clip(run: Any) -> float:
    """One norm for all networks, 0 for none."""
    clips = {name: getattr(run.optim, name).clip for name in type(run.optim).model_fields}
    if len(set(clips.values())) > 1:
        given = ", ".join(f"optim.{name}.clip={clip}" for name, clip in clips.items())
        raise ConfigError(f"the file has one gradient clipping and the run has {given}: give all networks the same")
    return float(next(iter(clips.values())) or 0)


def deepspeed(plan: Plan) -> dict[str, Any]:
    """A configuration of DeepSpeed, for `deepspeed.stage` whatever the run's strategy is."""
    run = plan.run
    settings = run.deepspeed
    micro = _micro(plan, f"deepspeed {settings.stage}")
    bucket = min(REDUCE_BUCKET, plan.weights)  # DeepSpeed allocates all of it
    zero: dict[str, Any] = {
        "stage": settings.stage,
        "contiguous_gradients": True,
        # A second bucket, which is not counted in plans.
        "overlap_comm": False,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if settings.stage == 3:
        zero |= {"stage3_max_live_parameters": LIVE, "stage3_max_reuse_distance": LIVE}
        zero |= {"stage3_gather_16bit_weights_on_model_save": True}
    if settings.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if settings.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    record: dict[str, Any] = {
        "train_batch_size": run.batch.size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": run.batch.size // (micro * plan.world),
        # Without it DeepSpeed would clip at 1.
        "gradient_clipping": _clip(run),
        "zero_optimization": zero,
        # The optimisers are torch's.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if run.precision in _HALVES:
        record["torch_autocast"] = {"enabled": True, "dtype": _HALVES[run.precision]}
    return record


def accelerate(plan: Plan) -> dict[str, Any]:
    """A configuration of `accelerate launch --config_file`, for the run's own strategy."""
    run = plan.run
    name = f"deepspeed {run.deepspeed.stage}" if run.strategy == "deepspeed" else run.strategy
    micro = _micro(plan, name)
    # On CPUs as well: MULTI_CPU starts one process and leaves the others to mpirun.
    kinds = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "deepspeed": "DEEPSPEED"}
    record: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": "NO" if plan.world == 1 and run.strategy == "ddp" else kinds[run.strategy],
        "gpu_ids": "all",
        "machine_rank": 0,
        "main_training_function": "main",
        "mixed_precision": run.precision if run.precision in _HALVES else "no",
        "num_machines": -(-plan.world // plan.box),
        "num_processes": plan.world,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": False,
    }
    if run.strategy == "fsdp":
        record["fsdp_config"] = {
            "fsdp_version": 2,
            "fsdp_reshard_after_forward": True,
            "fsdp_offload_params": run.fsdp.offload,
            "fsdp_activation_checkpointing": run.activation_checkpointing,
            "fsdp_cpu_ram_efficient_loading": False,
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        }
    if run.strategy == "deepspeed":
        offload = run.deepspeed.offload
        record["deepspeed_config"] = {
            "zero_stage": run.deepspeed.stage,
            "gradient_accumulation_steps": run.batch.size // (micro * plan.world),
            "gradient_clipping": _clip(run),
            "offload_optimizer_device": "none" if offload == "none" else "cpu",
            "offload_param_device": "cpu" if offload == "all" else "none",
            "zero3_init_flag": False,
            "zero3_save_16bit_model": run.deepspeed.stage == 3,
        }
    return record
