# The files that the daemons of slurm/devcluster read; it sources this, and sets what is used here.
# shellcheck shell=bash disable=SC2154

write_settings() { # NODES
    local node slot authinfo="cred_expire=5" pass=
    [[ $auth == none ]] || authinfo="socket=$dir/munge/socket,cred_expire=5" pass=$dir/munge/socket
    # A GPU must be a device; a link to one will do.
    for ((slot = 0; slot < gpus; slot++)); do
        ln -sfn /dev/null "$dir/dev/gpu$slot"
    done
    {
        cat <<CONF
ClusterName=devcluster
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/$auth
CredType=cred/$auth
# A job that is queued again waits as long as its old credentials hold: 120 s, unless told; less than 5 is not allowed.
AuthInfo=$authinfo
# Without these the daemons listen on every address of the machine.
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
MailProg=/bin/true
# Cores are claimed, not there: nothing is bound to them, and what slurmd measures does not count.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
SwitchType=switch/none
MpiDefault=none
JobCompType=jobcomp/none
# The limits of the shell that submits (address space, open files) are not those of a cluster's node.
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
MaxArraySize=1001
MaxJobCount=5000
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Everything is noticed and done sooner than on a large cluster.
PriorityType=priority/basic
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=50000,bf_interval=1,bf_min_age_reserve=0,preempt_reorder_count=1
KillWait=2
CompleteWait=0
MinJobAge=300
InactiveLimit=0
SlurmctldTimeout=10
SlurmdTimeout=10
BatchStartTimeout=10
MessageTimeout=10
TCPTimeout=2
UnkillableStepTimeout=60
# A node that was down is of use as soon as it is back.
ReturnToService=2
CONF
        [[ $preempt == term ]] || echo "SlurmctldParameters=preempt_send_user_signal"
        if [[ $acct == dbd ]]; then
            echo "AccountingStorageType=accounting_storage/slurmdbd"
            echo "AccountingStorageHost=localhost"
            echo "AccountingStoragePort=$((port + 1))"
            [[ -z $pass ]] || echo "AccountingStoragePass=$pass"
            [[ $gpus -eq 0 ]] || echo "AccountingStorageTRES=gres/gpu"
            echo "AccountingStoreFlags=job_comment"
        else
            echo "AccountingStorageType=accounting_storage/none"
        fi
        echo "GresTypes=gpu"
        for ((node = 1; node <= $1; node++)); do
            echo "NodeName=node$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1 + node)) CPUs=$cpus Sockets=1" \
                "CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=$mem State=UNKNOWN$([[ $gpus -eq 0 ]] || echo " Gres=gpu:$gpus")"
        done
        echo "PartitionName=DEFAULT Nodes=node[1-$1] State=UP MaxTime=INFINITE DefaultTime=10 OverSubscribe=NO"
        echo "PartitionName=debug Default=YES PriorityTier=5 PreemptMode=OFF"
        echo "PartitionName=preempt PriorityTier=1 PreemptMode=REQUEUE GraceTime=$grace"
        echo "PartitionName=high PriorityTier=10 PreemptMode=OFF"
    } >"$dir/etc/slurm.conf"
    {
        echo "AutoDetect=off"
        [[ $gpus -eq 0 ]] || echo "NodeName=node[1-$1] Name=gpu File=$dir/dev/gpu[0-$((gpus - 1))]"
    } >"$dir/etc/gres.conf"
    # Nothing here uses cgroups, yet slurmd looks for them unless a plugin is named; this one waits until it is called.
    echo "CgroupPlugin=cgroup/v1" >"$dir/etc/cgroup.conf"
    (
        umask 077
        {
            echo "AuthType=auth/$auth"
            [[ -z $pass ]] || echo "AuthInfo=socket=$pass"
            printf '%s\n' DbdHost=localhost DbdAddr=127.0.0.1 "DbdPort=$((port + 1))" "SlurmUser=$user" DebugLevel=info \
                "PidFile=$dir/run/slurmdbd.pid" "LogFile=$dir/log/slurmdbd.log" StorageType=accounting_storage/mysql \
                StorageHost=localhost StorageUser=slurm StoragePass=slurm StorageLoc=slurm_acct_db
        } >"$dir/etc/slurmdbd.conf"
    )
}
